#include "cpu/threads.h"

#include <dlfcn.h>

#include <cstdint>
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

// Treats subnormal numbers as zero on this thread for as long as it lives. Gradients that vanish over time pass through
// them, and processors take many times as long there.
class SubnormalsAsZero {
 public:
#if defined(__x86_64__)
  SubnormalsAsZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kResultsAndOperands); }
  ~SubnormalsAsZero() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kResultsAndOperands = 0x8040;
  const unsigned before_;
#elif defined(__aarch64__)
  SubnormalsAsZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | kResultsAndOperands));
  }
  ~SubnormalsAsZero() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  static constexpr uint64_t kResultsAndOperands = uint64_t{1} << 24;
  uint64_t before_;
#endif
};

struct Region {
  void (*work)(void*, int, int);
  void* context;

  void run(int rank, int threads) const {
    [[maybe_unused]] const SubnormalsAsZero on_this_thread;
    work(context, rank, threads);
  }
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
  region.run(openmp().thread_num(), openmp().num_threads());
}

void run_on_own_threads(int threads, const Region& region) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  for (int rank = 1; rank < threads; ++rank) others.emplace_back(&Region::run, &region, rank, threads);
  region.run(0, threads);
  for (std::thread& other : others) other.join();
}

}  // namespace

void run_in_parallel(int threads, void (*work)(void*, int, int), void* context) {
  Region region{work, context};
  if (threads == 1) return region.run(0, 1);
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
