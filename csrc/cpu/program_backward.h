// Derivatives of programs: the instructions in reverse, step by step from the last. The weight gradients are products
// over the rows of all steps; small ones take in a few steps at a time, while their factors are in the caches.
#pragma once

#include "cpu/program_forward.h"

namespace wenet {
namespace WENET_ISA {

// T is the type of all numbers but the factors of products, which are rounded to P.
template <typename T, typename P>
class ProgramBackward : ProgramPass<T> {
  using Base = ProgramPass<T>;
  using Base::r_, Base::evaluation_, Base::plan_, Base::largest_, Base::hidden_, Base::blocks_, Base::block_size_;
  using Base::state_size_, Base::chains_;

 public:
  ProgramBackward(const ProgramRun& r, const ProgramEvaluation& evaluation, const ProgramGradients& gradients)
      : Base(r, evaluation),
        input_(r, largest_, gradients),
        gradients_(gradients),
        packed_(r.weights * packed_size()),
        grad_states_(grad_chains() * 2 * r.states * state_size_),
        grad_mixture_(r.weighted ? r.states * state_size_ : 0),
        wides_(r.threads * largest_.wides * state_size_),
        locals_(r.threads * largest_.locals * block_size_),
        rebuilt_(r.threads * largest_.rebuilt_count * state_size_),
        rebuilt_locals_(r.threads * largest_.rebuilt_count * block_size_),
        together_(steps_together()),
        grad_products_(products_at_once() * together_ * step_size()),
        columns_(kRounds ? products_at_once() * 2 * state_size_ : 0),
        grad_weights_(products_at_once() * blocks_ * outer_product_size()),
        products_(r.threads * 2 * block_size_),
        factors_(kRounds || r.mask_h ? r.threads * together_ * step_size() : 0),
        vectors_(r.vectors * blocks_ * kWidth<T>),
        grad_mix_(r.weighted ? r.networks * blocks_ * kWidth<T> : 0),
        values_(r.threads * largest_.values),
        grads_(r.threads * largest_.values) {
    run_team(*this, r.threads);
  }

  void run(const Member& member) {
    input_.gather(member);
    Base::for_each_network(member, [&](const Member& own, int64_t k) { begin_network(own, k); });
    begin_all(member);
    member.sync();
    if (r_.weighted) {
      for (int64_t t = r_.steps; t-- > 0;) {
        Base::for_each_network(member, [&](const Member& own, int64_t k) { step(own, t, k); });
        member.sync();
        collect(member, t);
        member.sync();
      }
    } else {
      Base::for_each_network(member, [&](const Member& own, int64_t k) {
        own.sync_network();  // none may still read what the network before has left
        for (int64_t t = r_.steps; t-- > 0;) step(own, t, k);
        finish_states(own, k);
      });
      member.sync();
    }
    finish_vectors(member);
    if (r_.weighted && member.rank() == 0) finish_grad_mix();
  }

 private:
  static constexpr bool kRounds = !std::is_same_v<P, T>;

  int64_t grad_chains() const { return r_.networks; }
  // All steps if the weight gradients do not fit in a cache. Else as many as make the rows of an outer product, but two
  // at least, as a thread may still read those of the step before.
  int64_t steps_together() const {
    const int64_t products = r_.weighted ? r_.weights : largest_.products;
    if (products * r_.hidden * r_.hidden * int64_t{sizeof(T)} > kSecondCache / 2) return r_.steps;
    constexpr int64_t kDepth = kOuterDepth * kTogether<P>;
    return step_rows() * 2 < kDepth ? kDepth / step_rows() : 2;
  }
  // Rows of one of these steps.
  int64_t step_rows() const { return packed_rows<P>(r_.rows); }
  int64_t step_size() const { return blocks_ * step_rows() * kWidth<T>; }
  // Products whose derivatives are gathered at the same time: networks apart follow each other.
  int64_t products_at_once() const { return r_.weighted ? r_.weights : r_.threads * largest_.products; }
  int64_t first_product(const Member& member, const Schedule& s, const Group& group) const {
    return (r_.weighted ? s.first_product : member.slot() * largest_.products) + group.product;
  }
  int64_t packed_size() const { return blocks_ * packed_rows<P>(r_.hidden) * kWidth<T>; }  // of a product
  P* packed(const Schedule& s, const Group& group) {
    return packed_.data() + (s.first_product + group.product) * packed_size();
  }
  int64_t outer_product_size() const { return blocks_ * kWidth<T> * kWidth<T>; }
  Value<T>* values(const Member& member) { return values_.data() + member.rank() * largest_.values; }
  Value<T>* grads(const Member& member) { return grads_.data() + member.rank() * largest_.values; }

  // Of a network's states before step t. That behind step t lies in the other half.
  Value<T> grad_state(int64_t network, int64_t t, int64_t s) {
    return Base::matrix(grad_states_, (network * 2 + t % 2) * r_.states + s);
  }
  Value<T> grad_mixture(int64_t s) { return Base::matrix(grad_mixture_, s); }
  // Of the products of a group over the steps of an outer product, [blocks, products, steps, rows of a step, W].
  Blocked<P> grad_products(const Member& member, const Schedule& s, const Group& group) {
    return {grad_products_.data() + first_product(member, s, group) * together_ * step_size(),
            together_ * step_rows() * kWidth<T>};
  }
  Blocked<P> grad_products(const Member& member, const Schedule& s, const Group& group, int64_t t) {
    return grad_products(member, s, group).from_row(t % together_ * step_rows());
  }
  // The same of one step, as the products back read it, [blocks, products, M, W]; a thread may still read the last one.
  Blocked<P> columns(const Member& member, const Schedule& s, const Group& group, int64_t t) {
    if (!kRounds) return grad_products(member, s, group, t);
    const Blocked<P> both{columns_.data() + first_product(member, s, group) * 2 * state_size_, 2 * block_size_};
    return both.from_row(t % 2 * r_.rows);
  }
  // Of the weights of a group, [blocks, products, H, W].
  Blocked<T> grad_weights(const Member& member, const Schedule& s, const Group& group) {
    return {grad_weights_.data() + first_product(member, s, group) * blocks_ * outer_product_size(),
            outer_product_size()};
  }
  T* vector_sum(int64_t vector, int64_t b) { return vectors_.data() + (vector * blocks_ + b) * kWidth<T>; }
  T* mix_sum(int64_t network, int64_t b) { return grad_mix_.data() + (network * blocks_ + b) * kWidth<T>; }

  // Weights transposed, and nothing yet behind the last step.
  void begin_network(const Member& member, int64_t network) {
    const Schedule& s = plan_.schedule(network);
    const Range blocks = member.blocks(blocks_);
    input_.pack_network(member, s);
    for (int64_t g = 0; g < s.groups; ++g) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) pack_group(s, s.group[g], b);
    }
    for (int64_t i = 0; i < r_.states; ++i) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        zero_rows(grad_state(network, r_.steps, i).block(b), r_.rows);
      }
    }
  }

  void pack_group(const Schedule& s, const Group& group, int64_t b) {
    constexpr int W = kWidth<T>;
    P* to = packed(s, group) + b * packed_rows<P>(r_.hidden) * group.count * W;
    for (int64_t c = 0; c < blocks_; ++c) {
      for (int64_t j = 0; j < group.count; ++j) {
        const T* from = Base::weight(s, group, j) + b * W * r_.hidden + c * W;
        pack_square<T, P>(from, r_.hidden, hidden_.count(b), hidden_.count(c), false, to);
        to += packed_rows<P>(hidden_.count(c)) * W;
      }
    }
  }

  void begin_all(const Member& member) {
    const Range blocks = member.part(blocks_);
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      for (int64_t v = 0; v < r_.vectors; ++v) store<T>(vector_sum(v, b), Vector<T>{});
      if (!r_.weighted) continue;
      for (int64_t k = 0; k < r_.networks; ++k) store<T>(mix_sum(k, b), Vector<T>{});
      for (int64_t i = 0; i < r_.states; ++i) {
        zero_rows(grad_mixture(i).block(b), r_.rows);
        add_given(r_.steps - 1, 0, i, b, grad_mixture(i).block(b));
      }
    }
  }

  // What the caller has given of a state behind step t.
  void add_given(int64_t t, int64_t chain, int64_t s, int64_t b, T* to) {
    const bool is_output = s == 0 && r_.puts_out_h;
    const Address from = is_output ? gradients_.output : gradients_.apart;
    if (from == 0) return;
    const int64_t offset = Base::output_offset(is_output ? 0 : Base::apart(s), t, chain, b);
    add_gathered(reinterpret_cast<const T*>(from) + offset, r_.hidden, hidden_.count(b), T(1), false, to, r_.rows);
  }

  // Where the values of a network, and their derivatives, lie in a step.
  void locate(const Member& member, int64_t t, int64_t network, const Schedule& s) {
    Value<T>*value = values(member), *grad = grads(member);
    for (int64_t v = 0; v < s.values; ++v) {
      const Location& place = s.location[v];
      value[v] = Base::kept(s, s.slot[v], t);
      switch (place.place) {
        case Place::local: grad[v] = Base::one_block(locals_, member.rank() * largest_.locals + place.index); break;
        case Place::wide: grad[v] = Base::matrix(wides_, member.slot() * largest_.wides + place.index); break;
        case Place::state: grad[v] = grad_state(network, t, place.index); break;
        case Place::next_state: grad[v] = grad_state(network, t + 1, place.index); break;
      }
    }
    for (int64_t i = 0; i < s.rebuilt_count; ++i) {
      Value<T>& found = value[s.rebuilt[i].value];
      if (s.stages == 1) {
        found = Base::one_block(rebuilt_locals_, member.rank() * largest_.rebuilt_count + i);
      } else {
        found = Base::matrix(rebuilt_, member.slot() * largest_.rebuilt_count + i);
      }
    }
  }

  // One network in one time step, in reverse.
  void step(const Member& member, int64_t t, int64_t network) {
    const Schedule& s = plan_.schedule(network);
    const Range blocks = member.blocks(blocks_);
    locate(member, t, network, s);
    if (s.groups == 0) member.sync_network();
    if (s.stages > 1) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) begin_step(member, t, network, s, b);
    }
    for (int64_t i = s.stages; i-- > 0;) {
      const Stage& stage = s.stage[i];
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        if (s.stages == 1) begin_step(member, t, network, s, b);
        for (int64_t j = stage.last_step; j-- > stage.first_step;) instruction(member, t, network, s.step[j], b);
      }
      if (stage.last_group == stage.first_group) continue;
      member.sync_network();
      for (int64_t g = stage.first_group; g < stage.last_group; ++g)
        product_backward(member, t, network, s.group[g], blocks);
    }
    if (t % together_ == 0) add_weight_gradients(member, t, s, blocks);
    if (input_.begins(t)) input_.finish_steps(member, s, t, blocks);
  }

  // What is needed of the values is computed again, and the derivatives of the results come in.
  void begin_step(const Member& member, int64_t t, int64_t network, const Schedule& s, int64_t b) {
    const Value<T>*value = values(member), *grad = grads(member);
    fetch_before(t, s, b);
    for (int64_t i = 0; i < s.rebuilt_count; ++i) {
      const Step& step = s.rebuilt[i];
      Base::compute(step, b, value, value[step.value].block(b), nullptr);
    }
    for (int64_t i = 0; i < r_.states; ++i) {
      T* to = grad_state(network, t + 1, i).block(b);
      if (!r_.weighted) {
        add_given(t, network, i, b, to);
        continue;
      }
      const T* mixture = grad_mixture(i).block(b);
      add_product_sum(mixture, value[s.result[i]].block(b), mix_sum(network, b));
      zero_rows(to, r_.rows);
      add_scaled_rows(mixture, Base::mix(network), to, r_.rows);
    }
    for (int64_t i = 0; i < s.copies; ++i) {
      const Derivative<T> to{grad[s.result[s.copy[i]]].block(b), s.copy_first[i]};
      const T* from = grad_state(network, t + 1, s.copy[i]).block(b);
      for (int64_t m = 0; m < block_size_; m += kWidth<T>) to(m, load(from + m));
    }
    if (!r_.puts_out_h) add_output(member, t, network, s, b);
  }

  // Asks for what is kept of the step before: memory answers too late if it is only asked when that is wanted.
  void fetch_before(int64_t t, const Schedule& s, int64_t b) {
    if (t == 0) return;
    for (int64_t slot = 0; slot < s.slots; ++slot) {
      const T* from = Base::kept(s, slot, t - 1).block(b);
      for (int64_t m = 0; m < block_size_; m += 64 / sizeof(T)) __builtin_prefetch(from + m, 0, 2);
    }
  }

  // The derivative of an output that is apart from the states.
  void add_output(const Member& member, int64_t t, int64_t network, const Schedule& s, int64_t b) {
    const int32_t output = s.result[r_.states];
    const bool is_h = output == s.result[0];
    const T* from = reinterpret_cast<const T*>(gradients_.output) + Base::output_offset(0, t, Base::chain(network), b);
    const T factor = r_.weighted ? Base::mix(network) : T(1);
    if (r_.weighted) {
      T* given = products_.data() + member.rank() * 2 * block_size_;
      gather_block(from, r_.hidden, hidden_.count(b), r_.rows, given);
      add_product_sum(given, values(member)[output].block(b), mix_sum(network, b));
    }
    // Into a new h that was copied from elsewhere it would come too late.
    T* to = grads(member)[output].block(b);
    add_gathered(from, r_.hidden, hidden_.count(b), factor, !is_h && s.output_first, to, r_.rows);
  }

  void add_product_sum(const T* a, const T* b, T* to) {
    Vector<T> total = load(to);
    for (int64_t m = 0; m < block_size_; m += kWidth<T>) total += load(a + m) * load(b + m);
    store<T>(to, total);
  }

  // From the derivative of an instruction's value to those of its operands, for one block.
  void instruction(const Member& member, int64_t t, int64_t network, const Step& step, int64_t b) {
    const Value<T>*value = values(member), *grad = grads(member);
    const T* from = grad[step.value].block(b);
    if (step.code == kProduct) return product(member, t, network, step, b, from, value[step.value].block(b));
    if (step.code == kVector) return add_sum(from, vector_sum(step.vector, b));
    const T* operand[3] = {};
    Derivative<T> to[3];
    for (int i = 0; i < 3; ++i) {
      if (step.operand[i] == kNone) continue;
      operand[i] = value[step.operand[i]].block(b);
      to[i] = {grad[step.operand[i]].block(b), step.first[i]};
    }
    instruction_backward(step, from, value[step.value].block(b), operand, to, r_.rows);
  }

  void add_sum(const T* from, T* to) {
    Vector<T> total = load(to);
    for (int64_t m = 0; m < block_size_; m += kWidth<T>) total += load(from + m);
    store<T>(to, total);
  }

  // The derivative of a product's result, with respect to which those of all that it is made of are had.
  void product(const Member& member, int64_t t, int64_t network, const Step& step, int64_t b, const T* from,
               const T* value) {
    const Schedule& s = plan_.schedule(network);
    P *joined = nullptr, *column = nullptr;
    if (step.group != kNone) {
      const Group& group = s.group[step.group];
      joined = grad_products(member, s, group, t).block(b * group.count + step.column);
      if (kRounds) column = columns(member, s, group, t).block(b * group.count + step.column);
    }
    T *pre = nullptr, *of_input = nullptr;
    if (step.pre != kNone && input_.is_here()) {
      of_input = input_.block(member, s, step.pre, b, t);
    } else if (step.pre != kNone) {
      pre = reinterpret_cast<T*>(gradients_.pre) + Base::pre_offset(t, step.pre, b);
    }
    T* sum = step.vector == kNone ? nullptr : vector_sum(step.vector, b);
    const int count = hidden_.count(b);
    with_code(step.activation, [&](auto code) {
      constexpr int32_t kCode = decltype(code)::value;
      Vector<T> total{};
      join_rows<1, P>({joined}, false, r_.rows, [&](int64_t at, Vector<T>* values) WENET_LAMBDA {
        Vector<T> g = load(from + at);
        if constexpr (kCode != kNone) g *= slope_of<kCode>(load(value + at));
        total += g;
        values[0] = g;
        if (kRounds && column) store<P>(column + at, Factors<P>::round(part<T>(g, count)));
        if (of_input) store<T>(of_input + at, g);
        if (pre) {
          T* to = pre + at / kWidth<T> * r_.hidden;
          __builtin_prefetch(to - r_.pre_step_stride, 1, 2);
          store_part(to, g, count);
        }
      });
      if (sum) store<T>(sum, load(sum) + total);
    });
  }

  // Through the products of a group, for a range of blocks of the value that they read.
  void product_backward(const Member& member, int64_t t, int64_t network, const Group& group, Range blocks) {
    const Schedule& s = plan_.schedule(network);
    const Blocked<const P> grad = columns(member, s, group, t);
    const Layout<T> depth{r_.hidden, group.count};
    const Value<T> to = grads(member)[group.left];
    T* product = products_.data() + member.rank() * 2 * block_size_;
    for (int64_t b = blocks.first; b < blocks.last; b += 2) {
      const int64_t last = smaller(b + 2, blocks.last);
      const P* right = packed(s, group) + b * packed_rows<P>(r_.hidden) * group.count * kWidth<T>;
      if (!r_.mask_h) {
        multiply_vectors<P>(last - b, grad, depth, right, r_.rows, Products<T>{to.block(b), to.stride, !group.first});
        continue;
      }
      multiply_vectors<P>(last - b, grad, depth, right, r_.rows, product);
      for (int64_t i = b; i < last; ++i) {
        const Derivative<T> add{to.block(i), group.first};
        const T *from = product + (i - b) * block_size_, *mask = Base::mask(i);
        for (int64_t m = 0; m < block_size_; m += kWidth<T>) add(m, load(from + m) * load(mask + m));
      }
    }
  }

  // The mixture's derivatives before step t from those of the networks, and what the caller gave of the step before.
  void collect(const Member& member, int64_t t) {
    const Range blocks = member.part(blocks_);
    for (int64_t i = 0; i < r_.states; ++i) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        T* to = grad_mixture(i).block(b);
        zero_rows(to, r_.rows);
        for (int64_t k = 0; k < r_.networks; ++k) add_scaled_rows(grad_state(k, t, i).block(b), T(1), to, r_.rows);
        if (t > 0) {
          add_given(t - 1, 0, i, b, to);
        } else {
          write_first(0, i, b, to);
        }
      }
    }
  }

  void finish_states(const Member& member, int64_t network) {
    const Range blocks = member.blocks(blocks_);
    for (int64_t i = 0; i < r_.states; ++i) {
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        write_first(network, i, b, grad_state(network, 0, i).block(b));
      }
    }
  }

  void write_first(int64_t chain, int64_t s, int64_t b, const T* from) {
    T* to = reinterpret_cast<T*>(gradients_.states) + (s * chains_ + chain) * r_.rows * r_.hidden + b * kWidth<T>;
    scatter_block(from, r_.rows, hidden_.count(b), r_.hidden, to);
  }

  // The steps from t on, for a range of blocks of columns.
  void add_weight_gradients(const Member& member, int64_t t, const Schedule& s, Range blocks) {
    const int64_t steps = smaller(together_, r_.steps - t);
    for (int64_t g = 0; g < s.groups; ++g) {
      const Group& group = s.group[g];
      const Blocked<const P> left = factor(member, s, group, t, steps), right = grad_products(member, s, group);
      const Blocked<T> to = grad_weights(member, s, group);
      const int64_t last = blocks.last * group.count;
      for (int64_t v = blocks.first * group.count; v < last; v += 2) {
        const int64_t count = smaller(2, last - v);
        const auto multiply = t + steps == r_.steps ? outer_vectors<P> : add_outer_vectors<P>;
        multiply(count, left, {right.block(v), right.block_stride}, steps * step_rows(), hidden_, to.block(v));
        if (t == 0) finish_weights(s, group, v, v + count, to);
      }
    }
  }

  // What the products of a group read in some steps.
  Blocked<const P> factor(const Member& member, const Schedule& s, const Group& group, int64_t t, int64_t steps) {
    const Blocked<const T> kept{Base::slot_over_time(s, group.kept), r_.steps * block_size_};
    if constexpr (!kRounds) {
      if (!r_.mask_h) return kept.from_row(t * r_.rows);
    }
    const Blocked<P> to{factors_.data() + member.rank() * together_ * step_size(), together_ * step_rows() * kWidth<T>};
    for (int64_t b = 0; b < blocks_; ++b) {
      const T* mask = Base::mask(b);
      for (int64_t i = 0; i < steps; ++i) {
        const T* from = kept.from_row((t + i) * r_.rows).block(b);
        P* joined = to.from_row(i * step_rows()).block(b);
        join_rows<1, P>({joined}, false, r_.rows, [&](int64_t m, Vector<T>* values) WENET_LAMBDA {
          values[0] = mask == nullptr ? load(from + m) : load(from + m) * load(mask + m);
        });
      }
    }
    return to;
  }

  void finish_weights(const Schedule& s, const Group& group, int64_t first, int64_t last, Blocked<T> from) {
    for (int64_t v = first; v < last; ++v) {
      const int64_t weight = s.weight[group.product + v % group.count];
      T* to = reinterpret_cast<T*>(gradients_.weight) + weight * r_.hidden * r_.hidden + v / group.count * kWidth<T>;
      scatter_block(from.block(v), r_.hidden, hidden_.count(v / group.count), r_.hidden, to);
    }
  }

  void finish_vectors(const Member& member) {
    const Range mine = member.part(r_.vectors);
    for (int64_t v = mine.first; v < mine.last; ++v) {
      T* to = reinterpret_cast<T*>(gradients_.vector) + v * r_.hidden;
      for (int64_t b = 0; b < blocks_; ++b) store_part(to + b * kWidth<T>, load(vector_sum(v, b)), hidden_.count(b));
    }
  }

  void finish_grad_mix() {
    for (int64_t k = 0; k < r_.networks; ++k) {
      T total = 0;
      for (int64_t b = 0; b < blocks_; ++b) total += sum<T>(load(mix_sum(k, b)));
      reinterpret_cast<T*>(gradients_.mix)[k] = total;
    }
  }

  InputBackward<T> input_;
  const ProgramGradients& gradients_;
  Buffer<P> packed_;
  Buffer<T> grad_states_, grad_mixture_, wides_, locals_, rebuilt_, rebuilt_locals_;
  const int64_t together_;  // steps whose rows make an outer product
  Buffer<P> grad_products_, columns_;
  Buffer<T> grad_weights_, products_;
  Buffer<P> factors_;
  Buffer<T> vectors_, grad_mix_;
  Buffer<Value<T>> values_, grads_;
};

template <typename T, typename P>
void program_backward(const ProgramRun& r, const ProgramEvaluation& evaluation, const ProgramGradients& gradients) {
  ProgramBackward<T, P> pass(r, evaluation, gradients);
}

}  // namespace WENET_ISA
}  // namespace wenet
