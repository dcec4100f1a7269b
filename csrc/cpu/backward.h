// Derivatives of a loss with respect to every operand: first the nodes in reverse, from the last step to the first;
// then the weight gradients, each a product over all steps at once.
#pragma once

#include "cpu/cell.h"
#include "cpu/team.h"

namespace wenet {
namespace WENET_ISA {

// One block of a node in the backward pass, [M, W] each.
template <typename T, typename P>
struct NodeBackward {
  const T *previous, *state;       // `state` after normalisation
  NodeBlock<const T> value;        // gate and candidate
  const T* grad;                   // of the state
  T* grad_previous;                // the gradient is added to it
  NodeBlock<T> pre;                // results: of the projected input (init node only),
  NodeBlock<P> product, streamed;  // and of the product's columns, to be read soon and later
};

// Takes the gradient of a state to the gradients of its product and its ancestor.
template <Activation kind, typename T, typename P>
void node_rows(const NodeBackward<T, P>& node, const Normalisation<T>& norm, const StatisticsGradient<T>& through,
               int64_t rows) {
  join_rows<2, P>({node.streamed.gate, node.streamed.candidate}, true, rows, [&](int64_t m, Vector<T>* columns) {
    Vector<T> grad = load(node.grad + m);
    if (norm.on) grad = through(grad, load(node.state + m)) * norm.scale;
    const Vector<T> candidate = load(node.value.candidate + m);
    if (node.value.gate) {
      const Vector<T> gate = load(node.value.gate + m);
      const Vector<T> grad_gate = grad * (candidate - load(node.previous + m)) * gate * (1 - gate);
      if (node.pre.gate) store<T>(node.pre.gate + m, grad_gate);
      if (node.product.gate) store<P>(node.product.gate + m, Factors<P>::round(grad_gate));
      columns[0] = grad_gate;
      store<T>(node.grad_previous + m, load(node.grad_previous + m) + grad * (1 - gate));
      grad *= gate;
    }
    grad *= slope<kind>(candidate);
    if (node.pre.candidate) store<T>(node.pre.candidate + m, grad);
    store<P>(node.product.candidate + m, Factors<P>::round(grad));
    columns[1] = grad;
  });
}

// T is the type of all numbers but the factors of products, which are rounded to P.
template <typename T, typename P>
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
        previous_h_(chains_ * factor_size()),
        h_factors_(h_is_its_factor() ? 0 : chains_ * factor_size()),
        factors_(r.networks * r.nodes * factor_size()),
        grad_products_(r.networks * o_.products() * grad_product_size()),
        columns_(r.threads * o_.products() * grad_columns_size()),
        grad_h_(chains_ * o_.state_size()),
        grad_previous_h_(r.networks * o_.state_size()),
        grad_mix_(r.networks * o_.hidden.blocks() * kWidth<T>),
        outer_products_(r.threads * 2 * outer_product_size()),
        scratch_(r.threads * kScratch * o_.block_size()),
        mask_(r.mask_h ? o_.state_size() : 0) {
    if (r.mask_h) block_mask(o_, mask_.data());
    run_team(*this, r.threads);
  }

  void run(const Member& member) {
    for_each_network(member, [&](const Member& own, int64_t k) { begin_network(own, k); });
    for (int64_t chain = 0; chain < chains_; ++chain) begin_chain(member, chain);
    member.sync();
    if (r_.weighted) {
      for (int64_t t = r_.steps; t-- > 0;) {
        for_each_network(member, [&](const Member& own, int64_t k) { step(own, t, k); });
        member.sync();
        collect(member, t);
        member.sync();
        if (r_.between_steps) meet_others(member, t);
      }
    } else {
      for_each_network(member, [&](const Member& own, int64_t k) {
        for (int64_t t = r_.steps; t-- > 0;) {
          step(own, t, k);
          carry_back(own, t, k);
        }
      });
      member.sync();
    }
    weight_gradients(member);
    if (r_.weighted && member.rank() == 0) finish_grad_mix();
  }

 private:
  static constexpr int kScratch = 3;  // blocks of a thread: two for a product, one for a gate

  template <typename Work>
  void for_each_network(const Member& member, Work&& work) const {
    member.for_each_network(r_.networks, o_.hidden.blocks(), work);
  }

  int64_t packed_block_size() const { return o_.columns.template depth<P>() * kWidth<T>; }
  int64_t packed_size() const { return o_.hidden.blocks() * packed_block_size(); }
  P* packed(int64_t network, int64_t node) { return packed_.data() + (network * o_.products() + node) * packed_size(); }
  int64_t chain(int64_t network) const { return r_.weighted ? 0 : network; }
  const T* mask(int64_t block) const { return r_.mask_h ? mask_.data() + block * o_.block_size() : nullptr; }
  T* scratch(const Member& member, int64_t i) {
    return scratch_.data() + (member.rank() * kScratch + i) * o_.block_size();
  }

  // Buffers of the network that this thread works on.
  Blocked<T> state(const Member& member, int64_t node) { return in_work(states_, member, node); }
  Blocked<T> grad_state(const Member& member, int64_t node) { return in_work(grad_states_, member, node); }
  Blocked<T> in_work(Buffer<T>& buffer, const Member& member, int64_t node) {
    return {buffer.data() + (member.slot() * o_.products() + node) * o_.state_size(), o_.block_size()};
  }

  Blocked<T> grad_h(int64_t chain) { return {grad_h_.data() + chain * o_.state_size(), o_.block_size()}; }
  Blocked<T> grad_previous_h(int64_t network) {
    return {grad_previous_h_.data() + network * o_.state_size(), o_.block_size()};
  }

  // Both factors of the weight gradients; a block has the rows of all steps: [blocks, T * rows of a step, W].
  int64_t step_rows() const { return packed_rows<P>(r_.rows); }
  int64_t block_size_over_time() const { return r_.steps * step_rows() * kWidth<T>; }
  template <typename Number>
  Blocked<Number> over_time(Number* data) const {
    return {data, block_size_over_time()};
  }
  template <typename Number>
  Blocked<Number> at(Blocked<Number> matrix, int64_t t) const {
    return matrix.from_row(t * step_rows());
  }
  int64_t factor_size() const { return o_.hidden.blocks() * block_size_over_time(); }
  Blocked<P> factor(int64_t network, int64_t node) {  // what the products of the node's children read
    return over_time(factors_.data() + (network * r_.nodes + node) * factor_size());
  }
  int64_t grad_product_size() const { return o_.columns.vectors() * block_size_over_time(); }
  Blocked<P> grad_product(int64_t network, int64_t node) {
    return over_time(grad_products_.data() + (network * o_.products() + node) * grad_product_size());
  }
  Blocked<T> previous_h(int64_t chain) { return over_time(previous_h_.data() + chain * factor_size()); }
  bool h_is_its_factor() const { return std::is_same_v<P, T> && !r_.mask_h; }
  Blocked<P> h_factor(int64_t chain) {  // what the products of the init node read
    if constexpr (std::is_same_v<P, T>) {
      if (h_is_its_factor()) return previous_h(chain);
    }
    return over_time(h_factors_.data() + chain * factor_size());
  }

  // Offset of a block in the row-major output of a step, or in its gradient.
  int64_t output_offset(int64_t t, int64_t chain, int64_t b) const {
    return (t * chains_ + chain) * r_.rows * r_.hidden + b * kWidth<T>;
  }

  void begin_network(const Member& member, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t node = 0; node <= r_.nodes; ++node) {
      pack_transposed(o_.weight(network, node), o_.hidden, o_.columns, blocks.first, blocks.last, true,
                      packed(network, node));
    }
    for (int64_t b = blocks.first; b < blocks.last; ++b) store<T>(grad_mix(network, b), Vector<T>{});
  }

  // Prepares the states h_{t-1} that the init nodes read, and the gradient that enters the last step.
  void begin_chain(const Member& member, int64_t chain) {
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      for (int64_t t = 0; t < r_.steps; ++t) {
        const T* h = t == 0 ? reinterpret_cast<const T*>(r_.h0) + output_offset(0, chain, b)
                            : reinterpret_cast<const T*>(evaluation_.output) + output_offset(t - 1, chain, b);
        T* block = at(previous_h(chain), t).block(b);
        gather_block(h, r_.hidden, o_.hidden.count(b), r_.rows, block);
        if (!h_is_its_factor()) stream_factor(block, mask(b), at(h_factor(chain), t).block(b));
      }
      zero_rows(grad_h(chain).block(b), r_.rows);
      add_grad_output(r_.steps - 1, chain, b);
    }
  }

  void stream_factor(const T* state, const T* mask, P* factor) const {
    join_rows<1, P>({factor}, true, r_.rows, [&](int64_t m, Vector<T>* values) {
      values[0] = mask ? load(state + m) * load(mask + m) : load(state + m);
    });
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
      Vector<T> product{};
      for (int64_t node = 0; node <= r_.nodes; ++node) product += rebuild(member, t, network, node, b);
      if (r_.weighted) store<T>(grad_mix(network, b), load(grad_mix(network, b)) + product);
      zero_rows(grad_previous_h(network).block(b), r_.rows);
    }
    for (int64_t node = r_.nodes; node >= 0; --node) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) node_backward(member, t, network, node, b);
      member.sync_network();
      product_backward(member, network, node, blocks);
    }
  }

  // Gate (null where there is none) and candidate as forward kept them; the gate of a plain init node is recomputed.
  NodeBlock<const T> kept(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    NodeBlock<const T> block = o_.kept(reinterpret_cast<const T*>(evaluation_.kept), t, network, node, b);
    if (!r_.highway && node == 0) {
      T* gate = scratch(member, 2);
      gather_block(o_.pre(t, network, 0, b), r_.hidden, o_.hidden.count(b), r_.rows, gate);
      sigmoid_rows(gate, r_.rows);
      block.gate = gate;
    }
    return block;
  }

  const T* previous(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    if (node == 0) return at(previous_h(chain(network)), t).block(b);
    return state(member, o_.ancestor(network, node)).block(b);
  }

  Normalisation<T> normalisation(int64_t t, int64_t network, int64_t node, int64_t b) const {
    if (r_.norm == Norm::none) return {};
    if (r_.norm == Norm::running) return Normalisation<T>(o_.running_statistics(network, node, b));
    const int64_t offset = o_.statistics_offset(t, network, node, b);
    const int count = o_.hidden.count(b);
    return Normalisation<T>({load_part(reinterpret_cast<const T*>(evaluation_.mean) + offset, count),
                             load_part(reinterpret_cast<const T*>(evaluation_.var) + offset, count)});
  }

  // Rebuilds a node's state from what forward kept, without a product, and starts its gradient with the output's.
  // Returns what the state adds to the gradient of the network's mixing weight.
  Vector<T> rebuild(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    const NodeBlock<const T> value = kept(member, t, network, node, b);
    const T* ancestor = previous(member, t, network, node, b);
    const Normalisation<T> normalise = normalisation(t, network, node, b);
    const T* dropout = mask(b);
    const T* grad_output = grad_h(chain(network)).block(b);
    const T share = o_.share(network, node), weight = r_.weighted ? share * o_.mix(network) : share;
    T* s = state(member, node).block(b);
    T* grad = grad_state(member, node).block(b);
    P* left = node < r_.nodes ? at(factor(network, node), t).block(b) : nullptr;
    Vector<T> product{};
    join_rows<1, P>({left}, true, r_.rows, [&](int64_t m, Vector<T>* factor) {
      Vector<T> v = load(value.candidate + m);
      if (value.gate) v = combine(load(ancestor + m), load(value.gate + m), v);
      v = normalise(v);
      store<T>(s + m, v);
      factor[0] = dropout ? v * load(dropout + m) : v;
      Vector<T> entering{};
      if (share != 0) {
        entering = weight * load(grad_output + m);
        product += share * (v * load(grad_output + m));
      }
      store<T>(grad + m, entering);
    });
    return product;
  }

  // Where the gradient of the state that a node reads is summed.
  T* grad_previous(const Member& member, int64_t network, int64_t node, int64_t b) {
    if (node == 0) return grad_previous_h(network).block(b);
    return grad_state(member, o_.ancestor(network, node)).block(b);
  }

  // Takes the gradient of a state to that of its product's result, for one block of hidden units.
  void node_backward(const Member& member, int64_t t, int64_t network, int64_t node, int64_t b) {
    NodeBlock<T> pre{nullptr, nullptr};
    if (node == 0) pre = {scratch(member, 0), r_.highway ? scratch(member, 1) : nullptr};
    const NodeBackward<T, P> block{
        previous(member, t, network, node, b),   state(member, node).block(b),
        kept(member, t, network, node, b),       grad_state(member, node).block(b),
        grad_previous(member, network, node, b), pre,
        node_block(columns(member, node), b),    node_block(at(grad_product(network, node), t), b)};
    const Normalisation<T> norm = normalisation(t, network, node, b);
    StatisticsGradient<T> through;
    if (r_.norm == Norm::batch) {
      through.sum(block.grad, r_.rows, [&](int64_t m) WENET_LAMBDA { return load(block.state + m); });
    }
    with_activation(o_.activation(network, node),
                    [&](auto kind) { node_rows<decltype(kind)::value>(block, norm, through, r_.rows); });
    if (node == 0) {
      scatter_pre(t, network, 0, b, pre.gate);
      if (r_.highway) scatter_pre(t, network, 1, b, pre.candidate);
    }
  }

  // Gate (null where there is none) and candidate of a block in the columns of a product.
  NodeBlock<P> node_block(Blocked<P> columns, int64_t b) const {
    if (!r_.highway) return {nullptr, columns.block(b)};
    return {columns.block(2 * b), columns.block(2 * b + 1)};
  }

  // The gradient of a product's result, for the network that this thread works on. Each node has its own, because
  // threads that share the network may still read the last one.
  Blocked<P> columns(const Member& member, int64_t node) {
    return {columns_.data() + (member.slot() * o_.products() + node) * grad_columns_size(), o_.block_size()};
  }
  int64_t grad_columns_size() const { return o_.columns.vectors() * o_.block_size(); }

  void scatter_pre(int64_t t, int64_t network, int column, int64_t b, const T* grad) {
    T* to = reinterpret_cast<T*>(gradients_.pre) + o_.pre_offset(t, network, column, b);
    scatter_block(grad, r_.rows, o_.hidden.count(b), o_.columns.width(), to);
  }

  // Takes the gradient back through a node's product, for a range of blocks of the state that it reads.
  void product_backward(const Member& member, int64_t network, int64_t node, Range blocks) {
    const Blocked<P> grad = columns(member, node);
    T* product = scratch(member, 0);
    for (int64_t b = blocks.first; b < blocks.last; b += 2) {
      const int64_t last = smaller(b + 2, blocks.last);
      const P* right = packed(network, node) + b * packed_block_size();
      multiply_vectors<P>(last - b, grad, o_.columns, right, r_.rows, product);
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

  // Sums the shared state's gradient of step t over the networks; with that of the output it enters step t - 1.
  void collect(const Member& member, int64_t t) {
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      zero_rows(grad_h(0).block(b), r_.rows);
      for (int64_t k = 0; k < r_.networks; ++k) {
        add_scaled_rows(grad_previous_h(k).block(b), T(1), grad_h(0).block(b), r_.rows);
      }
      if (r_.between_steps) {
        write_grad_h0(0, b);
      } else {
        leave(t, 0, b);
      }
    }
  }

  // Sums the gradient of step t, which lies where that of h0 will, over the networks of all processes.
  void meet_others(const Member& member, int64_t t) {
    if (member.rank() == 0) r_.between_steps(r_.between_steps_context, t);
    member.sync();
    const Range blocks = member.part(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      const T* from = reinterpret_cast<const T*>(gradients_.h0) + output_offset(0, 0, b);
      gather_block(from, r_.hidden, o_.hidden.count(b), r_.rows, grad_h(0).block(b));
      leave(t, 0, b);
    }
    member.sync();
  }

  void carry_back(const Member& member, int64_t t, int64_t network) {
    const Range blocks = member.blocks(o_.hidden.blocks());
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      mask_rows<T, T>(grad_previous_h(network).block(b), nullptr, grad_h(network).block(b), r_.rows);
      leave(t, network, b);
    }
  }

  void leave(int64_t t, int64_t chain, int64_t b) {
    if (t > 0) return add_grad_output(t - 1, chain, b);
    write_grad_h0(chain, b);
  }

  void write_grad_h0(int64_t chain, int64_t b) {
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
    const Blocked<const P> left = node == 0 ? h_factor(chain(network)) : factor(network, o_.ancestor(network, node));
    const Blocked<P> grad = grad_product(network, node);
    const Blocked<const P> right{grad.block(first), grad.block_stride};
    outer_vectors<P>(last - first, left, right, r_.steps * step_rows(), o_.hidden, out);
    T* to = node == 0
                ? reinterpret_cast<T*>(gradients_.weight_hidden) + network * o_.weight_size()
                : reinterpret_cast<T*>(gradients_.weight_nodes) + (network * r_.nodes + node - 1) * o_.weight_size();
    for (int64_t v = first; v < last; ++v, out += outer_product_size()) {
      scatter_block(out, r_.hidden, o_.columns.count(v / o_.columns.per), o_.columns.width(),
                    to + o_.columns.column(v));
    }
  }

  int64_t outer_product_size() const { return o_.hidden.blocks() * kWidth<T> * kWidth<T>; }

  T* grad_mix(int64_t network, int64_t b) { return grad_mix_.data() + (network * o_.hidden.blocks() + b) * kWidth<T>; }

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
  Buffer<P> packed_;
  Buffer<T> states_, grad_states_, previous_h_;
  Buffer<P> h_factors_, factors_, grad_products_, columns_;
  Buffer<T> grad_h_, grad_previous_h_, grad_mix_, outer_products_, scratch_, mask_;
};

template <typename T, typename P>
void backward(const Recurrence& r, const Evaluation& evaluation, const Gradients& gradients) {
  BackwardPass<T, P> pass(r, evaluation, gradients);
}

}  // namespace WENET_ISA
}  // namespace wenet
