// Products of 32-bit numbers whose factors are rounded to bfloat16, for processors that multiply such factors in pairs.
#pragma once

#include "cpu/product.h"

namespace wenet {
namespace WENET_ISA {

// The upper half of a float.
struct BFloat16 {
  std::uint16_t bits;
};

template <>
struct VectorOf<BFloat16> {
  typedef std::uint16_t type __attribute__((vector_size(WENET_VECTOR_BYTES / 2)));
};
template <>
constexpr int kWidth<BFloat16> = kWidth<float>;

template <>
struct Factors<BFloat16> {
  using Sum = float;
  static constexpr int kTogether = 2;
  using Columns = BitVector;  // a number of the first row in the lower half of 32 bits, of the second in the upper

  // To the nearest, ties to even. NaN stays NaN; what is below 2^-126 becomes zero.
  static WENET_INLINE Vector<BFloat16> round(Vector<float> v) {
    return reinterpret_cast<Vector<BFloat16>>(_mm512_cvtneps_pbh(v));
  }
  static WENET_INLINE Columns join(const Vector<float>* rows) {
    return widen(round(rows[0])) | widen(round(rows[1])) << 16;
  }
  static WENET_INLINE Columns columns(const BFloat16* from) {
    Columns pairs;
    __builtin_memcpy(&pairs, from, sizeof pairs);
    return pairs;
  }
  static WENET_INLINE Columns spread(const BFloat16* from) {
    std::uint32_t pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return Columns{} + pair;
  }
  static WENET_INLINE void multiply_add(Vector<float>& total, Columns factor, Columns columns) {
    total = _mm512_dpbf16_ps(total, reinterpret_cast<__m512bh>(columns), reinterpret_cast<__m512bh>(factor));
  }

 private:
  static WENET_INLINE Columns widen(Vector<BFloat16> v) { return __builtin_convertvector(v, Columns); }
};

}  // namespace WENET_ISA
}  // namespace wenet
