// The input of programs and the products that read it, a few steps at a time, so that results and derivatives stay in
// the caches.
#pragma once

#include "cpu/plan.h"
#include "cpu/program_rows.h"
#include "cpu/team.h"

namespace wenet {
namespace WENET_ISA {

// What both passes know: the input in blocks, and for each network in work the products [rows of some steps, H], or
// their derivatives, in blocks: those of the same hidden units lie beside each other. Threads that share a network
// divide its blocks, and read only their own.
template <typename T>
class InputPass {
 public:
  InputPass(const ProgramRun& r, const Schedule& largest)
      : r_(r),
        inputs_{r.inputs, 1},
        hidden_{r.hidden, 1},
        together_(r.rows < kOuterDepth ? kOuterDepth / r.rows : 1),
        vectors_(r.input ? largest.inputs * hidden_.blocks() : 0),
        input_(r.input ? inputs_.blocks() * r.steps * block_size() : 0),
        products_(r.threads * vectors_ * together_ * block_size()) {}

  bool is_here() const { return r_.input != 0; }
  // Whether step t is the first of those that are taken together.
  bool begins(int64_t t) const { return is_here() && t % together_ == 0; }

  void gather(const Member& member) {
    const Range blocks = member.part(is_here() ? inputs_.blocks() : 0);
    const T* from = reinterpret_cast<const T*>(r_.input);
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      gather_block(from + b * kWidth<T>, r_.inputs, inputs_.count(b), r_.steps * r_.rows, input(0).block(b));
    }
  }

  // A block of a product in step t, [M, W].
  T* block(const Member& member, const Schedule& s, int64_t column, int64_t b, int64_t t) const {
    return products(member).from_row(t % together_ * r_.rows).block(b * s.inputs + column - s.first_input);
  }

 protected:
  int64_t block_size() const { return r_.rows * kWidth<T>; }
  // From step t on.
  Blocked<T> input(int64_t t) const { return Blocked<T>{input_.data(), r_.steps * block_size()}.from_row(t * r_.rows); }
  Blocked<T> products(const Member& member) const {
    const int64_t stride = together_ * block_size();
    return {products_.data() + member.slot() * vectors_ * stride, stride};
  }
  const T* weight(const Schedule& s, int64_t product) const {
    return reinterpret_cast<const T*>(r_.weight_input) + (s.first_input + product) * r_.inputs * r_.hidden;
  }
  // Of the steps from t on that are taken together.
  int64_t rows_from(int64_t t) const { return smaller(together_, r_.steps - t) * r_.rows; }

  const ProgramRun& r_;
  const Layout<T> inputs_, hidden_;
  const int64_t together_;  // steps
  const int64_t vectors_;   // blocks of the products of a network, at most
  Buffer<T> input_, products_;
};

template <typename T>
class InputForward : public InputPass<T> {
  using Base = InputPass<T>;
  using Base::r_, Base::inputs_, Base::hidden_;

 public:
  InputForward(const ProgramRun& r, const Schedule& largest)
      : Base(r, largest), packed_(r.input ? r.of_input * hidden_.blocks() * vector_size() : 0) {}

  void pack_network(const Schedule& s, Range blocks) {
    for (int64_t b = blocks.first; Base::is_here() && b < blocks.last; ++b) {
      for (int64_t product = 0; product < s.inputs; ++product) {
        T* to = packed(s) + (b * s.inputs + product) * vector_size();
        pack(Base::weight(s, product), r_.inputs, hidden_, b, b + 1, false, to - b * vector_size());
      }
    }
  }

  // The products of a network in the steps from t on that are taken together.
  void multiply(const Member& member, const Schedule& s, int64_t t, Range blocks) {
    if (t == 0) member.sync_network();  // a thread may still read what lies here of the network before
    const Blocked<T> to = Base::products(member);
    const int64_t last = blocks.last * s.inputs;
    for (int64_t v = blocks.first * s.inputs; v < last; v += 2) {
      const T* right = packed(s) + v * vector_size();
      const Products<T> out{to.block(v), to.block_stride, false};
      multiply_vectors<T>(smaller(2, last - v), Base::input(t), inputs_, right, Base::rows_from(t), out);
    }
  }

 private:
  int64_t vector_size() const { return r_.inputs * kWidth<T>; }
  T* packed(const Schedule& s) { return packed_.data() + s.first_input * hidden_.blocks() * vector_size(); }

  Buffer<T> packed_;
};

// Takes the derivatives of the products, and makes those of their weights of them; of a single network also those of
// the input.
template <typename T>
class InputBackward : public InputPass<T> {
  using Base = InputPass<T>;
  using Base::r_, Base::inputs_, Base::hidden_, Base::together_;

 public:
  InputBackward(const ProgramRun& r, const Schedule& largest, const ProgramGradients& gradients)
      : Base(r, largest),
        grad_input_(reinterpret_cast<T*>(gradients.input)),
        grad_weight_(reinterpret_cast<T*>(gradients.weight_input)),
        sums_(r.threads * Base::vectors_ * outer_product_size()),
        packed_(grad_input_ ? r.of_input * inputs_.blocks() * kWidth<T> * r.hidden : 0),
        rows_(grad_input_ ? r.threads * 2 * together_ * Base::block_size() : 0) {}

  void pack_network(const Member& member, const Schedule& s) {
    if (grad_input_ == nullptr) return;
    constexpr int W = kWidth<T>;
    const Range blocks = member.blocks(inputs_.blocks());
    T* to = packed(s, blocks.first);
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      for (int64_t c = 0; c < hidden_.blocks(); ++c) {
        for (int64_t product = 0; product < s.inputs; ++product) {
          const T* from = Base::weight(s, product) + b * W * r_.hidden + c * W;
          pack_square<T, T>(from, r_.hidden, inputs_.count(b), hidden_.count(c), false, to);
          to += hidden_.count(c) * W;
        }
      }
    }
  }

  // Of the steps from t on that are taken together, all of which are done. Steps come in reverse.
  void finish_steps(const Member& member, const Schedule& s, int64_t t, Range blocks) {
    add_weight_gradients(member, s, t, blocks);
    if (grad_input_ == nullptr) return;
    member.sync_network();
    multiply_back(member, s, t);
    member.sync_network();
  }

 private:
  int64_t outer_product_size() const { return inputs_.blocks() * kWidth<T> * kWidth<T>; }
  T* sum(const Member& member, int64_t vector) {
    return sums_.data() + (member.slot() * Base::vectors_ + vector) * outer_product_size();
  }
  T* packed(const Schedule& s, int64_t b) { return packed_.data() + b * kWidth<T> * s.inputs * r_.hidden; }

  void add_weight_gradients(const Member& member, const Schedule& s, int64_t t, Range blocks) {
    const Blocked<T> right = Base::products(member);
    const auto multiply = t + together_ >= r_.steps ? outer_vectors<T> : add_outer_vectors<T>;
    const int64_t last = blocks.last * s.inputs;
    for (int64_t v = blocks.first * s.inputs; v < last; v += 2) {
      const int64_t count = smaller(2, last - v);
      multiply(count, Base::input(t), {right.block(v), right.block_stride}, Base::rows_from(t), inputs_,
               sum(member, v));
      for (int64_t i = v; t == 0 && i < v + count; ++i) finish(s, i, sum(member, i));
    }
  }

  void finish(const Schedule& s, int64_t vector, const T* from) {
    const int64_t product = vector % s.inputs, b = vector / s.inputs;
    T* to = grad_weight_ + (s.first_input + product) * r_.inputs * r_.hidden + b * kWidth<T>;
    scatter_block(from, r_.inputs, hidden_.count(b), r_.hidden, to);
  }

  void multiply_back(const Member& member, const Schedule& s, int64_t t) {
    const Range blocks = member.blocks(inputs_.blocks());
    const Layout<T> depth{r_.hidden, s.inputs};
    const int64_t rows = Base::rows_from(t);
    T* product = rows_.data() + member.rank() * 2 * together_ * Base::block_size();
    for (int64_t b = blocks.first; b < blocks.last; b += 2) {
      const int64_t last = smaller(b + 2, blocks.last);
      multiply_vectors<T>(last - b, Base::products(member), depth, packed(s, b), rows, product);
      for (int64_t i = b; i < last; ++i) {
        T* to = grad_input_ + t * r_.rows * r_.inputs + i * kWidth<T>;
        scatter_block(product + (i - b) * rows * kWidth<T>, rows, inputs_.count(i), r_.inputs, to);
      }
    }
  }

  T *const grad_input_, *const grad_weight_;
  Buffer<T> sums_, packed_, rows_;
};

}  // namespace WENET_ISA
}  // namespace wenet
