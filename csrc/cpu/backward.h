// Derivatives of a loss with respect to every operand: the nodes in reverse, step by step from the last, then the weight
// gradients as products over all steps at once.
#pragma once

#include "cpu/cell.h"
#include "cpu/team.h"

namespace wenet {
namespace WENET_ISA {

// Through the normalisation of one block: `grad` with respect to the normalised state becomes that with respect to the
// state before. The batch's own statistics depend on the states too.
template <typename T>
void normalise_backward(const T* normalised, Vector<T> scale, bool of_batch, T* grad, int64_t rows) {
  constexpr int W = kWidth<T>;
  Vector<T> mean{}, projection{};
  if (of_batch) {
    for (int64_t m = 0; m < rows * W; m += W) {
      mean += load(grad + m);
      projection += load(grad + m) * load(normalised + m);
    }
    mean /= T(rows);
    projection /= T(rows);
  }
  for (int64_t m = 0; m < rows * W; m += W) {
    store<T>(grad + m, (load(grad + m) - mean - load(normalised + m) * projection) * scale);
  }
}

// Through s = p + gate * (candidate - p): with respect to the gate's logit, the candidate's and p.
template <typename T>
void gate_backward(const T* grad, const T* previous, const T* gate, const T* candidate, T* grad_gate, T* grad_candidate,
                   T* grad_previous, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) {
    const Vector<T> s = load(grad + m), g = load(gate + m);
    store<T>(grad_gate + m, s * (load(candidate + m) - load(previous + m)) * g * (1 - g));
    store<T>(grad_candidate + m, s * g);
    store<T>(grad_previous + m, load(grad_previous + m) + s * (1 - g));
  }
}

template <Activation kind, typename T>
void activate_backward(const T* value, const T* grad, T* to, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) store<T>(to + m, load(grad + m) * slope<kind>(load(value + m)));
}

// With respect to the activation's argument, from its value and the derivative with respect to that.
template <typename T>
void activate_backward(int32_t kind, const T* value, const T* grad, T* to, int64_t rows) {
  switch (kind) {
    case kTanh: return activate_backward<kTanh>(value, grad, to, rows);
    case kRelu: return activate_backward<kRelu>(value, grad, to, rows);
    case kSigmoid: return activate_backward<kSigmoid>(value, grad, to, rows);
    default: return activate_backward<kIdentity>(value, grad, to, rows);
  }
}

template <typename T>
class BackwardPass {
 public:
  BackwardPass(const Recurrence& r, const Evaluation& evaluation, const Gradients& gradients)
      : r_(r),
        o_(r),
        evaluation_(evaluation),
        gradients_(gradients),
        chains_(r.weighted ? 1 : r.networks),
        packed_(r.networks * o_.products() * packed_size()),
        states_(r.threads * o_.products() * o_.state_size()),
        grad_states_(r.threads * o_.products() * o_.state_size()),
        previous_h_(chains_ * r.steps * o_.state_size()),
        masked_h_(r.mask_h ? chains_ * r.steps * o_.state_size() : 0),
        factors_(r.networks * r.nodes * r.steps * o_.state_size()),
        grad_products_(r.networks * o_.products() * grad_product_size()),
        grad_h_(chains_ * o_.state_size()),
        grad_previous_h_(r.networks * o_.state_size()),
        grad_mix_(r.networks * o_.hidden.blocks() * kWidth<T>),
        outer_products_(r.threads * 2 * outer_product_size()),
        scratch_(r.threads * kScratch * o_.block_size()),
        mask_(r.mask_h ? o_.state_size() : 0) {
    if (r.mask_h) block_mask(o_, mask_.data());
    run_team(*this, r);
  }

  void run(const Member& member) {
    const Range mine = member.networks(r_.networks);
    for (int64_t k = mine.first; k < mine.last; ++k) begin_network(member, k);
    for (int64_t chain = 0; chain < chains_; ++chain) begin_chain(member, chain);
    member.sync();
    if (r_.weighted) {
      for (int64_t t = r_.steps; t-- > 0;) {
        for (int64_t k = mine.first; k < mine.last; ++k) step(member, t, k);
        member.sync();
        collect(member, t);
        member.sync();
      }
    } else {
      for (int64_t k = mine.first; k < mine.last; ++k) {
        for (int64_t t = r_.steps; t-- > 0;) {
          step(member, t, k);
          carry_back(member, t, k);
        }
      }
      member.sync();
    }
    weight_gradients(member);
    if (r_.weighted && member.rank() == 0) finish_grad_mix();
  }

 private:
  static constexpr int kScratch = 3;  // blocks of a thread: two for a product, one for a gate

  int64_t packed_size() const { return o_.hidden.blocks() * o_.columns.width() * kWidth<T>; }
  T* packed(int64_t network, int64_t node) { return packed_.data() + (network * o_.products() + node) * packed_size(); }
  int64_t chain(int64_t network) const { return r_.weighted ? 0 : network; }
  const T* mask(int64_t block) const { return r_.mask_h ? mask_.data() + block * o_.block_size() : nullptr; }
  T* scratch(const Member& member, int64_t i) {
    return scratch_.data() + (member.rank() * kScratch + i) * o_.block_size();
  }

  // Of the network in work.
  Blocked<T> state(const Member& member, int64_t node) { return in_work(states_, member, node); }
  Blocked<T> grad_state(const Member& member, int64_t node) { return in_work(grad_states_, member, node); }
  Blocked<T> in_work(Buffer<T>& buffer, const Member& member, int64_t node) {
    return {buffer.data() + (member.slot() * o_.products() + node) * o_.state_size(), o_.block_size()};
  }

  Blocked<T> grad_h(int64_t chain) { return {grad_h_.data() + chain * o_.state_size(), o_.block_size()}; }
  Blocked<T> grad_previous_h(int64_t network) {
    return {grad_previous_h_.data() + network * o_.state_size(), o_.block_size()};
  }

  // Both factors of the weight gradients, with the rows of all steps in one block: [blocks, T * M, W].
  Blocked<T> over_time(T* data) const { return {data, r_.steps * o_.block_size()}; }
  Blocked<T> factor(int64_t network, int64_t node) {  // what the products of the node's children read
    return over_time(factors_.data() + (network * r_.nodes + node) * r_.steps * o_.state_size());
  }
  int64_t grad_product_size() const { return o_.columns.vectors() * r_.steps * o_.block_size(); }
  Blocked<T> grad_product(int64_t network, int64_t node) {
    return over_time(grad_products_.data() + (network * o_.products() + node) * grad_product_size());
  }
  Blocked<T> previous_h(int64_t chain) { return over_time(previous_h_.data() + chain * r_.steps * o_.state_size()); }
  Blocked<T> masked_h(int64_t chain) {
    return r_.mask_h ? over_time(masked_h_.data() + chain * r_.steps * o_.state_size()) : previous_h(chain);
  }
  Blocked<T> at(Blocked<T> matrix, int64_t t) const { return matrix.from_row(t * r_.rows); }

  // Of the row-major gradient or value of the output in a step.
  int64_t output_offset(int64_t t, int64_t chain, int64_t b) const {
    return (t * chains_ + chain) * r_.rows * r_.hidden + b * kWidth<T>;
  }

  void begin_network(const Member& member, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t node = 0; node <= r_.nodes; ++node) {
      pack_transposed(o_.weight(network, node), o_.columns, blocks.first, blocks.last, packed(network, node));
    }
    for (int64_t b = blocks.first; b < blocks.last; ++b) store<T>(grad_mix(network, b), Vector<T>{});
  }

  // The states h_{t-1} that the init nodes read, and the derivative that comes into the last step.
  void begin_chain(const Member& member, int64_t chain) {
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      for (int64_t t = 0; t < r_.steps; ++t) {
        const T* h = t == 0 ? reinterpret_cast<const T*>(r_.h0) + output_offset(0, chain, b)
                            : reinterpret_cast<const T*>(evaluation_.output) + output_offset(t - 1, chain, b);
        T* block = at(previous_h(chain), t).block(b);
        gather_block(h, r_.hidden, o_.hidden.count(b), r_.rows, block);
        if (r_.mask_h) mask_rows(block, mask(b), at(masked_h(chain), t).block(b), r_.rows);
      }
      zero_rows(grad_h(chain).block(b), r_.rows);
      add_grad_output(r_.steps - 1, chain, b);
    }
  }

  void add_grad_output(int64_t t, int64_t chain, int64_t b) {
    const T* from = reinterpret_cast<const T*>(gradients_.output) + output_offset(t, chain, b);
    T* to = grad_h(chain).block(b);
    for (int64_t m = 0; m < r_.rows; ++m, to += kWidth<T>) {
      store<T>(to, load(to) + load_part(from + m * r_.hidden, o_.hidden.count(b)));
    }
  }

  // All nodes of one network in one time step, in reverse.
  void step(const Member& member, int64_t t, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      for (int64_t node = 0; node <= r_.nodes; ++node) rebuild(member, t, network, node, b);
      enter(member, network, b);
    }
    for (int64_t node = r_.nodes; node >= 0; --node) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) node_backward(member, t, network, node, b);
      member.sync_network();
      product_backward(member, t, network, node, blocks);
    }
  }

  const T* kept(int64_t t, int64_t network, int64_t node, int64_t b) const {
    return reinterpret_cast<const T*>(evaluation_.kept) + o_.kept_offset(t, network, node) +
           b * o_.columns.per * o_.block_size();
  }

  struct Activated {
    const T *gate, *candidate;
  };

  // Gate (null where there is none) and candidate as forward kept them; the gate of a plain init node is made again.
  Activated activated(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    const T* values = kept(t, network, node, b);
    if (r_.highway) return {values, values + o_.block_size()};
    if (node > 0) return {nullptr, values};
    T* gate = scratch(member, 2);
    gather_block(o_.pre(t, network, 0, b), r_.hidden, o_.hidden.count(b), r_.rows, gate);
    activate_rows<kSigmoid>(gate, gate, r_.rows);
    return {gate, values};
  }

  const T* previous(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    if (node == 0) return at(previous_h(chain(network)), t).block(b);
    return state(member, o_.ancestor(network, node)).block(b);
  }

  Statistics<T> statistics(int64_t t, int64_t network, int64_t node, int64_t b) const {
    if (r_.norm == Norm::running) return o_.running_statistics(network, node, b);
    const int64_t offset = o_.statistics_offset(t, network, node, b);
    const int count = o_.hidden.count(b);
    return {load_part(reinterpret_cast<const T*>(evaluation_.mean) + offset, count),
            load_part(reinterpret_cast<const T*>(evaluation_.var) + offset, count)};
  }

  // The state of a node from what forward kept, without a product.
  void rebuild(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    const Activated a = activated(member, t, network, node, b);
    T* s = state(member, node).block(b);
    combine_rows(previous(member, t, network, node, b), a.gate, a.candidate, s, r_.rows);
    if (r_.norm != Norm::none) normalise_rows(s, statistics(t, network, node, b), r_.rows);
    if (node < r_.nodes) mask_rows(s, mask(b), at(factor(network, node), t).block(b), r_.rows);
  }

  // What the output sends back into the states, and into the network's mixing weight.
  void enter(const Member& member, int64_t network, int64_t b) {
    const T* grad = grad_h(chain(network)).block(b);
    const T weight = r_.weighted ? o_.mix(network) : T(1);
    Vector<T> product{};
    for (int64_t node = 0; node <= r_.nodes; ++node) {
      T* to = grad_state(member, node).block(b);
      zero_rows(to, r_.rows);
      const T share = o_.share(network, node);
      if (share == 0) continue;
      add_scaled_rows(grad, share * weight, to, r_.rows);
      const T* s = state(member, node).block(b);
      for (int64_t m = 0; m < o_.block_size(); m += kWidth<T>) product += share * (load(s + m) * load(grad + m));
    }
    if (r_.weighted) store<T>(grad_mix(network, b), load(grad_mix(network, b)) + product);
    zero_rows(grad_previous_h(network).block(b), r_.rows);
  }

  // Where the derivative with respect to the state that a node reads is gathered.
  T* grad_previous(const Member& member, int64_t network, int64_t node, int64_t b) {
    if (node == 0) return grad_previous_h(network).block(b);
    return grad_state(member, o_.ancestor(network, node)).block(b);
  }

  // From a state to the result of its product, for one block of hidden units.
  void node_backward(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    const Activated a = activated(member, t, network, node, b);
    T* grad = grad_state(member, node).block(b);
    if (r_.norm != Norm::none) {
      const Vector<T> scale = statistics(t, network, node, b).scale();
      normalise_backward(state(member, node).block(b), scale, r_.norm == Norm::batch, grad, r_.rows);
    }
    const Blocked<T> grad_columns = at(grad_product(network, node), t);
    T* grad_candidate = grad_columns.block((b + 1) * o_.columns.per - 1);
    if (a.gate == nullptr) return activate_backward(o_.activation(network, node), a.candidate, grad, grad_candidate, r_.rows);
    T* grad_gate = r_.highway ? grad_columns.block(2 * b) : scratch(member, 0);
    gate_backward(grad, previous(member, t, network, node, b), a.gate, a.candidate, grad_gate, grad_candidate,
                  grad_previous(member, network, node, b), r_.rows);
    activate_backward(o_.activation(network, node), a.candidate, grad_candidate, grad_candidate, r_.rows);
    if (node == 0) {
      scatter_pre(t, network, 0, b, grad_gate);
      if (r_.highway) scatter_pre(t, network, 1, b, grad_candidate);
    }
  }

  void scatter_pre(int64_t t, int64_t network, int column, int64_t b, const T* grad) {
    T* to = reinterpret_cast<T*>(gradients_.pre) + o_.pre_offset(t, network, column, b);
    scatter_block(grad, r_.rows, o_.hidden.count(b), o_.columns.width(), to);
  }

  // Through a node's product, for a range of blocks of the state that it reads.
  void product_backward(const Member& member, int64_t t, int64_t network, int64_t node, Range blocks) {
    const Blocked<T> grad = at(grad_product(network, node), t);
    T* product = scratch(member, 0);
    for (int64_t b = blocks.first; b < blocks.last; b += 2) {
      const int64_t last = smaller(b + 2, blocks.last);
      const T* right = packed(network, node) + b * o_.columns.width() * kWidth<T>;
      multiply_vectors<T>(last - b, grad, o_.columns, right, r_.rows, product);
      for (int64_t i = b; i < last; ++i) {
        add_masked_rows(product + (i - b) * o_.block_size(), mask(i), grad_previous(member, network, node, i));
      }
    }
  }

  void add_masked_rows(const T* from, const T* mask, T* to) {
    for (int64_t m = 0; m < o_.block_size(); m += kWidth<T>) {
      const Vector<T> product = load(from + m);
      store<T>(to + m, load(to + m) + (mask == nullptr ? product : product * load(mask + m)));
    }
  }

  // The shared state's derivative out of step t, summed over the networks; with the output's it enters step t - 1.
  void collect(const Member& member, int64_t t) {
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      zero_rows(grad_h(0).block(b), r_.rows);
      for (int64_t k = 0; k < r_.networks; ++k) {
        add_scaled_rows(grad_previous_h(k).block(b), T(1), grad_h(0).block(b), r_.rows);
      }
      leave(t, 0, b);
    }
  }

  void carry_back(const Member& member, int64_t t, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      mask_rows<T>(grad_previous_h(network).block(b), nullptr, grad_h(network).block(b), r_.rows);
      leave(t, network, b);
    }
  }

  void leave(int64_t t, int64_t chain, int64_t b) {
    if (t > 0) return add_grad_output(t - 1, chain, b);
    T* to = reinterpret_cast<T*>(gradients_.h0) + output_offset(0, chain, b);
    scatter_block(grad_h(chain).block(b), r_.rows, o_.hidden.count(b), r_.hidden, to);
  }

  // Every product's weight gradient, divided by pairs of vectors of columns.
  void weight_gradients(const Member& member) {
    const int64_t pairs = ceil_div(o_.columns.vectors(), 2);
    const Range items = member.part(r_.networks * o_.products() * pairs);
    T* out = outer_products_.data() + member.rank() * 2 * outer_product_size();
    for (int64_t item = items.first; item < items.last; ++item) {
      const int64_t network = item / pairs / o_.products(), node = item / pairs % o_.products();
      const int64_t first = item % pairs * 2, last = smaller(first + 2, o_.columns.vectors());
      weight_gradient(network, node, first, last, out);
    }
  }

  // Columns `first` to `last`, in vectors, of a product's weight gradient.
  void weight_gradient(int64_t network, int64_t node, int64_t first, int64_t last, T* out) {
    const Blocked<const T> left = node == 0 ? masked_h(chain(network)) : factor(network, o_.ancestor(network, node));
    const Blocked<T> grad = grad_product(network, node);
    const Blocked<const T> right{grad.block(first), grad.block_stride};
    const int64_t depth = r_.steps * r_.rows;
    if (last - first == 2) {
      outer_product<T, 2>(left, right, depth, o_.hidden.blocks(), out);
    } else {
      outer_product<T, 1>(left, right, depth, o_.hidden.blocks(), out);
    }
    T* to = node == 0 ? reinterpret_cast<T*>(gradients_.weight_hidden) + network * o_.weight_size()
                      : reinterpret_cast<T*>(gradients_.weight_nodes) +
                            (network * r_.nodes + node - 1) * o_.weight_size();
    for (int64_t v = first; v < last; ++v, out += outer_product_size()) {
      scatter_block(out, r_.hidden, o_.columns.count(v / o_.columns.per), o_.columns.width(), to + o_.columns.column(v));
    }
  }

  int64_t outer_product_size() const { return o_.hidden.blocks() * kWidth<T> * kWidth<T>; }

  T* grad_mix(int64_t network, int64_t b) {
    return grad_mix_.data() + (network * o_.hidden.blocks() + b) * kWidth<T>;
  }

  void finish_grad_mix() {
    for (int64_t k = 0; k < r_.networks; ++k) {
      T total = 0;
      for (int64_t b = 0; b < o_.hidden.blocks(); ++b) total += sum<T>(load(grad_mix(k, b)));
      reinterpret_cast<T*>(gradients_.mix)[k] = total;
    }
  }

  const Recurrence& r_;
  const Operands<T> o_;
  const Evaluation& evaluation_;
  const Gradients& gradients_;
  const int64_t chains_;  // hidden states: one for all networks, or each network's own
  Buffer<T> packed_, states_, grad_states_, previous_h_, masked_h_, factors_, grad_products_, grad_h_, grad_previous_h_,
      grad_mix_, outer_products_, scratch_, mask_;
};

template <typename T>
void backward(const Recurrence& r, const Evaluation& evaluation, const Gradients& gradients) {
  BackwardPass<T> pass(r, evaluation, gradients);
}

}  // namespace WENET_ISA
}  // namespace wenet
