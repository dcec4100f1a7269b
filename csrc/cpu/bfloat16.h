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
  using Columns = __m512i;  // of number i: the first row in the lower half of 32 bits, the second in the upper

  // To the nearest, ties to even. NaN stays NaN; below 2^-126 all becomes zero.
  static WENET_INLINE Vector<BFloat16> round(Vector<float> v) {
    return reinterpret_cast<Vector<BFloat16>>(_mm512_cvtneps_pbh(v));
  }
  static WENET_INLINE Columns join(const Vector<float>* rows) {
    const __m512i lower = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(round(rows[0])));
    const __m512i upper = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(round(rows[1])));
    return _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
  }
  static WENET_INLINE Columns columns(const BFloat16* from) { return _mm512_loadu_si512(from); }
  static WENET_INLINE Columns spread(const BFloat16* from) {
    int pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static WENET_INLINE void multiply_add(Vector<float>& total, Columns factor, Columns columns) {
    total = _mm512_dpbf16_ps(total, reinterpret_cast<__m512bh>(columns), reinterpret_cast<__m512bh>(factor));
  }
};

}  // namespace WENET_ISA
}  // namespace wenet
