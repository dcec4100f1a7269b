// What forward and backward share: the operands by name, and the arithmetic of a node on one block [M, W].
#pragma once

#include "cpu/arena.h"
#include "cpu/product.h"

namespace wenet {
namespace WENET_ISA {

constexpr double kNormEps = 1e-5;  // NORM_EPS of wenet_kernels/recurrence.py

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

  Vector<T> scale() const { return inverse_sqrt(variance + T(kNormEps)); }
};

// A Recurrence with types, and where things lie in it.
template <typename T>
struct Operands {
  const Recurrence& r;
  Layout<T> hidden;   // of a state
  Layout<T> columns;  // of a product

  explicit Operands(const Recurrence& r) : r(r), hidden{r.hidden, 1}, columns{r.hidden, r.highway ? 2 : 1} {}

  int64_t products() const { return r.nodes + 1; }
  int64_t block_size() const { return r.rows * kWidth<T>; }
  int64_t state_size() const { return hidden.blocks() * block_size(); }
  int64_t weight_size() const { return r.hidden * columns.width(); }

  const T* weight(int64_t network, int64_t node) const {
    if (node == 0) return reinterpret_cast<const T*>(r.weight_hidden) + network * weight_size();
    return reinterpret_cast<const T*>(r.weight_nodes) + (network * r.nodes + node - 1) * weight_size();
  }
  // First element of a block in the row-major [M, G] of a step, of gate (0) or candidate (1); plain has one column.
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
  T share(int64_t network, int64_t node) const {
    if (node == 0 || !table(r.concat, network, node)) return 0;
    int32_t averaged = 0;
    for (int64_t i = 1; i <= r.nodes; ++i) averaged += table(r.concat, network, i);
    return T(1) / averaged;
  }
  Statistics<T> running_statistics(int64_t network, int64_t node, int64_t block) const {
    const int64_t offset = statistics_offset(0, network, node, block);
    const int count = hidden.count(block);
    return {load_part(reinterpret_cast<const T*>(r.running_mean) + offset, count),
            load_part(reinterpret_cast<const T*>(r.running_var) + offset, count)};
  }
  T mix(int64_t network) const { return reinterpret_cast<const T*>(r.mix)[network]; }

  // Of a state's mean and variance, [n, L+1, H] after `t` steps of as much.
  int64_t statistics_offset(int64_t t, int64_t network, int64_t node, int64_t block) const {
    return ((t * r.networks + network) * products() + node) * r.hidden + block * kWidth<T>;
  }
  // Of what forward keeps of a node: gate and candidate of hidden block 0, then of 1, ...
  int64_t kept_offset(int64_t t, int64_t network, int64_t node) const {
    return ((network * r.steps + t) * products() + node) * columns.vectors() * block_size();
  }

 private:
  int32_t table(Address address, int64_t network, int64_t node) const {
    return reinterpret_cast<const int32_t*>(address)[network * r.nodes + node - 1];
  }
};

// Row-major [M, H] into a block [M, W] and back; `width` is the distance of two rows.
template <typename T>
void gather_block(const T* from, int64_t width, int count, int64_t rows, T* block) {
  for (int64_t m = 0; m < rows; ++m) store(block + m * kWidth<T>, load_part(from + m * width, count));
}

template <typename T>
void scatter_block(const T* block, int64_t rows, int count, int64_t width, T* to) {
  for (int64_t m = 0; m < rows; ++m) store_part(to + m * width, load(block + m * kWidth<T>), count);
}

template <Activation kind, typename T>
void activate_rows(const T* from, T* to, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows; ++m) store<T>(to + m * W, activate<kind>(load(from + m * W)));
}

template <typename T>
void activate_rows(int32_t kind, const T* from, T* to, int64_t rows) {
  switch (kind) {
    case kTanh: return activate_rows<kTanh>(from, to, rows);
    case kRelu: return activate_rows<kRelu>(from, to, rows);
    case kSigmoid: return activate_rows<kSigmoid>(from, to, rows);
    default: return activate_rows<kIdentity>(from, to, rows);
  }
}

// s = p + gate * (candidate - p), or the candidate alone where there is no gate.
template <typename T>
void combine_rows(const T* previous, const T* gate, const T* candidate, T* state, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) {
    Vector<T> s = load(candidate + m);
    if (gate != nullptr) {
      const Vector<T> p = load(previous + m);
      s = p + load(gate + m) * (s - p);
    }
    store<T>(state + m, s);
  }
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

template <typename T>
void normalise_rows(T* state, const Statistics<T>& statistics, int64_t rows) {
  constexpr int W = kWidth<T>;
  const Vector<T> scale = statistics.scale();
  for (int64_t m = 0; m < rows * W; m += W) store<T>(state + m, (load(state + m) - statistics.mean) * scale);
}

// to = from * mask, or a copy where there is no mask.
template <typename T>
void mask_rows(const T* from, const T* mask, T* to, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows * W; m += W) {
    store<T>(to + m, mask == nullptr ? load(from + m) : load(from + m) * load(mask + m));
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
