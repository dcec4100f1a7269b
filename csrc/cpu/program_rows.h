// What the instructions of programs compute, and their derivatives, on a block [M, W].
#pragma once

#include "cpu/cell.h"
#include "cpu/program.h"

namespace wenet {
namespace WENET_ISA {

template <typename V>
WENET_INLINE V between(V x, double low, double high) {
  using T = decltype(x[0] + x[0]);
  x = x < T(low) ? V{} + T(low) : x;  // in this form NaN stays NaN
  return x > T(high) ? V{} + T(high) : x;
}

template <int32_t code, typename V>
WENET_INLINE V apply(V u) {
  using T = decltype(u[0] + u[0]);
  if constexpr (code == kOpTanh) return tanh(u);
  if constexpr (code == kOpRelu) return u < 0 ? V{} : u;
  if constexpr (code == kOpSigmoid) return sigmoid(u);
  if constexpr (code == kOpSoftplus) return softplus(u);
  if constexpr (code == kOpSilu) return u * sigmoid(u);
  if constexpr (code == kOpHardsigmoid) return between(u * T(1.0 / 6) + T(0.5), 0, 1);
  if constexpr (code == kOpHardtanh) return between(u, -1, 1);
  return u;
}

// Derivative of an activation from its value f; silu's from its argument.
template <int32_t code, typename V>
WENET_INLINE V slope_of(V f) {
  using T = decltype(f[0] + f[0]);
  const V one = V{} + T(1);
  if constexpr (code == kOpTanh) return one - f * f;
  if constexpr (code == kOpRelu) return f > 0 ? one : V{};
  if constexpr (code == kOpSigmoid) return f * (one - f);
  if constexpr (code == kOpSoftplus) return softplus_slope(f);
  if constexpr (code == kOpSilu) return silu_slope(f);
  if constexpr (code == kOpHardsigmoid) return (f > 0) & (f < 1) ? V{} + T(1.0 / 6) : V{};
  if constexpr (code == kOpHardtanh) return (f > -1) & (f < 1) ? one : V{};
  return one;
}

// Calls function(code) with the code of an activation, or kNone, as a constant.
template <typename Function>
WENET_INLINE void with_code(int32_t code, const Function& function) {
  switch (code) {
    case kOpTanh: return function(std::integral_constant<int32_t, kOpTanh>());
    case kOpRelu: return function(std::integral_constant<int32_t, kOpRelu>());
    case kOpSigmoid: return function(std::integral_constant<int32_t, kOpSigmoid>());
    case kOpSoftplus: return function(std::integral_constant<int32_t, kOpSoftplus>());
    case kOpSilu: return function(std::integral_constant<int32_t, kOpSilu>());
    case kOpHardsigmoid: return function(std::integral_constant<int32_t, kOpHardsigmoid>());
    case kOpHardtanh: return function(std::integral_constant<int32_t, kOpHardtanh>());
    default: return function(std::integral_constant<int32_t, kNone>());
  }
}

// Where a value goes besides, if anywhere.
template <typename T>
struct Keep {
  T* to;
  bool late;  // past the caches
};

// to = function(m) for every row, and to where it is kept.
template <typename T, typename Function>
WENET_INLINE void write_rows(T* to, Keep<T> keep, int64_t rows, const Function& function) {
  constexpr int W = kWidth<T>;
  if (keep.to == nullptr) {
    for (int64_t m = 0; m < rows * W; m += W) store<T>(to + m, function(m));
    return;
  }
  for (int64_t m = 0; m < rows * W; m += W) {
    const Vector<T> v = function(m);
    store<T>(to + m, v);
    put(keep.to + m, v, keep.late);
  }
}

// What a product adds to its result: the projected input of the rows, and a bias.
template <typename T>
struct Addends {
  const T* pre = nullptr;  // [M, H] from the first column of the block on, or a block [M, W]
  int64_t width = 0;       // H or W
  int64_t ahead = 0;       // from here to the same in the next step
  int count = 0;           // columns of the block
  Vector<T> bias{};

  WENET_INLINE Vector<T> operator()(int64_t m) const {
    if (pre == nullptr) return bias;
    const T* from = pre + m / kWidth<T> * width;
    __builtin_prefetch(from + ahead, 0, 2);
    return bias + load_part(from, count);
  }
};

template <typename T>
void product_rows(int32_t activation, const T* product, const Addends<T>& addends, T* to, Keep<T> keep, int64_t rows) {
  with_code(activation, [&](auto code) {
    constexpr int32_t kCode = decltype(code)::value;
    if (product == nullptr) {
      write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return apply<kCode>(addends(m)); });
    } else {
      write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return apply<kCode>(load(product + m) + addends(m)); });
    }
  });
}

// An instruction that is no product, from its operands' blocks.
template <typename T>
void instruction_rows(const Step& step, const T* a, const T* b, const T* c, T* to, Keep<T> keep, int64_t rows) {
  const T k = static_cast<T>(step.constant);
  switch (step.code) {
    case kOpAdd: return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return load(a + m) + load(b + m); });
    case kOpSub: return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return load(a + m) - load(b + m); });
    case kOpMul: return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return load(a + m) * load(b + m); });
    case kOpBlend:
      return write_rows(to, keep, rows,
                        [&](int64_t m) WENET_LAMBDA { return combine(load(b + m), load(a + m), load(c + m)); });
    case kOpTimes: return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return k * load(a + m); });
    case kOpPlus: return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return k + load(a + m); });
    case kOpFrom: return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return k - load(a + m); });
    case kOpBatchnorm: {
      const Normalisation<T> normalise(batch_statistics(a, rows));
      return write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return normalise(load(a + m)); });
    }
    default:
      with_code(step.code, [&](auto code) {
        constexpr int32_t kCode = decltype(code)::value;
        write_rows(to, keep, rows, [&](int64_t m) WENET_LAMBDA { return apply<kCode>(load(a + m)); });
      });
  }
}

// What an operand's derivative is changed by.
template <typename T>
struct Derivative {
  T* to = nullptr;
  bool first = false;  // nothing was there before

  WENET_INLINE void operator()(int64_t m, Vector<T> v) const { store<T>(to + m, first ? v : load(to + m) + v); }
};

// Through batch normalisation of the block `from`, whose statistics are computed again.
template <typename T>
void normalisation_backward(const T* grad, const T* from, const Derivative<T>& to, int64_t rows) {
  const Normalisation<T> normalise(batch_statistics(from, rows));
  const auto normalised = [&](int64_t m) WENET_LAMBDA { return normalise(load(from + m)); };
  StatisticsGradient<T> through;
  through.sum(grad, rows, normalised);
  for (int64_t m = 0; m < rows * kWidth<T>; m += kWidth<T>) {
    to(m, through(load(grad + m), normalised(m)) * normalise.scale);
  }
}

// Through an instruction that is no product: from the derivative `grad` of its value to those of its operands, given
// the values that it needs.
template <typename T>
void instruction_backward(const Step& step, const T* grad, const T* value, const T* const (&operand)[3],
                          const Derivative<T> (&to)[3], int64_t rows) {
  constexpr int W = kWidth<T>;
  const int64_t end = rows * W;
  const T k = static_cast<T>(step.constant);
  const T *a = operand[0], *b = operand[1], *c = operand[2];
  switch (step.code) {
    case kOpAdd:
      for (int64_t m = 0; m < end; m += W) to[0](m, load(grad + m)), to[1](m, load(grad + m));
      return;
    case kOpSub:
      for (int64_t m = 0; m < end; m += W) to[0](m, load(grad + m)), to[1](m, -load(grad + m));
      return;
    case kOpMul:
      for (int64_t m = 0; m < end; m += W) {
        const Vector<T> g = load(grad + m);
        to[0](m, g * load(b + m)), to[1](m, g * load(a + m));
      }
      return;
    case kOpBlend:  // b + a (c - b) with a for the gate
      for (int64_t m = 0; m < end; m += W) {
        const Vector<T> g = load(grad + m), gate = load(a + m);
        to[0](m, g * (load(c + m) - load(b + m))), to[1](m, g - g * gate), to[2](m, g * gate);
      }
      return;
    case kOpTimes:
      for (int64_t m = 0; m < end; m += W) to[0](m, k * load(grad + m));
      return;
    case kOpPlus:
      for (int64_t m = 0; m < end; m += W) to[0](m, load(grad + m));
      return;
    case kOpFrom:
      for (int64_t m = 0; m < end; m += W) to[0](m, -load(grad + m));
      return;
    case kOpBatchnorm: return normalisation_backward(grad, a, to[0], rows);
    default: {
      const T* from = step.code == kOpSilu ? a : value;
      with_code(step.code, [&](auto code) {
        constexpr int32_t kCode = decltype(code)::value;
        for (int64_t m = 0; m < end; m += W) to[0](m, load(grad + m) * slope_of<kCode>(load(from + m)));
      });
    }
  }
}

// Row-major [M, H] added to a block [M, W], or in its place.
template <typename T>
void add_gathered(const T* from, int64_t width, int count, T factor, bool first, T* to, int64_t rows) {
  constexpr int W = kWidth<T>;
  for (int64_t m = 0; m < rows; ++m, to += W) {
    const Vector<T> v = factor * load_part(from + m * width, count);
    store<T>(to, first ? v : load(to) + v);
  }
}

template <typename T>
void copy_rows(const T* from, T* to, int64_t rows) {
  for (int64_t m = 0; m < rows * kWidth<T>; m += kWidth<T>) store<T>(to + m, load(from + m));
}

template <typename T>
void keep_rows(const T* from, T* to, bool late, int64_t rows) {
  for (int64_t m = 0; m < rows * kWidth<T>; m += kWidth<T>) put(to + m, load(from + m), late);
}

}  // namespace WENET_ISA
}  // namespace wenet
