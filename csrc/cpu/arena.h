#pragma once

#include <cstddef>

namespace wenet {

// Memory that is kept for the next call. A training step asks for the same gigabytes again and again, and fresh pages
// cost more than filling them. It goes back to the system after lying idle for a while, or if it would be more than a
// quarter of the most that was ever used at once.
class Block {
 public:
  explicit Block(std::size_t bytes);  // throws std::bad_alloc; the contents are undefined
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::size_t capacity_;
  void* range_;
  void* data_;
};

}  // namespace wenet
