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

// One thread of a team, and whether it works on a network alone or together with all others.
class Member {
 public:
  Member(Barrier& barrier, int rank, int threads) : Member(barrier, rank, threads, false) {}

  int rank() const { return rank_; }
  // Which of the buffers for a network in work is this thread's.
  int slot() const { return alone_ ? rank_ : 0; }

  // Calls work(member, network) for every network. They are divided, and each thread works on its own undisturbed. The
  // few that are left over, where the division does not come out even, all threads compute together, one by one, unless
  // that takes longer than a single one on a single thread.
  //
  // Args:
  //   blocks: of hidden units, which threads divide where they share a network.
  template <typename Work>
  void for_each_network(int64_t networks, int64_t blocks, Work&& work) const {
    const int64_t left = networks % threads_;
    const bool share = kCostOfSharing * left * ceil_div(blocks, threads_) < blocks;
    const int64_t divided = share ? networks - left : networks;
    const Range own = part(divided);
    const Member alone(barrier_, rank_, threads_, true);
    for (int64_t k = own.first; k < own.last; ++k) work(alone, k);
    if (divided == networks) return;
    if (divided > 0) sync();  // one thread may still use the buffers that now all share
    for (int64_t k = divided; k < networks; ++k) work(*this, k);
  }

  // This thread's part of the blocks of a network, and of work that concerns all networks.
  Range blocks(int64_t count) const { return alone_ ? Range{0, count} : part(count); }
  Range part(int64_t count) const { return {count * rank_ / threads_, count * (rank_ + 1) / threads_}; }

  // Between the parts of one network's computation, where threads that share it read each other's results.
  void sync_network() const {
    if (!alone_) sync();
  }
  void sync() const {
    fence();
    barrier_.wait(threads_);
  }

 private:
  static constexpr double kCostOfSharing = 1.25;  // times as long, as threads wait for one another

  Member(Barrier& barrier, int rank, int threads, bool alone)
      : barrier_(barrier), rank_(rank), threads_(threads), alone_(alone) {}

  Barrier& barrier_;
  const int rank_, threads_;
  const bool alone_;
};

// Runs pass.run(member) on every thread.
template <typename Pass>
void run_team(Pass& pass, int threads) {
  struct Context {
    Pass& pass;
    Barrier barrier;
  } context{pass, {}};
  run_in_parallel(
      threads,
      [](void* pointer, int rank, int threads) {
        Context& c = *static_cast<Context*>(pointer);
        c.pass.run(Member(c.barrier, rank, threads));
        fence();
      },
      &context);
}

}  // namespace WENET_ISA
}  // namespace wenet
