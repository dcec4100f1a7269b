#include "cpu/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <list>
#include <mutex>
#include <new>

namespace wenet {

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;  // of the large kind
constexpr std::uint64_t kPatience = 256;             // requests for which an idle range is kept

// All ranges begin at large pages, so blocks begin at different distances from there: else what lies at the same place
// in each of them would fight for the same few lines of the caches.
constexpr std::size_t kOffset = 37 * 64, kOffsets = 29, kSlack = kOffset * kOffsets;

std::size_t next_offset() {
  static std::atomic<std::size_t> blocks{0};
  return blocks.fetch_add(1, std::memory_order_relaxed) % kOffsets * kOffset;
}

struct Range {
  void* data;
  std::size_t capacity;
  std::uint64_t idle_since;
};

// Never destroyed, as blocks may outlive static objects at exit.
struct Store {
  std::mutex mutex;
  std::list<Range> idle;  // from the longest idle to the latest
  std::uint64_t requests = 0;
  std::size_t idle_bytes = 0, used_bytes = 0, most_used_bytes = 0;
};

Store& store() {
  static Store* store = new Store;
  return *store;
}

std::size_t round_up(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

Range from_system(std::size_t capacity) {
  void* data = mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(data, capacity, MADV_HUGEPAGE);
#endif
  return {data, capacity, 0};
}

void drop_longest_idle(Store& s) {
  const Range& range = s.idle.front();
  munmap(range.data, range.capacity);
  s.idle_bytes -= range.capacity;
  s.idle.pop_front();
}

void drop_stale(Store& s) {
  while (!s.idle.empty() && s.requests - s.idle.front().idle_since > kPatience) drop_longest_idle(s);
}

// Where sizes change from call to call, as with sequences of random length, what is kept would pile up.
bool too_much(const Store& s, std::size_t capacity) {
  const std::size_t most = std::max(s.most_used_bytes, s.used_bytes + capacity);
  return s.used_bytes + capacity + s.idle_bytes > most + most / 4;
}

// The smallest idle range that holds the request and is not larger than `largest`.
std::list<Range>::iterator best_fit(Store& s, std::size_t bytes, std::size_t largest) {
  auto best = s.idle.end();
  for (auto range = s.idle.begin(); range != s.idle.end(); ++range) {
    const bool fits = range->capacity >= bytes && range->capacity <= largest;
    if (fits && (best == s.idle.end() || range->capacity < best->capacity)) best = range;
  }
  return best;
}

// An idle range that wastes no more than a quarter of itself; or any, if it would otherwise be dropped to make room.
std::list<Range>::iterator find_idle(Store& s, std::size_t bytes) {
  const std::size_t capacity = round_up(bytes);
  const auto close = best_fit(s, bytes, capacity + bytes / 3);
  return close == s.idle.end() && too_much(s, capacity) ? best_fit(s, bytes, SIZE_MAX) : close;
}

Range acquire(std::size_t bytes) {
  Store& s = store();
  std::lock_guard<std::mutex> lock(s.mutex);
  ++s.requests;
  drop_stale(s);
  const auto found = find_idle(s, bytes);
  Range range;
  if (found == s.idle.end()) {
    while (!s.idle.empty() && too_much(s, round_up(bytes))) drop_longest_idle(s);
    range = from_system(round_up(bytes));
  } else {
    range = *found;
    s.idle.erase(found);
    s.idle_bytes -= range.capacity;
  }
  s.used_bytes += range.capacity;
  s.most_used_bytes = std::max(s.most_used_bytes, s.used_bytes);
  return range;
}

}  // namespace

Block::Block(std::size_t bytes) : bytes_(bytes) {
  const Range range = acquire(bytes + kSlack);
  capacity_ = range.capacity;
  range_ = range.data;
  data_ = static_cast<char*>(range.data) + next_offset();
}

Block::~Block() {
  Store& s = store();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.idle.push_back({range_, capacity_, s.requests});
  s.idle_bytes += capacity_;
  s.used_bytes -= capacity_;
}

}  // namespace wenet
