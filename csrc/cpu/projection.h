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

  // Calls work(first, last) for parts of a range of rows that the second cache holds.
  template <typename Work>
  void for_parts(Range rows, const Work& work) {
    const int64_t most = kSecondCache / (p_.inputs * int64_t{sizeof(T)}) + 1;
    const int64_t count = rows.last - rows.first, parts = ceil_div(count, most);
    for (int64_t i = 0; i < parts; ++i) work(rows.first + count * i / parts, rows.first + count * (i + 1) / parts);
  }

  // Calls work(first, last) for pieces of a range of rows that stay in the first cache.
  template <typename Work>
  void for_pieces(int64_t first, int64_t last, const Work& work) {
    for (int64_t row = first; row < last; row += kOuterDepth) work(row, smaller(row + kOuterDepth, last));
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
      : Base(p),
        late_(p.networks * p.rows * p.columns * int64_t{sizeof(T)} > kCached),
        packed_(p.threads * packed_size()),
        products_(p.threads * 2 * kOuterDepth * kWidth<T>),
        sums_(p.threads) {
    run_team(*this, p.threads);
  }

  bool finite() { return sums_.finite(); }

  void run(const Member& member) {
    T* packed = packed_.data() + member.rank() * packed_size();
    Base::gather_input(member);
    Base::for_parts({0, p_.rows}, [&](int64_t row, int64_t end) {
      Base::for_pairs(member, [&](int64_t network, int64_t first, int64_t last) {
        pack(Base::weight(network), p_.inputs, columns_, first, last, false, packed);
        const T* right = packed + first * p_.inputs * kWidth<T>;
        Base::for_pieces(row, end, [&](int64_t row, int64_t end) {
          multiply_piece(member, network, Range{first, last}, right, row, end - row);
        });
      });
    });
  }

 private:
  int64_t packed_size() const { return columns_.blocks() * p_.inputs * kWidth<T>; }

  // Some rows times one or two vectors of columns.
  void multiply_piece(const Member& member, int64_t network, Range vectors, const T* right, int64_t row, int64_t rows) {
    T* product = products_.data() + member.rank() * 2 * kOuterDepth * kWidth<T>;
    multiply_vectors<T>(vectors.last - vectors.first, Blocked<const T>(Base::input()).from_row(row), inputs_, right,
                        rows, product);
    add_some(member, network, vectors, product, row, rows);
    for (int64_t v = vectors.first; v < vectors.last; ++v, product += rows * kWidth<T>) {
      scatter_block(product, rows, columns_.count(v), p_.columns, Base::output(network, row, v), late_);
    }
  }

  // NaN in the input fills a row of the output and in a weight a column, so one column and one row of each network
  // tell.
  void add_some(const Member& member, int64_t network, Range vectors, const T* product, int64_t row, int64_t rows) {
    if (network == 0 && vectors.first == 0) add_all_rows(product, rows, sums_.of(member.rank()));
    if (row > 0) return;
    for (int64_t v = vectors.first; v < vectors.last; ++v, product += rows * kWidth<T>) {
      add_all_rows(product, 1, sums_.of(member.rank()));
    }
  }

  const bool late_;  // the output is read when the caches have forgotten it
  Buffer<T> packed_, products_;
  Sums<T> sums_;
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
        grad_input_(inputs_.blocks() * Base::block_size()) {
    run_team(*this, p.threads);
  }

  void run(const Member& member) {
    Base::gather_input(member);
    weight_gradients(member);
    input_gradient(member);
  }

 private:
  int64_t grad_size() const { return (columns_.blocks() + 1) * kOuterDepth * kWidth<T>; }  // of a piece, and a pair
  int64_t outer_product_size() const { return inputs_.blocks() * kWidth<T> * kWidth<T>; }
  T* grad(const Member& member) { return grads_.data() + member.rank() * grad_size(); }

  void weight_gradients(const Member& member) {
    T* out = outer_products_.data() + member.rank() * 2 * outer_product_size();
    Base::for_pairs(member, [&](int64_t network, int64_t first, int64_t last) {
      Base::for_pieces(0, p_.rows, [&](int64_t row, int64_t end) {
        const Blocked<const T> left = Blocked<const T>(Base::input()).from_row(row);
        const Blocked<const T> right = gather_grad(member, network, Range{first, last}, row, end - row);
        const auto multiply = row == 0 ? outer_vectors<T> : add_outer_vectors<T>;
        multiply(last - first, left, right, end - row, inputs_, out);
      });
      T* to = reinterpret_cast<T*>(p_.grad_weight) + network * p_.inputs * p_.columns;
      for (int64_t v = first; v < last; ++v) {
        scatter_block(out + (v - first) * outer_product_size(), p_.inputs, columns_.count(v), p_.columns,
                      to + v * kWidth<T>);
      }
    });
  }

  // Some rows of the output's gradient, in blocks.
  Blocked<const T> gather_grad(const Member& member, int64_t network, Range vectors, int64_t row, int64_t rows) {
    const Blocked<T> to{grad(member), rows * kWidth<T>};
    for (int64_t v = vectors.first; v < vectors.last; ++v) {
      gather_block(Base::output(network, row, v), p_.columns, columns_.count(v), rows, to.block(v - vectors.first));
    }
    return to;
  }

  // Threads divide the rows, so the sum over networks always has the same order.
  void input_gradient(const Member& member) {
    Base::for_parts(member.part(p_.rows), [&](int64_t first, int64_t last) { part_of_input(member, first, last); });
  }

  void part_of_input(const Member& member, int64_t first, int64_t last) {
    T* packed = packed_.data() + member.rank() * inputs_.blocks() * p_.columns * kWidth<T>;
    const int64_t block_size = (last - first) * kWidth<T>;
    const Blocked<T> total{grad_input_.data() + first * inputs_.blocks() * kWidth<T>, block_size};
    for (int64_t network = 0; network < p_.networks; ++network) {
      pack_transposed(Base::weight(network), inputs_, columns_, 0, inputs_.blocks(), false, packed);
      Base::for_pieces(first, last, [&](int64_t row, int64_t end) {
        add_piece(member, network, packed, row, end - row, total.from_row(row - first));
      });
    }
    T* to = reinterpret_cast<T*>(p_.grad_input) + first * p_.inputs;
    for (int64_t b = 0; b < inputs_.blocks(); ++b) {
      scatter_block(total.block(b), last - first, inputs_.count(b), p_.inputs, to + b * kWidth<T>);
    }
  }

  // Adds one network's part to the gradient of some rows of the input; the first network starts it.
  void add_piece(const Member& member, int64_t network, const T* packed, int64_t row, int64_t rows, Blocked<T> total) {
    const Blocked<const T> left = gather_grad(member, network, Range{0, columns_.blocks()}, row, rows);
    for (int64_t b = 0; b < inputs_.blocks(); b += 2) {
      const int64_t last = smaller(b + 2, inputs_.blocks());
      const T* right = packed + b * p_.columns * kWidth<T>;
      const Products<T> to{total.block(b), total.block_stride, network > 0};
      multiply_vectors<T>(last - b, left, columns_, right, rows, to);
    }
  }

  Buffer<T> packed_, grads_, outer_products_, grad_input_;
};

template <typename T>
bool project(const Projection& p) {
  return ProjectionForward<T>(p).finite();
}

template <typename T>
void project_backward(const Projection& p) {
  ProjectionBackward<T> pass(p);
}

}  // namespace WENET_ISA
}  // namespace wenet
