// Who computes what. Results do not depend on the division: every number is computed by the same sequence of operations
// whichever thread does it.
#pragma once

#include "cpu/product.h"
#include "cpu/threads.h"

namespace wenet {
namespace WENET_ISA {

struct Range {
  int64_t first, last;
};

// One thread of a team. Many networks are divided over the threads, each of which works on its own undisturbed; few
// networks are taken one after another, and the hidden units of each are divided.
class Member {
 public:
  Member(Barrier& barrier, int rank, int threads, int64_t networks)
      : barrier_(barrier),
        rank_(rank),
        threads_(threads),
        by_network_(networks % threads == 0 || networks >= 8 * threads) {}

  int rank() const { return rank_; }
  // Which of the buffers for a network in work is this thread's.
  int slot() const { return by_network_ ? rank_ : 0; }

  // This thread's part of the networks, of the blocks of each of its networks, and of work that concerns all networks.
  Range networks(int64_t count) const { return by_network_ ? part(count) : Range{0, count}; }
  Range blocks(int64_t count) const { return by_network_ ? Range{0, count} : part(count); }
  Range part(int64_t count) const { return {count * rank_ / threads_, count * (rank_ + 1) / threads_}; }

  // Between the parts of one network's computation, where threads that share it read each other's results.
  void sync_network() const {
    if (!by_network_) sync();
  }
  void sync() const {
    fence();
    barrier_.wait(threads_);
  }

 private:
  Barrier& barrier_;
  const int rank_, threads_;
  const bool by_network_;
};

// Runs pass.run(member) on every thread.
template <typename Pass>
void run_team(Pass& pass, int threads, int64_t networks) {
  struct Context {
    Pass& pass;
    int64_t networks;
    Barrier barrier;
  } context{pass, networks, {}};
  run_in_parallel(
      threads,
      [](void* pointer, int rank, int threads) {
        Context& c = *static_cast<Context*>(pointer);
        c.pass.run(Member(c.barrier, rank, threads, c.networks));
        fence();
      },
      &context);
}

}  // namespace WENET_ISA
}  // namespace wenet
