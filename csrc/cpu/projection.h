// The projected input of all networks, forward and backward: one input [R, I] times the weights [I, G] of each.
#pragma once

#include "cpu/cell.h"
#include "cpu/team.h"

namespace wenet {
namespace WENET_ISA {

template <typename T>
class ProjectionPass {
 public:
  explicit ProjectionPass(const Projection& p)
      : p_(p), inputs_{p.inputs, 1}, columns_{p.columns, 1}, input_(inputs_.blocks() * block_size()) {}

 protected:
  int64_t block_size() const { return p_.rows * kWidth<T>; }
  Blocked<T> input() const { return {input_.data(), block_size()}; }
  const T* weight(int64_t network) const {
    return reinterpret_cast<const T*>(p_.weight) + network * p_.inputs * p_.columns;
  }
  T* output(int64_t network, int64_t row, int64_t vector) const {
    return reinterpret_cast<T*>(p_.output) + (network * p_.rows + row) * p_.columns + vector * kWidth<T>;
  }

  void gather_input(const Member& member) {
    const Range blocks = member.part(inputs_.blocks());
    const T* from = reinterpret_cast<const T*>(p_.input);
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
      gather_block(from + b * kWidth<T>, p_.inputs, inputs_.count(b), p_.rows, input().block(b));
    }
    member.sync();
  }

  // Calls work(network, first, last) for this thread's share of all pairs of vectors of columns.
  template <typename Work>
  void for_pairs(const Member& member, const Work& work) {
    const int64_t pairs = ceil_div(columns_.blocks(), 2);
    const Range items = member.part(p_.networks * pairs);
    for (int64_t item = items.first; item < items.last; ++item) {
      const int64_t first = item % pairs * 2;
      work(item / pairs, first, smaller(first + 2, columns_.blocks()));
    }
  }

  const Projection& p_;
  const Layout<T> inputs_, columns_;
  Buffer<T> input_;
};

template <typename T>
class ProjectionForward : ProjectionPass<T> {
  using Base = ProjectionPass<T>;
  using Base::p_, Base::inputs_, Base::columns_;

 public:
  explicit ProjectionForward(const Projection& p)
      : Base(p), packed_(p.threads * packed_size()), products_(p.threads * 2 * Base::block_size()) {
    run_team(*this, p.threads, p.networks);
  }

  void run(const Member& member) {
    T* packed = packed_.data() + member.rank() * packed_size();
    T* product = products_.data() + member.rank() * 2 * Base::block_size();
    Base::gather_input(member);
    Base::for_pairs(member, [&](int64_t network, int64_t first, int64_t last) {
      pack(Base::weight(network), p_.inputs, columns_, first, last, false, packed);
      multiply_vectors<T>(last - first, Base::input(), inputs_, packed + first * p_.inputs * kWidth<T>, p_.rows,
                          product);
      for (int64_t v = first; v < last; ++v) {
        scatter_block(product + (v - first) * Base::block_size(), p_.rows, columns_.count(v), p_.columns,
                      Base::output(network, 0, v));
      }
    });
  }

 private:
  int64_t packed_size() const { return columns_.blocks() * p_.inputs * kWidth<T>; }

  Buffer<T> packed_, products_;
};

template <typename T>
class ProjectionBackward : ProjectionPass<T> {
  using Base = ProjectionPass<T>;
  using Base::p_, Base::inputs_, Base::columns_;

 public:
  explicit ProjectionBackward(const Projection& p)
      : Base(p),
        packed_(p.threads * inputs_.blocks() * p.columns * kWidth<T>),
        grads_(p.threads * grad_size()),
        outer_products_(p.threads * 2 * outer_product_size()),
        products_(p.threads * 2 * Base::block_size()),
        grad_input_(inputs_.blocks() * Base::block_size()) {
    run_team(*this, p.threads, p.networks);
  }

  void run(const Member& member) {
    Base::gather_input(member);
    weight_gradients(member);
    input_gradient(member);
  }

 private:
  int64_t grad_size() const { return columns_.blocks() * Base::block_size(); }
  int64_t outer_product_size() const { return inputs_.blocks() * kWidth<T> * kWidth<T>; }
  T* grad(const Member& member) { return grads_.data() + member.rank() * grad_size(); }

  void weight_gradients(const Member& member) {
    T* out = outer_products_.data() + member.rank() * 2 * outer_product_size();
    Base::for_pairs(member, [&](int64_t network, int64_t first, int64_t last) {
      const Blocked<T> right{grad(member), Base::block_size()};
      for (int64_t v = first; v < last; ++v) {
        gather_block(Base::output(network, 0, v), p_.columns, columns_.count(v), p_.rows, right.block(v - first));
      }
      outer_vectors<T>(last - first, Base::input(), right, p_.rows, inputs_, out);
      T* to = reinterpret_cast<T*>(p_.grad_weight) + network * p_.inputs * p_.columns;
      for (int64_t v = first; v < last; ++v) {
        scatter_block(out + (v - first) * outer_product_size(), p_.inputs, columns_.count(v), p_.columns,
                      to + v * kWidth<T>);
      }
    });
  }

  // Threads divide the rows, so the sum over networks always has the same order.
  void input_gradient(const Member& member) {
    const Range mine = member.part(p_.rows);
    const int64_t rows = mine.last - mine.first, block_size = rows * kWidth<T>;
    T* packed = packed_.data() + member.rank() * inputs_.blocks() * p_.columns * kWidth<T>;
    T* product = products_.data() + member.rank() * 2 * Base::block_size();
    const Blocked<T> left{grad(member), block_size};
    T* total = grad_input_.data() + mine.first * inputs_.blocks() * kWidth<T>;  // [blocks, rows, W]
    for (int64_t b = 0; b < inputs_.blocks(); ++b) zero_rows(total + b * block_size, rows);
    for (int64_t network = 0; network < p_.networks; ++network) {
      pack_transposed(Base::weight(network), inputs_, columns_, 0, inputs_.blocks(), false, packed);
      for (int64_t v = 0; v < columns_.blocks(); ++v) {
        gather_block(Base::output(network, mine.first, v), p_.columns, columns_.count(v), rows, left.block(v));
      }
      for (int64_t b = 0; b < inputs_.blocks(); b += 2) {
        const int64_t last = smaller(b + 2, inputs_.blocks());
        multiply_vectors<T>(last - b, left, columns_, packed + b * p_.columns * kWidth<T>, rows, product);
        add_scaled_rows(product, T(1), total + b * block_size, (last - b) * rows);
      }
    }
    T* to = reinterpret_cast<T*>(p_.grad_input) + mine.first * p_.inputs;
    for (int64_t b = 0; b < inputs_.blocks(); ++b) {
      scatter_block(total + b * block_size, rows, inputs_.count(b), p_.inputs, to + b * kWidth<T>);
    }
  }

  Buffer<T> packed_, grads_, outer_products_, products_, grad_input_;
};

template <typename T>
void project(const Projection& p) {
  ProjectionForward<T> pass(p);
}

template <typename T>
void project_backward(const Projection& p) {
  ProjectionBackward<T> pass(p);
}

}  // namespace WENET_ISA
}  // namespace wenet
