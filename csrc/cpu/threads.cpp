#include "cpu/threads.h"

#include <dlfcn.h>

#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace wenet {

namespace {

// Some tens of microseconds: longer than a healthy step's imbalance, shorter than a time slice.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

struct Region {
  void (*work)(void*, int, int);
  void* context;
};

// The OpenMP runtime that PyTorch has loaded. Its threads spin for a while after each of PyTorch's own parallel loops,
// so that threads of ours beside them would fight them for the cores.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* context, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*num_threads)();

  bool found() const { return parallel && thread_num && num_threads; }
};

template <typename Function>
void look_up(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const OpenMp& openmp() {
  static const OpenMp runtime = [] {
    OpenMp found;
    look_up(found.parallel, "GOMP_parallel");
    look_up(found.thread_num, "omp_get_thread_num");
    look_up(found.num_threads, "omp_get_num_threads");
    return found;
  }();
  return runtime;
}

void enter(void* pointer) {
  const Region& region = *static_cast<Region*>(pointer);
  region.work(region.context, openmp().thread_num(), openmp().num_threads());
}

void run_on_own_threads(int threads, const Region& region) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  for (int rank = 1; rank < threads; ++rank) others.emplace_back(region.work, region.context, rank, threads);
  region.work(region.context, 0, threads);
  for (std::thread& other : others) other.join();
}

}  // namespace

void run_in_parallel(int threads, void (*work)(void*, int, int), void* context) {
  Region region{work, context};
  if (threads == 1) return work(context, 0, 1);
  if (openmp().found()) return openmp().parallel(enter, &region, threads, 0);
  run_on_own_threads(threads, region);
}

void Barrier::wait(int threads) {
  const unsigned arrival = arrivals_.fetch_add(1, std::memory_order_acq_rel);
  const unsigned all_there = arrival - arrival % threads + threads;
  const auto waiting = [&] { return static_cast<int>(arrivals_.load(std::memory_order_acquire) - all_there) < 0; };
  for (int spins = 0; waiting(); ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // more threads than cores: let the late one run
    }
  }
}

}  // namespace wenet
