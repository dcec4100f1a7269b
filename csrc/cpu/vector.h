// Vectors of numbers and the activations on them. Compiled once for each instruction set, in a namespace of its own;
// nothing here or in the headers beside it may use inline functions of the standard library, of which the linker would
// keep one copy for all instruction sets.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(WENET_ISA) || !defined(WENET_VECTOR_BYTES) || !defined(WENET_TILE_ROWS)
#error "define WENET_ISA, WENET_VECTOR_BYTES and WENET_TILE_ROWS before including this"
#endif

#define WENET_INLINE inline __attribute__((always_inline))
#define WENET_LAMBDA __attribute__((always_inline))

namespace wenet {
namespace WENET_ISA {

using std::int32_t;
using std::int64_t;

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(WENET_VECTOR_BYTES)));
  typedef std::int32_t indices __attribute__((vector_size(WENET_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(WENET_VECTOR_BYTES)));
  typedef std::int64_t indices __attribute__((vector_size(WENET_VECTOR_BYTES)));
};
typedef std::uint32_t BitVector __attribute__((vector_size(WENET_VECTOR_BYTES)));

template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
using IndexVector = typename VectorOf<T>::indices;

template <typename T>
constexpr int kWidth = WENET_VECTOR_BYTES / sizeof(T);
template <typename T>
constexpr int kWidth<const T> = kWidth<T>;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
WENET_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
WENET_INLINE void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// Past the caches, to an address that is a multiple of a vector's size: for what is read next when the caches have long
// forgotten it. Another thread may read it after fence().
template <typename T, typename V>
WENET_INLINE void stream(T* to, V v) {
  static_assert(sizeof v == WENET_VECTOR_BYTES);
#if !defined(__x86_64__)
  __builtin_memcpy(to, &v, sizeof v);
#elif WENET_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#elif WENET_VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#else
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
#endif
}

template <typename T, typename V>
WENET_INLINE void put(T* to, V v, bool past_caches) {
  if (past_caches) return stream(to, v);
  __builtin_memcpy(to, &v, sizeof v);
}

// Whether rows of a matrix, so many numbers apart, can be written past the caches: a vector must fill lines of memory.
template <typename T>
WENET_INLINE bool fills_lines(const T* to, int64_t width) {
  constexpr int64_t kLine = 64;
  return WENET_VECTOR_BYTES == kLine && (reinterpret_cast<std::uintptr_t>(to) | (width * sizeof(T))) % kLine == 0;
}

WENET_INLINE void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

#if defined(__AVX512F__)
WENET_INLINE Vector<float> load_some(const float* from, int count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
WENET_INLINE Vector<double> load_some(const double* from, int count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}
WENET_INLINE void store_some(float* to, Vector<float> v, int count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
}
WENET_INLINE void store_some(double* to, Vector<double> v, int count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v);
}
#else
template <typename T>
WENET_INLINE Vector<T> load_some(const T* from, int count) {
  Vector<T> v{};
  for (int i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

template <typename T>
WENET_INLINE void store_some(T* to, Vector<T> v, int count) {
  for (int i = 0; i < count; ++i) to[i] = v[i];
}
#endif

// The first `count` numbers, zeros behind them.
template <typename T>
WENET_INLINE Vector<T> load_part(const T* from, int count) {
  return count == kWidth<T> ? load(from) : load_some(from, count);
}

// The same of a vector.
template <typename T>
WENET_INLINE Vector<T> part(Vector<T> v, int count) {
  IndexVector<T> lane;
  for (int i = 0; i < kWidth<T>; ++i) lane[i] = i;
  return lane < count ? v : Vector<T>{};
}

template <typename T>
WENET_INLINE void store_part(T* to, Vector<T> v, int count) {
  if (count == kWidth<T>) return store(to, v);
  store_some(to, v, count);
}

template <typename T>
WENET_INLINE T sum(Vector<T> v) {
  T total = 0;
  for (int i = 0; i < kWidth<T>; ++i) total += v[i];
  return total;
}

// x between two bounds. NaN stays NaN: where one of two numbers is, these instructions give the second.
WENET_INLINE Vector<float> clamp(Vector<float> x, float low, float high) {
  const Vector<float> least = Vector<float>{} + low, most = Vector<float>{} + high;
#if !defined(__x86_64__)
  x = x < least ? least : x;
  return x > most ? most : x;
#elif WENET_VECTOR_BYTES == 64
  return _mm512_maskz_min_ps(0xffff, most, _mm512_maskz_max_ps(0xffff, least, x));
#elif WENET_VECTOR_BYTES == 32
  return _mm256_min_ps(most, _mm256_max_ps(least, x));
#else
  return _mm_min_ps(most, _mm_max_ps(least, x));
#endif
}

// exp(x) = scale (1 + rest) for -87 <= x <= 87: 2^n exp(r) with x = n ln 2 + r, and rest = exp(r) - 1.
struct Exponential {
  Vector<float> scale, rest;
};

WENET_INLINE Exponential exponential(Vector<float> x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vector<float> shifted = x * 1.44269504f + kRound;
  const Vector<float> n = shifted - kRound;
  const Vector<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  Vector<float> series = r * 0.00139464962f + 0.00836661085f;           // the least of the greatest errors
  series = series * r + 0.0416662805f;
  series = series * r + 0.166665435f;
  series = series * r + 0.5f;
  BitVector bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the integer n as the exponent of 2^n; what kRound left above is shifted out
  Exponential found;
  __builtin_memcpy(&found.scale, &bits, sizeof bits);
  found.rest = series * (r * r) + r;
  return found;
}

// exp(x) - 1 for -87 <= x <= 87, to rounding near 0 too.
WENET_INLINE Vector<float> expm1(Vector<float> x) {
  const Exponential e = exponential(x);
  return e.scale * e.rest + (e.scale - 1.0f);
}

WENET_INLINE Vector<float> exp(Vector<float> x) {
  const Exponential e = exponential(x);
  return e.scale * e.rest + e.scale;
}

// log(1 + e) for 0 <= e <= 1, to rounding near 0 too: 2 artanh(s) with s = e / (2 + e) <= 1/3.
WENET_INLINE Vector<float> log1p(Vector<float> e) {
  const Vector<float> s = e / (e + 2.0f), z = s * s;
  Vector<float> series = z * 0.134337515f + 0.141169831f;
  series = series * z + 0.200038359f;
  series = series * z + 0.333333194f;
  return 2.0f * (s + s * (z * series));
}

WENET_INLINE Vector<float> sigmoid(Vector<float> x) { return 1.0f / (2.0f + expm1(clamp(-x, -87.0f, 87.0f))); }

WENET_INLINE Vector<float> tanh(Vector<float> x) {
  const Vector<float> e = expm1(clamp(2.0f * x, -40.0f, 40.0f));  // tanh(20) rounds to 1
  return e / (e + 2.0f);
}

// log(1 + exp(x))
WENET_INLINE Vector<float> softplus(Vector<float> x) {
  const Vector<float> size = x < 0 ? -x : x;
  return (x < 0 ? Vector<float>{} : x) + log1p(exp(clamp(-size, -87.0f, 87.0f)));
}

// 1 - exp(-f) with f = softplus(x): the derivative from the value.
WENET_INLINE Vector<float> softplus_slope(Vector<float> f) { return -expm1(clamp(-f, -87.0f, 87.0f)); }

// The derivative of x sigmoid(x), from x.
WENET_INLINE Vector<float> silu_slope(Vector<float> x) {
  const Vector<float> e = exp(clamp(-x, -87.0f, 87.0f)), s = 1.0f / (1.0f + e);
  return s + s * (x * (e * s));
}

// Double precision is for checking, so it takes the library's functions.
WENET_INLINE Vector<double> sigmoid(Vector<double> x) {
  for (int i = 0; i < kWidth<double>; ++i) x[i] = 1.0 / (1.0 + ::exp(-x[i]));
  return x;
}

WENET_INLINE Vector<double> tanh(Vector<double> x) {
  for (int i = 0; i < kWidth<double>; ++i) x[i] = ::tanh(x[i]);
  return x;
}

WENET_INLINE Vector<double> softplus(Vector<double> x) {
  for (int i = 0; i < kWidth<double>; ++i) {
    const double rest = ::log1p(::exp(-::fabs(x[i])));
    x[i] = x[i] > 0 ? x[i] + rest : (x[i] <= 0 ? rest : x[i]);
  }
  return x;
}

WENET_INLINE Vector<double> softplus_slope(Vector<double> f) {
  for (int i = 0; i < kWidth<double>; ++i) f[i] = -::expm1(-f[i]);
  return f;
}

WENET_INLINE Vector<double> silu_slope(Vector<double> x) {
  const Vector<double> s = sigmoid(x);
  return s + s * (x * sigmoid(-x));
}

WENET_INLINE Vector<float> inverse_sqrt(Vector<float> x) {
  for (int i = 0; i < kWidth<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return 1.0f / x;
}

WENET_INLINE Vector<double> inverse_sqrt(Vector<double> x) {
  for (int i = 0; i < kWidth<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return 1.0 / x;
}

// Codes of wenet_kernels.ACTIVATIONS.
enum Activation : int32_t { kTanh, kRelu, kSigmoid, kIdentity };

template <Activation kind, typename V>
WENET_INLINE V activate(V u) {
  if constexpr (kind == kTanh) return tanh(u);
  if constexpr (kind == kRelu) return u < 0 ? V{} : u;  // in this form NaN stays NaN
  if constexpr (kind == kSigmoid) return sigmoid(u);
  return u;
}

// Derivative of the activation, from its value.
template <Activation kind, typename V>
WENET_INLINE V slope(V f) {
  if constexpr (kind == kTanh) return 1 - f * f;
  if constexpr (kind == kRelu) return f > 0 ? V{} + 1 : V{};
  if constexpr (kind == kSigmoid) return f * (1 - f);
  return V{} + 1;
}

}  // namespace WENET_ISA
}  // namespace wenet
