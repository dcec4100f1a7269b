// Programs over all time steps.
#pragma once

#include "cpu/program_input.h"

namespace wenet {
namespace WENET_ISA {

// A matrix [H, M] in blocks, or one block that stands for all of them in turn.
template <typename T>
struct Value {
  T* data = nullptr;
  int64_t stride = 0;

  T* block(int64_t b) const { return data == nullptr ? nullptr : data + b * stride; }
};

// What both passes know of a run.
template <typename T>
class ProgramPass {
 public:
  ProgramPass(const ProgramRun& r, const ProgramEvaluation& evaluation)
      : r_(r),
        evaluation_(evaluation),
        plan_(r),
        largest_(plan_.largest()),
        hidden_{r.hidden, 1},
        blocks_(hidden_.blocks()),
        block_size_(r.rows * kWidth<T>),
        state_size_(blocks_ * block_size_),
        chains_(r.weighted ? 1 : r.networks),
        late_(largest_.slots * r.steps * state_size_ * int64_t{sizeof(T)} > kCached),
        mask_(r.mask_h ? state_size_ : 0) {
    for (int64_t b = 0; r.mask_h && b < blocks_; ++b) {
      const T* from = reinterpret_cast<const T*>(r.mask_h) + b * kWidth<T>;
      gather_block(from, r.hidden, hidden_.count(b), r.rows, mask_.data() + b * block_size_);
    }
  }

 protected:
  template <typename Work>
  void for_each_network(const Member& member, Work&& work) const {
    member.for_each_network(r_.networks, blocks_, work);
  }

  // Where a value is kept in step t: [slots, blocks, T, M, W].
  Value<T> kept(const Schedule& s, int64_t slot, int64_t t) const {
    if (evaluation_.kept == 0 || slot == kNone) return {};
    return {slot_over_time(s, slot) + t * block_size_, r_.steps * block_size_};
  }
  T* slot_over_time(const Schedule& s, int64_t slot) const {
    return reinterpret_cast<T*>(evaluation_.kept) + (s.first_slot + slot) * r_.steps * state_size_;
  }
  Value<T> matrix(const Buffer<T>& buffer, int64_t index) const {
    return {buffer.data() + index * state_size_, block_size_};
  }
  Value<T> one_block(const Buffer<T>& buffer, int64_t index) const { return {buffer.data() + index * block_size_, 0}; }
  const T* mask(int64_t b) const { return r_.mask_h ? mask_.data() + b * block_size_ : nullptr; }
  int64_t chain(int64_t network) const { return r_.weighted ? 0 : network; }
  // Which half of what threads share, where they share a network, it has in a step. Halves alternate from step to step
  // of a network, and in a mixture from network to network: a thread may still read the other half, but no more than
  // that, as all meet in every step. Between the steps of a mixture all meet anyway.
  int64_t half(int64_t steps_done, int64_t network) const {
    return (r_.weighted ? steps_done * r_.networks + network : network * r_.steps + steps_done) % 2;
  }
  T mix(int64_t network) const { return reinterpret_cast<const T*>(r_.mix)[network]; }
  const T* weight(const Schedule& s, const Group& group, int64_t product) const {
    return reinterpret_cast<const T*>(r_.weight) + s.weight[group.product + product] * r_.hidden * r_.hidden;
  }
  int64_t pre_offset(int64_t t, int64_t column, int64_t b) const {
    return t * r_.pre_step_stride + column * r_.pre_column_stride + b * kWidth<T>;
  }
  // First element of a block of a tensor shaped as the output, or of one of those that are apart.
  int64_t output_offset(int64_t which, int64_t t, int64_t chain, int64_t b) const {
    return ((which * r_.steps + t) * chains_ + chain) * r_.rows * r_.hidden + b * kWidth<T>;
  }
  // Which of the tensors apart is a state; the new h may be the output instead, which then has none.
  int64_t apart(int64_t state) const { return state - r_.puts_out_h; }
  Vector<T> vector(int64_t index, int64_t b) const {
    return load_part(reinterpret_cast<const T*>(r_.vector) + index * r_.hidden + b * kWidth<T>, hidden_.count(b));
  }

  // An instruction on a block, which is no product.
  void compute(const Step& step, int64_t b, const Value<T>* values, T* to, T* kept) const {
    const Keep<T> keep{kept, late_};
    if (step.code == kVector) {
      const Vector<T> v = vector(step.vector, b);
      return write_rows(to, keep, r_.rows, [&](int64_t) WENET_LAMBDA { return v; });
    }
    const T* operand[3] = {};
    for (int i = 0; i < 3; ++i) operand[i] = step.operand[i] == kNone ? nullptr : values[step.operand[i]].block(b);
    instruction_rows(step, operand[0], operand[1], operand[2], to, keep, r_.rows);
  }

  const ProgramRun& r_;
  const ProgramEvaluation& evaluation_;
  const Plan plan_;
  const Schedule& largest_;
  const Layout<T> hidden_;
  const int64_t blocks_, block_size_, state_size_;
  const int64_t chains_;  // sets of states: one for all networks, or each network's own
  const bool late_;       // backward comes when the caches have forgotten what forward keeps
  Buffer<T> mask_;
};

// What a product reads of a block: masked where there is a mask, and rounded. Units that a block lacks become zeros, as
// they are multiplied together with the one before them.
template <typename T, typename P>
void factor_rows(const T* from, const T* mask, int count, P* to, int64_t rows) {
  for (int64_t m = 0; m < rows * kWidth<T>; m += kWidth<T>) {
    const Vector<T> v = load_part(from + m, count);
    store<P>(to + m, Factors<P>::round(mask == nullptr ? v : v * load(mask + m)));
  }
}

// T is the type of all numbers but the factors of products, which are rounded to P.
template <typename T, typename P>
class ProgramForward : ProgramPass<T> {
  using Base = ProgramPass<T>;
  using Base::r_, Base::evaluation_, Base::plan_, Base::largest_, Base::hidden_, Base::blocks_, Base::block_size_;
  using Base::state_size_, Base::chains_, Base::late_;

 public:
  ProgramForward(const ProgramRun& r, const ProgramEvaluation& evaluation)
      : Base(r, evaluation),
        input_(r, largest_),
        late_output_(r.steps * chains_ * r.rows * r.hidden * int64_t{sizeof(T)} > kCached),
        packed_(r.weights * blocks_ * packed_vector_size()),
        states_(chains_ * 2 * r.states * state_size_),
        results_(r.weighted ? r.networks * (r.states + 1) * state_size_ : 0),
        wides_(r.threads * 2 * largest_.wides * state_size_),
        locals_(r.threads * largest_.locals * block_size_),
        factors_(has_factors() ? r.threads * 2 * largest_.groups * state_size_ : 0),
        columns_(r.threads * 2 * (largest_.columns + 1) * block_size_),
        values_(r.threads * largest_.values),
        sums_(r.threads) {
    run_team(*this, r.threads);
  }

  bool finite() { return sums_.finite(); }

  void run(const Member& member) {
    input_.gather(member);
    Base::for_each_network(member, [&](const Member& own, int64_t k) { pack_network(own, k); });
    for (int64_t chain = 0; chain < chains_; ++chain) take_first(member, chain);
    member.sync();
    if (r_.weighted) {
      for (int64_t t = 0; t < r_.steps; ++t) {
        Base::for_each_network(member, [&](const Member& own, int64_t k) { step(own, t, k); });
        member.sync();
        mix_results(member, t);
        member.sync();
      }
    } else {  // a network at a time, so that its weights stay in the cache
      Base::for_each_network(member, [&](const Member& own, int64_t k) {
        for (int64_t t = 0; t < r_.steps; ++t) step(own, t, k);
      });
    }
  }

 private:
  int64_t packed_vector_size() const { return packed_rows<P>(r_.hidden) * kWidth<T>; }
  P* packed(const Schedule& s, const Group& group) {
    return packed_.data() + (s.first_product + group.product) * blocks_ * packed_vector_size();
  }
  // Whether a value is computed where it is kept. If backward comes late, it goes there past the caches instead.
  bool in_place(const Schedule& s, int64_t value) const {
    return evaluation_.kept != 0 && !late_ && s.slot[value] != kNone;
  }
  // A set of states before step t; the one behind it lies elsewhere, as threads may still read this one.
  Value<T> state(int64_t chain, int64_t t, int64_t s) {
    const Schedule& own = plan_.schedule(chain);
    if (!r_.weighted && t < r_.steps && in_place(own, s)) return Base::kept(own, own.slot[s], t);
    return Base::matrix(states_, (chain * 2 + t % 2) * r_.states + s);
  }
  Value<T> result(int64_t network, int64_t s) { return Base::matrix(results_, network * (r_.states + 1) + s); }
  Value<T> next_state(int64_t network, int64_t t, int64_t s) {
    return r_.weighted ? result(network, s) : state(network, t + 1, s);
  }
  Value<T>* values(const Member& member) { return values_.data() + member.rank() * largest_.values; }

  // The weights of a group's products: vectors of columns of the same hidden units beside each other.
  void pack_network(const Member& member, int64_t network) {
    const Schedule& s = plan_.schedule(network);
    const Range blocks = member.blocks(blocks_);
    input_.pack_network(s, blocks);
    const int64_t size = packed_vector_size();
    for (int64_t g = 0; g < s.groups; ++g) {
      const Group& group = s.group[g];
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        for (int64_t j = 0; j < group.count; ++j) {
          P* to = packed(s, group) + (b * group.count + j) * size;
          pack(Base::weight(s, group, j), r_.hidden, hidden_, b, b + 1, false, to - b * size);
        }
      }
    }
  }

  void take_first(const Member& member, int64_t chain) {
    const Range blocks = member.part(blocks_);
    for (int64_t s = 0; s < r_.states; ++s) {
      const T* from = reinterpret_cast<const T*>(r_.first_states) + (s * chains_ + chain) * r_.rows * r_.hidden;
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        gather_block(from + b * kWidth<T>, r_.hidden, hidden_.count(b), r_.rows, state(chain, 0, s).block(b));
      }
    }
  }

  // Where the values of a network lie in a step.
  void locate(const Member& member, int64_t t, int64_t network) {
    const Schedule& s = plan_.schedule(network);
    Value<T>* value = values(member);
    for (int64_t v = 0; v < s.values; ++v) {
      const Location& place = s.location[v];
      const bool own = place.place == Place::local || place.place == Place::wide;
      if (own && in_place(s, v)) {
        value[v] = Base::kept(s, s.slot[v], t);
        continue;
      }
      switch (place.place) {
        case Place::local: value[v] = Base::one_block(locals_, member.rank() * largest_.locals + place.index); break;
        case Place::wide:
          value[v] = Base::matrix(wides_, (member.slot() * 2 + Base::half(t, network)) * largest_.wides + place.index);
          break;
        case Place::state: value[v] = state(Base::chain(network), t, place.index); break;
        case Place::next_state: value[v] = next_state(network, t, place.index); break;
      }
    }
  }

  // One network in one time step.
  void step(const Member& member, int64_t t, int64_t network) {
    const Schedule& s = plan_.schedule(network);
    const Range blocks = member.blocks(blocks_);
    const int64_t half = Base::half(t, network);
    locate(member, t, network);
    if (input_.begins(t)) input_.multiply(member, s, t, blocks);
    // What comes before the first product must not overtake a thread that is in the last one of the step before.
    if (s.stage[0].first_group == s.stage[0].last_group) member.sync_network();
    for (int64_t v = 0; v < r_.states; ++v) {
      const Value<T> kept = Base::kept(s, s.slot[v], t), value = values(member)[v];
      if (kept.data == nullptr || kept.data == value.data) continue;
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        keep_rows(value.block(b), kept.block(b), late_, r_.rows);
      }
    }
    for (int64_t i = 0; i < s.stages; ++i) {
      const Stage& stage = s.stage[i];
      if (stage.last_group > stage.first_group) begin_products(member, half, s, stage, blocks);
      for (int64_t b = blocks.first; b < blocks.last; b += stage.together) {
        const int64_t last = smaller(b + stage.together, blocks.last);
        for (int64_t g = stage.first_group; g < stage.last_group; ++g) multiply(member, half, s, g, b, last);
        for (int64_t c = b; c < last; ++c) instructions(member, t, s, stage, b, c);
      }
    }
    for (int64_t b = blocks.first; b < blocks.last; ++b) end_step(member, t, network, s, b);
  }

  // All of what products read must be there.
  void begin_products(const Member& member, int64_t half, const Schedule& s, const Stage& stage, Range blocks) {
    for (int64_t g = stage.first_group; has_factors() && g < stage.last_group; ++g) {
      const Value<T> left = values(member)[s.group[g].left];
      for (int64_t b = blocks.first; b < blocks.last; ++b) {
        P* to = factor(member, half, g).block(b);
        factor_rows(left.block(b), Base::mask(b), hidden_.count(b), to, r_.rows);
      }
    }
    member.sync_network();
  }
  // Whether products read something else than values.
  bool has_factors() const { return !std::is_same_v<P, T> || r_.mask_h; }
  Blocked<P> factor(const Member& member, int64_t half, int64_t group) {
    return {factors_.data() + ((member.slot() * 2 + half) * largest_.groups + group) * state_size_, block_size_};
  }
  Blocked<const P> left(const Member& member, int64_t half, const Schedule& s, int64_t g) {
    if constexpr (std::is_same_v<P, T>) {
      const Value<T> value = values(member)[s.group[g].left];
      if (!r_.mask_h) return {value.data, value.stride};
    }
    return factor(member, half, g);
  }

  // The products of a group for a range of blocks, [blocks of the range, products, M, W].
  void multiply(const Member& member, int64_t half, const Schedule& s, int64_t g, int64_t first, int64_t last) {
    const Group& group = s.group[g];
    const Blocked<const P> from = left(member, half, s, g);
    const int64_t vectors = (last - first) * group.count;
    const P* right = packed(s, group) + first * group.count * packed_vector_size();
    T* out = columns(member, group, 0);
    for (int64_t v = 0; v < vectors; v += 2) {
      multiply_vectors<P>(smaller(2, vectors - v), from, hidden_, right + v * packed_vector_size(), r_.rows,
                          out + v * block_size_);
    }
  }
  T* columns(const Member& member, const Group& group, int64_t vector) {
    return scratch(member) + (group.column * 2 + vector) * block_size_;
  }

  // A thread's own blocks: two for every product of a stage, and at least one.
  T* scratch(const Member& member) {
    return columns_.data() + member.rank() * 2 * (largest_.columns + 1) * block_size_;
  }

  // The instructions of a stage on a block, of a range of blocks that begins with `first`.
  void instructions(const Member& member, int64_t t, const Schedule& s, const Stage& stage, int64_t first, int64_t b) {
    const Value<T>* value = values(member);
    for (int64_t i = stage.first_step; i < stage.last_step; ++i) {
      const Step& step = s.step[i];
      T *to = value[step.value].block(b), *kept = Base::kept(s, step.kept, t).block(b);
      if (kept == to) kept = nullptr;
      if (step.code != kProduct) {
        Base::compute(step, b, value, to, kept);
        continue;
      }
      const T* product = nullptr;
      if (step.group != kNone) {
        const Group& group = s.group[step.group];
        product = columns(member, group, (b - first) * group.count + step.column);
      }
      product_rows(step.activation, product, addends(member, t, s, step, b), to, Keep<T>{kept, late_}, r_.rows);
    }
  }

  Addends<T> addends(const Member& member, int64_t t, const Schedule& s, const Step& step, int64_t b) {
    Addends<T> found;
    if (step.vector != kNone) found.bias = Base::vector(step.vector, b);
    if (step.pre == kNone) return found;
    if (input_.is_here()) {
      found.pre = input_.block(member, s, step.pre, b, t);
      found.width = found.count = kWidth<T>, found.ahead = block_size_;
    } else {
      found.pre = reinterpret_cast<const T*>(r_.pre) + Base::pre_offset(t, step.pre, b);
      found.width = r_.hidden, found.ahead = r_.pre_step_stride, found.count = hidden_.count(b);
    }
    return found;
  }

  // New states that lie elsewhere are brought to their places; all go to where the caller sees them.
  void end_step(const Member& member, int64_t t, int64_t network, const Schedule& s, int64_t b) {
    const Value<T>* value = values(member);
    for (int64_t i = 0; i < s.copies; ++i) {
      copy_rows(value[s.result[s.copy[i]]].block(b), next_state(network, t, s.copy[i]).block(b), r_.rows);
    }
    const int32_t output = s.result[r_.states];
    const Value<T> put_out = output == s.result[0] ? next_state(network, t, 0) : value[output];
    if (r_.weighted) {
      if (!r_.puts_out_h) copy_rows(put_out.block(b), result(network, r_.states).block(b), r_.rows);
      return;
    }
    scatter_output(member, t, network, b, put_out.block(b));
    for (int64_t i = r_.puts_out_h; i < r_.states; ++i)
      scatter_apart(t, network, i, b, next_state(network, t, i).block(b));
  }

  void scatter_output(const Member& member, int64_t t, int64_t chain, int64_t b, const T* from) {
    add_all_rows(from, r_.rows, sums_.of(member.rank()));
    T* to = reinterpret_cast<T*>(evaluation_.output) + Base::output_offset(0, t, chain, b);
    scatter_block(from, r_.rows, hidden_.count(b), r_.hidden, to, late_output_);
  }
  void scatter_apart(int64_t t, int64_t chain, int64_t s, int64_t b, const T* from) {
    T* to = reinterpret_cast<T*>(evaluation_.apart) + Base::output_offset(Base::apart(s), t, chain, b);
    scatter_block(from, r_.rows, hidden_.count(b), r_.hidden, to, late_output_);
  }

  // All states of the mixture, and its output, from those of the networks.
  void mix_results(const Member& member, int64_t t) {
    const Range blocks = member.part(blocks_);
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      for (int64_t s = 0; s < r_.states; ++s) {
        T* to = state(0, t + 1, s).block(b);
        mix_result(s, b, to);
        if (s > 0 || !r_.puts_out_h) {
          scatter_apart(t, 0, s, b, to);
        } else {
          scatter_output(member, t, 0, b, to);
        }
      }
      if (r_.puts_out_h) continue;
      T* to = scratch(member);
      mix_result(r_.states, b, to);
      scatter_output(member, t, 0, b, to);
    }
  }
  void mix_result(int64_t s, int64_t b, T* to) {
    zero_rows(to, r_.rows);
    for (int64_t k = 0; k < r_.networks; ++k) add_scaled_rows(result(k, s).block(b), Base::mix(k), to, r_.rows);
  }

  InputForward<T> input_;
  const bool late_output_;  // it is read when the caches have forgotten it
  Buffer<P> packed_;
  Buffer<T> states_, results_, wides_, locals_;
  Buffer<P> factors_;
  Buffer<T> columns_;
  Buffer<Value<T>> values_;
  Sums<T> sums_;  // of the output
};

template <typename T, typename P>
bool program_forward(const ProgramRun& r, const ProgramEvaluation& evaluation) {
  return ProgramForward<T, P>(r, evaluation).finite();
}

}  // namespace WENET_ISA
}  // namespace wenet
