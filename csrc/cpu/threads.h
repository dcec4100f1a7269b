#pragma once

#include <atomic>

namespace wenet {

// Runs work(context, rank, threads) for rank = 0 .. threads-1 at the same time and returns when all are done. There may
// be fewer threads than asked for, where the runtime has no more to give.
void run_in_parallel(int threads, void (*work)(void* context, int rank, int threads), void* context);

// Holds every thread of a team until all have arrived.
class Barrier {
 public:
  void wait(int threads);

 private:
  std::atomic<unsigned> arrivals_{0};  // since the beginning; may wrap around
};

}  // namespace wenet
