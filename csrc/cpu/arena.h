#pragma once

#include <cstddef>

namespace wenet {

// Memory that is kept for the next call: a training step asks for the same gigabytes again and again, and pages fresh
// from the system cost more than filling them. Given back once it has lain idle for a while, or where it would be more
// than a quarter of what was ever used at once.
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
  void* data_;
};

}  // namespace wenet
