// All cells over all time steps (eqs. 1-4).
#pragma once

#include "cpu/cell.h"
#include "cpu/team.h"

namespace wenet {
namespace WENET_ISA {

// Takes the results of a product to states. What backward needs is streamed to `kept`, if that is given.
template <Activation kind, typename T>
void form_rows(const T* previous, NodeBlock<const T> product, NodeBlock<T> kept, T* state, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) {
    Vector<T> s = activate<kind>(load(product.candidate + m));
    if (kept.candidate) stream(kept.candidate + m, s);
    if (product.gate) {
      const Vector<T> gate = sigmoid(load(product.gate + m));
      if (kept.gate) stream(kept.gate + m, gate);
      s = combine(load(previous + m), gate, s);
    }
    store<T>(state + m, s);
  }
}

// Normalises states, prepares what the next products read, and adds to the cell's output.
template <typename T, typename P>
void finish_rows(const Normalisation<T>& normalise, const T* mask, T share, T* state, P* operand, T* cell,
                 int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) {
    const Vector<T> s = normalise(load(state + m));
    store<T>(state + m, s);
    store<P>(operand + m, Factors<P>::round(mask ? s * load(mask + m) : s));
    if (share != 0) store<T>(cell + m, load(cell + m) + share * s);
  }
}

// T is the type of all numbers but the factors of products, which are rounded to P.
template <typename T, typename P>
class ForwardPass {
 public:
  ForwardPass(const Recurrence& r, const Evaluation& evaluation)
      : r_(r),
        o_(r),
        evaluation_(evaluation),
        chains_(r.weighted ? 1 : r.networks),
        packed_(r.networks * o_.products() * packed_size()),
        states_(r.threads * o_.products() * o_.state_size()),
        operands_(r.threads * o_.products() * o_.state_size()),
        h_(chains_ * o_.state_size()),
        h_operand_(chains_ * o_.state_size()),
        cells_(r.networks * o_.state_size()),
        scratch_(r.threads * 3 * o_.block_size()),
        mask_(r.mask_h ? o_.state_size() : 0) {
    if (r.mask_h) block_mask(o_, mask_.data());
    run_team(*this, r.threads);
  }

  void run(const Member& member) {
    for_each_network(member, [&](const Member& own, int64_t k) { pack_network(own, k); });
    for (int64_t chain = 0; chain < chains_; ++chain) {
      take_h(member, chain, reinterpret_cast<const T*>(r_.h0) + chain * r_.rows * r_.hidden);
    }
    member.sync();
    if (r_.weighted) {
      for (int64_t t = 0; t < r_.steps; ++t) {
        for_each_network(member, [&](const Member& own, int64_t k) { step(own, t, k); });
        member.sync();
        mix(member, t);
        member.sync();
        if (r_.between_steps) meet_others(member, t);
      }
    } else {  // a network at a time, so that its weights stay in the cache
      for_each_network(member, [&](const Member& own, int64_t k) {
        for (int64_t t = 0; t < r_.steps; ++t) {
          step(own, t, k);
          carry_on(own, t, k);
          own.sync_network();
        }
      });
    }
  }

 private:
  template <typename Work>
  void for_each_network(const Member& member, Work&& work) const {
    member.for_each_network(r_.networks, o_.hidden.blocks(), work);
  }

  int64_t packed_vector_size() const { return packed_rows<P>(r_.hidden) * kWidth<T>; }
  int64_t packed_size() const { return o_.columns.vectors() * packed_vector_size(); }
  P* packed(int64_t network, int64_t node) { return packed_.data() + (network * o_.products() + node) * packed_size(); }
  int64_t chain(int64_t network) const { return r_.weighted ? 0 : network; }

  Blocked<T> state(const Member& member, int64_t node) { return in_work(states_, member, node); }
  Blocked<P> operand(const Member& member, int64_t node) { return in_work(operands_, member, node); }
  template <typename Number>
  Blocked<Number> in_work(Buffer<Number>& buffer, const Member& member, int64_t node) {
    return {buffer.data() + (member.slot() * o_.products() + node) * o_.state_size(), o_.block_size()};
  }
  Blocked<T> h(int64_t chain) { return {h_.data() + chain * o_.state_size(), o_.block_size()}; }
  Blocked<P> h_operand(int64_t chain) { return {h_operand_.data() + chain * o_.state_size(), o_.block_size()}; }
  Blocked<T> cell(int64_t network) { return {cells_.data() + network * o_.state_size(), o_.block_size()}; }
  const T* mask(int64_t block) const { return r_.mask_h ? mask_.data() + block * o_.block_size() : nullptr; }

  void pack_network(const Member& member, int64_t network) {
    const Range vectors = member.blocks(o_.columns.vectors());
    for (int64_t node = 0; node <= r_.nodes; ++node) {
      pack(o_.weight(network, node), r_.hidden, o_.columns, vectors.first, vectors.last, true, packed(network, node));
    }
  }

  // Takes a row-major state as the one that the next step reads.
  void take_h(const Member& member, int64_t chain, const T* from) {
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      gather_block(from + b * kWidth<T>, r_.hidden, o_.hidden.count(b), r_.rows, h(chain).block(b));
      mask_rows(h(chain).block(b), mask(b), h_operand(chain).block(b), r_.rows);
    }
  }

  // All nodes of one network in one time step.
  void step(const Member& member, int64_t t, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) zero_rows(cell(network).block(b), r_.rows);
    for (int64_t node = 0; node <= r_.nodes; ++node) {
      const int64_t ancestor = node == 0 ? 0 : o_.ancestor(network, node);
      const Blocked<T> previous = node == 0 ? h(chain(network)) : state(member, ancestor);
      const Blocked<P> left = node == 0 ? h_operand(chain(network)) : operand(member, ancestor);
      const int64_t together = 2 / o_.columns.per;  // hidden blocks whose columns are multiplied at once
      for (int64_t b = blocks.first; b < blocks.last; b += together) {
        const int64_t last = smaller(b + together, blocks.last);
        const int64_t vectors = (last - b) * o_.columns.per;
        T* product = scratch(member, 0);
        const P* right = packed(network, node) + b * o_.columns.per * packed_vector_size();
        multiply_vectors<P>(vectors, left, o_.hidden, right, r_.rows, product);
        for (int64_t i = b; i < last; ++i, product += o_.columns.per * o_.block_size()) {
          finish(member, t, network, node, i, previous.block(i), product);
        }
      }
      member.sync_network();
    }
  }

  // Takes the result of a product to a state, for one block of hidden units.
  void finish(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b, const T* previous,
              T* product) {
    NodeBlock<const T> block{nullptr, product};
    if (r_.highway) {
      if (node == 0) add_pre(t, network, b, product);
      block = {product, product + o_.block_size()};
    } else if (node == 0) {
      T* gate = scratch(member, 2);
      gather_block(o_.pre(t, network, 0, b), r_.hidden, o_.hidden.count(b), r_.rows, gate);
      block.gate = gate;
    }
    T* s = state(member, node).block(b);
    with_activation(o_.activation(network, node), [&](auto kind) {
      form_rows<decltype(kind)::value>(previous, block, kept(t, network, node, b), s, r_.rows);
    });
    finish_rows(normalisation(t, network, node, b, s), mask(b), o_.share(network, node), s,
                operand(member, node).block(b), cell(network).block(b), r_.rows);
  }

  NodeBlock<T> kept(int64_t t, int64_t network, int64_t node, int64_t b) const {
    if (!evaluation_.kept) return {nullptr, nullptr};
    return o_.kept(reinterpret_cast<T*>(evaluation_.kept), t, network, node, b);
  }

  void add_pre(int64_t t, int64_t network, int64_t b, T* product) {
    for (int column = 0; column < 2; ++column) {
      const T* pre = o_.pre(t, network, column, b);
      for (int64_t m = 0; m < r_.rows; ++m, product += kWidth<T>) {
        store<T>(product, load(product) + load_part(pre + m * o_.columns.width(), o_.hidden.count(b)));
      }
    }
  }

  Normalisation<T> normalisation(int64_t t, int64_t network, int64_t node, int64_t b, const T* s) {
    if (r_.norm == Norm::none) return {};
    if (r_.norm == Norm::running) return Normalisation<T>(o_.running_statistics(network, node, b));
    const int count = o_.hidden.count(b);
    const Statistics<T> statistics = batch_statistics(s, r_.rows);
    const int64_t offset = o_.statistics_offset(t, network, node, b);
    store_part(reinterpret_cast<T*>(evaluation_.mean) + offset, statistics.mean, count);
    store_part(reinterpret_cast<T*>(evaluation_.var) + offset, statistics.variance, count);
    return Normalisation<T>(statistics);
  }

  // Eq. (4): the weighted sum of the networks' outputs.
  void mix(const Member& member, int64_t t) {
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      zero_rows(h(0).block(b), r_.rows);
      for (int64_t k = 0; k < r_.networks; ++k) {
        add_scaled_rows(cell(k).block(b), o_.mix(k), h(0).block(b), r_.rows);
      }
      hand_over(t, 0, b);
    }
  }

  // Sums the output of a step over the networks of all processes.
  void meet_others(const Member& member, int64_t t) {
    if (member.rank() == 0) r_.between_steps(r_.between_steps_context, t);
    member.sync();
    take_h(member, 0, reinterpret_cast<const T*>(evaluation_.output) + t * r_.rows * r_.hidden);
    member.sync();
  }

  // An independent network's output is its own next state.
  void carry_on(const Member& member, int64_t t, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      mask_rows<T, T>(cell(network).block(b), nullptr, h(network).block(b), r_.rows);
      hand_over(t, network, b);
    }
  }

  // Writes a block of the new h to the output, and through the mask to where the next step's product reads it.
  void hand_over(int64_t t, int64_t chain, int64_t b) {
    T* output = reinterpret_cast<T*>(evaluation_.output) + (t * chains_ + chain) * r_.rows * r_.hidden;
    scatter_block(h(chain).block(b), r_.rows, o_.hidden.count(b), r_.hidden, output + b * kWidth<T>);
    mask_rows(h(chain).block(b), mask(b), h_operand(chain).block(b), r_.rows);
  }

  // A thread's own blocks: two for a product, one for a gate.
  T* scratch(const Member& member, int64_t index) {
    return scratch_.data() + (member.rank() * 3 + index) * o_.block_size();
  }

  const Recurrence& r_;
  const Operands<T> o_;
  const Evaluation& evaluation_;
  const int64_t chains_;  // hidden states: one for all networks, or each network's own
  Buffer<P> packed_;
  Buffer<T> states_;
  Buffer<P> operands_;
  Buffer<T> h_;
  Buffer<P> h_operand_;
  Buffer<T> cells_, scratch_, mask_;
};

template <typename T, typename P>
void forward(const Recurrence& r, const Evaluation& evaluation) {
  ForwardPass<T, P> pass(r, evaluation);
}

}  // namespace WENET_ISA
}  // namespace wenet
