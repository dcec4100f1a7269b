// What forward and backward share: the operands by name, and the arithmetic of a node on one block [M, W].
#pragma once

#include <type_traits>

#include "cpu/arena.h"
#include "cpu/product.h"

namespace wenet {
namespace WENET_ISA {

constexpr double kNormEps = 1e-5;  // NORM_EPS of wenet_kernels/recurrence.py

// Bytes that the second cache holds, with room for what is read beside them; and bytes that some cache still holds when
// they are read long after they were written.
constexpr int64_t kSecondCache = 640 << 10, kCached = 8 << 20;

// Working memory of a call.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : block_(count * sizeof(T)) {}
  T* data() const { return static_cast<T*>(block_.data()); }

 private:
  Block block_;
};

// Mean and biased variance over the rows, for every column of a block.
template <typename T>
struct Statistics {
  Vector<T> mean, variance;
};

// The normalisation of a block of states.
template <typename T>
struct Normalisation {
  bool on = false;
  Vector<T> mean{}, scale{};

  Normalisation() = default;
  explicit Normalisation(const Statistics<T>& s)
      : on(true), mean(s.mean), scale(inverse_sqrt(s.variance + T(kNormEps))) {}

  WENET_INLINE Vector<T> operator()(Vector<T> state) const { return on ? (state - mean) * scale : state; }
};

// One block of a node's gate and candidate, [M, W] each; without a gate the candidate is the state.
template <typename T>
struct NodeBlock {
  T *gate, *candidate;
};

// A Recurrence with types and offsets.
template <typename T>
struct Operands {
  const Recurrence& r;
  Layout<T> hidden;   // of a state
  Layout<T> columns;  // of a product

  explicit Operands(const Recurrence& r)
      : r(r), hidden{r.hidden, 1}, columns{r.hidden, r.highway ? 2 : 1}, shares_(r.networks * (r.nodes + 1)) {
    for (int64_t k = 0; k < r.networks; ++k) set_shares(k);
  }

  int64_t products() const { return r.nodes + 1; }
  int64_t block_size() const { return r.rows * kWidth<T>; }
  int64_t state_size() const { return hidden.blocks() * block_size(); }
  int64_t weight_size() const { return r.hidden * columns.width(); }

  const T* weight(int64_t network, int64_t node) const {
    if (node == 0) return reinterpret_cast<const T*>(r.weight_hidden) + network * weight_size();
    return reinterpret_cast<const T*>(r.weight_nodes) + (network * r.nodes + node - 1) * weight_size();
  }
  // Offset of a block in the row-major [M, G] of a step, for gate (0) or candidate (1); the plain form has one column.
  int64_t pre_offset(int64_t t, int64_t network, int column, int64_t block) const {
    return t * r.pre_step_stride + network * r.pre_network_stride + column * r.hidden + block * kWidth<T>;
  }
  const T* pre(int64_t t, int64_t network, int column, int64_t block) const {
    return reinterpret_cast<const T*>(r.pre) + pre_offset(t, network, column, block);
  }

  int64_t ancestor(int64_t network, int64_t node) const { return table(r.ancestor, network, node); }
  int32_t activation(int64_t network, int64_t node) const {
    return node == 0 ? kTanh : table(r.activation, network, node);
  }
  // A node's share of the cell's output (eq. 3).
  T share(int64_t network, int64_t node) const { return shares_.data()[network * products() + node]; }
  Statistics<T> running_statistics(int64_t network, int64_t node, int64_t block) const {
    const int64_t offset = statistics_offset(0, network, node, block);
    const int count = hidden.count(block);
    return {load_part(reinterpret_cast<const T*>(r.running_mean) + offset, count),
            load_part(reinterpret_cast<const T*>(r.running_var) + offset, count)};
  }
  T mix(int64_t network) const { return reinterpret_cast<const T*>(r.mix)[network]; }

  // Offset of a block in the means or variances [T, n, L+1, H].
  int64_t statistics_offset(int64_t t, int64_t network, int64_t node, int64_t block) const {
    return ((t * r.networks + network) * products() + node) * r.hidden + block * kWidth<T>;
  }
  // Where forward keeps one block of a node: [n, T, L+1, blocks, gate and candidate, M, W].
  template <typename Number>
  NodeBlock<Number> kept(Number* all, int64_t t, int64_t network, int64_t node, int64_t b) const {
    const int64_t first = ((network * r.steps + t) * products() + node) * columns.vectors() + b * columns.per;
    Number* block = all + first * block_size();
    return columns.per == 2 ? NodeBlock<Number>{block, block + block_size()} : NodeBlock<Number>{nullptr, block};
  }

 private:
  void set_shares(int64_t network) {
    T* shares = shares_.data() + network * products();
    int32_t averaged = 0;
    for (int64_t node = 1; node <= r.nodes; ++node) averaged += table(r.concat, network, node);
    shares[0] = 0;
    for (int64_t node = 1; node <= r.nodes; ++node) shares[node] = table(r.concat, network, node) ? T(1) / averaged : 0;
  }

  int32_t table(Address address, int64_t network, int64_t node) const {
    return reinterpret_cast<const int32_t*>(address)[network * r.nodes + node - 1];
  }

  Buffer<T> shares_;  // [n, L+1]
};

// Copies columns of a row-major [M, H] into a block [M, W], and back; `width` is the distance between two rows.
template <typename T>
void gather_block(const T* from, int64_t width, int count, int64_t rows, T* block) {
  for (int64_t m = 0; m < rows; ++m) store(block + m * kWidth<T>, load_part(from + m * width, count));
}

// `late` says that the matrix is read when the caches have forgotten it.
template <typename T>
void scatter_block(const T* block, int64_t rows, int count, int64_t width, T* to, bool late = false) {
  if (late && count == kWidth<T> && fills_lines(to, width)) {
    for (int64_t m = 0; m < rows; ++m) stream(to + m * width, load(block + m * kWidth<T>));
    return;
  }
  for (int64_t m = 0; m < rows; ++m) store_part(to + m * width, load(block + m * kWidth<T>), count);
}

// Calls function(kind) with the activation as a constant, so that loops are compiled for each activation.
template <typename Function>
WENET_INLINE void with_activation(int32_t kind, const Function& function) {
  switch (kind) {
    case kTanh: return function(std::integral_constant<Activation, kTanh>());
    case kRelu: return function(std::integral_constant<Activation, kRelu>());
    case kSigmoid: return function(std::integral_constant<Activation, kSigmoid>());
    default: return function(std::integral_constant<Activation, kIdentity>());
  }
}

// A gated state.
template <typename V>
WENET_INLINE V combine(V previous, V gate, V candidate) {
  return previous + gate * (candidate - previous);
}

// Vectors of sums, one a thread.
template <typename T>
class Sums {
 public:
  explicit Sums(int64_t threads) : threads_(threads), buffer_(threads * kWidth<T>) {
    for (int64_t i = 0; i < threads; ++i) store<T>(of(i), Vector<T>{});
  }
  T* of(int64_t thread) { return buffer_.data() + thread * kWidth<T>; }
  bool finite() {
    T total = 0;
    for (int64_t i = 0; i < threads_; ++i) total += sum<T>(load(of(i)));
    return __builtin_isfinite(total);
  }

 private:
  const int64_t threads_;
  Buffer<T> buffer_;
};

template <typename T>
void sigmoid_rows(T* block, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) store<T>(block + m, sigmoid(load(block + m)));
}

template <typename T>
Statistics<T> batch_statistics(const T* state, int64_t rows) {
  constexpr int W = kWidth<T>;
  Vector<T> total{}, squares{};
  for (int64_t m = 0; m < rows * W; m += W) total += load(state + m);
  const Vector<T> mean = total / T(rows);
  for (int64_t m = 0; m < rows * W; m += W) {
    const Vector<T> deviation = load(state + m) - mean;
    squares += deviation * deviation;
  }
  return {mean, squares / T(rows)};
}

// The batch's statistics depend on the states too. These are the parts that the derivative through a normalisation
// loses to them: its mean over the rows, and its projection on the normalised states.
template <typename T>
struct StatisticsGradient {
  Vector<T> mean{}, along{};

  // normalised(m): the row at m of the normalised block.
  template <typename Normalised>
  WENET_INLINE void sum(const T* grad, int64_t rows, const Normalised& normalised) {
    constexpr int W = kWidth<T>;
    for (int64_t m = 0; m < rows * W; m += W) {
      mean += load(grad + m);
      along += load(grad + m) * normalised(m);
    }
    mean /= T(rows);
    along /= T(rows);
  }

  WENET_INLINE Vector<T> operator()(Vector<T> grad, Vector<T> normalised) const {
    return grad - mean - normalised * along;
  }
};

// Adds all numbers of a block to a vector of sums, which tells whether all are finite.
template <typename T>
void add_all_rows(const T* from, int64_t rows, T* sums) {
  Vector<T> total = load(sums);
  for (int64_t m = 0; m < rows * kWidth<T>; m += kWidth<T>) total += load(from + m);
  store<T>(sums, total);
}

// to = from * mask, or a copy where there is no mask; rounded to what `to` holds.
template <typename T, typename P>
void mask_rows(const T* from, const T* mask, P* to, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) {
    store<P>(to + m, Factors<P>::round(mask == nullptr ? load(from + m) : load(from + m) * load(mask + m)));
  }
}

// Calls row(m, values) for every row of a block, where m is the row's offset, and puts the N vectors that it fills in
// into N blocks, `late` as in `put`. Rows that are multiplied together are stored side by side; zeros fill up the last
// of them.
template <int N, typename P, typename Row>
WENET_INLINE void join_rows(P* const (&to)[N], bool late, int64_t rows, const Row& row) {
  constexpr int W = kWidth<P>;
  for (int64_t m = 0; m < rows; m += kTogether<P>) {
    Vector<SumOf<P>> together[N][kTogether<P>] = {};
#pragma GCC unroll 2
    for (int i = 0; i < kTogether<P>; ++i) {
      if (m + i == rows) break;
      Vector<SumOf<P>> values[N] = {};
      row((m + i) * W, values);
      for (int n = 0; n < N; ++n) together[n][i] = values[n];
    }
    for (int n = 0; n < N; ++n) {
      if (to[n]) put(to[n] + m * W, Factors<P>::join(together[n]), late);
    }
  }
}

// to += factor * from
template <typename T>
void add_scaled_rows(const T* from, T factor, T* to, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) store<T>(to + m, load(to + m) + factor * load(from + m));
}

template <typename T>
void zero_rows(T* to, int64_t rows) {
  for (int64_t m = 0; m < rows * kWidth<T>; m += kWidth<T>) store<T>(to + m, Vector<T>{});
}

// The dropout mask in blocks, prepared once a call.
template <typename T>
void block_mask(const Operands<T>& o, T* blocks) {
  const T* mask = reinterpret_cast<const T*>(o.r.mask_h);
  for (int64_t b = 0; b < o.hidden.blocks(); ++b) {
    gather_block(mask + b * kWidth<T>, o.r.hidden, o.hidden.count(b), o.r.rows, blocks + b * o.block_size());
  }
}

}  // namespace WENET_ISA
}  // namespace wenet
