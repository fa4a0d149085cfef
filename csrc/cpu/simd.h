// Vectors of the width of the instruction set that this unit is compiled for: v4 sixteen floats, v3 eight, base four.
//
// A wider type than the hardware's is lowered to memory traffic, so the width follows the instruction set. Everything is in an unnamed
// namespace: an inline function with external linkage would be a weak symbol, and the linker might keep the AVX-512 copy for all.
// For the same reason kernels use no standard library templates that are not surely inlined. tests/ops/test_build.py looks.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../kernels.h"

#ifndef EMC_ISA
#error "kernels are compiled with -DEMC_ISA=<namespace>"
#endif
#define EMC_INLINE inline __attribute__((always_inline))

namespace emc::EMC_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t U16 __attribute__((vector_size(2 * W)));
typedef uint64_t U64 __attribute__((vector_size(8 * W)));

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

EMC_INLINE F splat(float x) { return x - F{}; }
EMC_INLINE U splat(uint32_t x) { return x - U{}; }
EMC_INLINE U iota() {
  U v;
  for (int i = 0; i < W; ++i) v[i] = static_cast<uint32_t>(i);
  return v;
}
EMC_INLINE F select(I mask, F a, F b) { return mask ? a : b; }  // mask: all bits or none, as comparisons give
EMC_INLINE U select(I mask, U a, U b) { return mask ? a : b; }
// Lane i of the result is lane m[i] of a and b put together. The indices are constants wherever it is used.
template <class V>
EMC_INLINE V shuffle(V a, V b, U m) {
#if defined(__clang__)
  V v;
  for (int i = 0; i < W; ++i) v[i] = m[i] < W ? a[m[i]] : b[m[i] - W];
  return v;
#else
  return __builtin_shuffle(a, b, m);
#endif
}
// The lanes of two vectors dealt out in turn: those of their lower halves, and those of their upper halves.
EMC_INLINE void deal(F a, F b, F* lower, F* upper) {
  U low, high;
  for (int i = 0; i < W; ++i) {
    low[i] = static_cast<uint32_t>(i / 2 + i % 2 * W);
    high[i] = low[i] + static_cast<uint32_t>(W / 2);
  }
  *lower = shuffle(a, b, low), *upper = shuffle(a, b, high);
}
// W vectors of W, transposed in place: each round deals the rows of both halves out in turn, which rotates the bits of (row, lane) by one.
EMC_INLINE void transpose(F (&x)[W]) {
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    F y[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) deal(x[i], x[i + W / 2], y + 2 * i, y + 2 * i + 1);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = y[i];
  }
}
// Sums of neighbours at the distance kHalf: of a in the lanes whose number has that bit clear, of b in the others. Two vectors are laid
// into one, first in the lanes where they stay, then with their lanes changed over; by name, for a compiler takes the slower shuffle of two
// vectors by indices.
template <int kHalf>
EMC_INLINE F fold(F a, F b) {
#if defined(__AVX512F__)
  const __m512 x = (__m512)a, y = (__m512)b;
  if constexpr (kHalf == 8)
    return (F)_mm512_mask_blend_ps(0xff00, x, y) + (F)_mm512_shuffle_f32x4(x, y, 0x4e);
  else if constexpr (kHalf == 2)
    return (F)_mm512_mask_blend_ps(0xcccc, x, y) + (F)_mm512_shuffle_ps(x, y, 0x4e);
  else if constexpr (kHalf == 4) {
    const __m512 crossing = _mm512_mask_blend_ps(0x0f0f, x, y);
    return (F)_mm512_mask_blend_ps(0xf0f0, x, y) + (F)_mm512_shuffle_f32x4(crossing, crossing, 0xb1);
  } else
    return (F)_mm512_mask_blend_ps(0xaaaa, x, y) + (F)_mm512_permute_ps(_mm512_mask_blend_ps(0x5555, x, y), 0xb1);
#else
  U staying, crossing;
  for (int i = 0; i < W; ++i) {
    const bool second = (i & kHalf) != 0;
    staying[i] = static_cast<uint32_t>(second ? W + i : i);
    crossing[i] = static_cast<uint32_t>((second ? W + i : i) ^ kHalf);
  }
  return shuffle(a, b, staying) + shuffle(a, b, crossing);
#endif
}
// Lane i of the result is the sum over the lanes of x[i].
EMC_INLINE F sum_each(F (&x)[W]) {
  const auto round = [&](auto half) __attribute__((always_inline)) {
    constexpr int kHalf = decltype(half)::kValue;
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) x[i] = fold<kHalf>(x[i], x[i + kHalf]);
  };
  if constexpr (W >= 16) round(Number<8>());
  if constexpr (W >= 8) round(Number<4>());
  round(Number<2>());
  round(Number<1>());
  return x[0];
}
EMC_INLINE F max(F a, F b) { return a > b ? a : b; }
EMC_INLINE F min(F a, F b) { return a < b ? a : b; }
// As a > bound ? bound : a and a < bound ? bound : a; a NaN stays. By name, for compilers make a comparison and a blend of the former.
EMC_INLINE F at_most(F a, float bound) {
#if defined(__AVX512F__)
  return (F)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)a);  // the second where one is NaN
#elif defined(__AVX2__)
  return (F)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)a);
#elif defined(__SSE2__)
  return (F)_mm_min_ps(_mm_set1_ps(bound), (__m128)a);
#else
  return a > bound ? splat(bound) : a;
#endif
}
EMC_INLINE F at_least(F a, float bound) {
#if defined(__AVX512F__)
  return (F)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)a);
#elif defined(__AVX2__)
  return (F)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)a);
#elif defined(__SSE2__)
  return (F)_mm_max_ps(_mm_set1_ps(bound), (__m128)a);
#else
  return a < bound ? splat(bound) : a;
#endif
}
EMC_INLINE F abs(F a) { return (F)((U)a & 0x7fffffffu); }

// a * b + c, rounded once where the hardware does that. The compiler contracts a plain a * b + c as well, but may do so in one copy of a
// loop and not in another; written this way a result does not depend on which copy the strides have chosen.
EMC_INLINE F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
EMC_INLINE F fma(F a, F b, float c) { return fma(a, b, splat(c)); }
EMC_INLINE F fma(F a, float b, F c) { return fma(a, splat(b), c); }

EMC_INLINE F sqrt(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (F)_mm_sqrt_ps((__m128)x);
#else
  F y;
  for (int i = 0; i < W; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
#endif
}

// Sum and maximum over the lanes, in a fixed order: halves folded onto each other.
typedef float F4 __attribute__((vector_size(16)));
template <class Fold>
EMC_INLINE float reduce(F v, Fold fold) {
#if defined(__AVX512F__)
  const __m256 v8 = (__m256)fold(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  const F4 v4 = (F4)fold(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
#elif defined(__AVX2__)
  const F4 v4 = (F4)fold(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
  const F4 v4 = (F4)v;
#endif
  return fold(fold(v4[0], v4[2]), fold(v4[1], v4[3]));
}
EMC_INLINE float sum(F v) {
  return reduce(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
EMC_INLINE float max(F v) {
  return reduce(v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// --- 16-bit floats: bits widened to 32 <-> float, round to nearest even ---
EMC_INLINE F half_to_float(U16 h16) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps((__m256i)h16);
#elif defined(__F16C__)
  return (F)_mm256_cvtph_ps((__m128i)h16);
#else
  const U h = __builtin_convertvector(h16, U);
  const U magnitude = h & 0x7fffu;
  // Shift exponent and fraction into place and let a multiplication by 2^112 correct the bias: right for subnormals too.
  const F scaled = (F)(magnitude << 13) * 0x1p112f;
  const U bits = select((I)(magnitude >= 0x7c00u), (magnitude << 13) | 0x7f800000u, (U)scaled);
  return (F)(bits | ((h & 0x8000u) << 16));
#endif
}
EMC_INLINE U16 float_to_half(F f) {
#if defined(__AVX512F__)
  return (U16)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (U16)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const U sign = (U)f & 0x80000000u, m = (U)f & 0x7fffffffu;
  const U normal = (m + (0xc8000fffu + ((m >> 13) & 1u))) >> 13;  // bias 127 -> 15, half an ulp less one, ties to even
  const F magic = (F)splat(0x3f000000u);                          // 0.5: the addition rounds subnormals at bit 0
  const U subnormal = (U)((F)m + magic) - 0x3f000000u;
  U h = select((I)(m < 0x38800000u), subnormal, normal);
  h = select((I)(m >= 0x47800000u), splat(0x7c00u), h);
  h = select((I)(m > 0x7f800000u), splat(0x7e00u), h);
  return __builtin_convertvector(h | (sign >> 16), U16);
#endif
}
EMC_INLINE F bfloat_to_float(U16 b) { return (F)(__builtin_convertvector(b, U) << 16); }
EMC_INLINE U16 float_to_bfloat(F f) {
  const U u = (U)f;
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return __builtin_convertvector(select((I)((u & 0x7fffffffu) > 0x7f800000u), (u >> 16) | 0x40u, rounded), U16);
}

// --- memory: whole vectors, the first n lanes (the rest are zero), or n elements a stride apart ---
EMC_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
EMC_INLINE U16 load_bits(const void* p) {
  U16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
EMC_INLINE F load(const Half* p) { return half_to_float(load_bits(p)); }
EMC_INLINE F load(const BFloat16* p) { return bfloat_to_float(load_bits(p)); }
EMC_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
EMC_INLINE void store(Half* p, F v) {
  const U16 h = float_to_half(v);
  std::memcpy(p, &h, sizeof h);
}
EMC_INLINE void store(BFloat16* p, F v) {
  const U16 h = float_to_bfloat(v);
  std::memcpy(p, &h, sizeof h);
}

EMC_INLINE F load_n(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (F)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#elif defined(__AVX2__)
  return (F)_mm256_maskload_ps(p, (__m256i)((I)iota() < static_cast<int32_t>(n)));
#else
  F v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return v;
#endif
}
EMC_INLINE U16 load_bits_n(const void* p, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (U16)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), p);
#else
  U16 v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * 2);
  return v;
#endif
}
EMC_INLINE F load_n(const Half* p, int64_t n) { return half_to_float(load_bits_n(p, n)); }
EMC_INLINE F load_n(const BFloat16* p, int64_t n) { return bfloat_to_float(load_bits_n(p, n)); }
EMC_INLINE void store_n(float* p, F v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, (__m256i)((I)iota() < static_cast<int32_t>(n)), (__m256)v);
#else
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof *p);
#endif
}
EMC_INLINE void store_bits_n(void* p, U16 h, int64_t n) { std::memcpy(p, &h, static_cast<size_t>(n) * 2); }
EMC_INLINE void store_n(Half* p, F v, int64_t n) { store_bits_n(p, float_to_half(v), n); }
EMC_INLINE void store_n(BFloat16* p, F v, int64_t n) { store_bits_n(p, float_to_bfloat(v), n); }

// Asks for the cache lines that a vector of elements from p + kAhead on lies in. Kernels that compute much per element outrun the window in
// which a processor finds its next loads by itself, and its own prefetchers do not make up for that: without this, noise made beside memory
// that is read cost twice. Nothing happens where there is no such memory.
constexpr int64_t kAhead = 512;
template <class T>
EMC_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p + kAhead);
}

// n in 1..W elements of a row, a stride apart: the one load that kernels over Rows need.
template <class T>
EMC_INLINE F load_some(const T* p, int64_t stride, int64_t n) {
  if (stride == 1) return n >= W ? load(p) : load_n(p, n);
  T gathered[W] = {};
  for (int i = 0; i < W; ++i)
    if (i < n) gathered[i] = p[i * stride];
  return load(gathered);
}
template <class T>
EMC_INLINE void store_some(T* p, F v, int64_t n) {
  if (n >= W) {
    store(p, v);
  } else {
    store_n(p, v, n);
  }
}

// Results that are too large to be found in a cache later go past the caches: their lines are then not read before they are written, which
// takes a quarter off what moves. Kernels that do so end with `finish_past`: other threads are to see such stores in order.
constexpr int64_t kPastCaches = int64_t{16} << 20;  // bytes of a call's results
EMC_INLINE void store_past(float* p, F v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}
EMC_INLINE void store_bits_past(void* p, U16 h) {
#if defined(__AVX512F__)
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)h);
#elif defined(__AVX2__)
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)h);
#else
  std::memcpy(p, &h, sizeof h);
#endif
}
EMC_INLINE void store_past(Half* p, F v) { store_bits_past(p, float_to_half(v)); }
EMC_INLINE void store_past(BFloat16* p, F v) { store_bits_past(p, float_to_bfloat(v)); }
template <class T>
EMC_INLINE void store_some(T* p, F v, int64_t n, bool past) {
  if (past && n >= W && reinterpret_cast<uintptr_t>(p) % (W * sizeof(T)) == 0) {
    store_past(p, v);
  } else {
    store_some(p, v, n);
  }
}
EMC_INLINE void finish_past([[maybe_unused]] bool past) {
#if defined(__SSE2__)
  if (past) _mm_sfence();
#endif
}
inline int64_t count(const Rows& rows) {
  int64_t elements = rows.width;
  for (int64_t d = 0; d < rows.outer; ++d) elements *= rows.sizes[d];
  return elements;
}

// First element of a row: index over the leading dimensions, last of them fastest.
template <class T>
EMC_INLINE T* row_pointer(const Rows& rows, int64_t row) {
  int64_t offset = 0;
  for (int64_t d = rows.outer - 1; d > 0; --d) {
    const int64_t size = rows.sizes[d];
    offset += (row % size) * rows.strides[d];
    row /= size;
  }
  if (rows.outer > 0) offset += row * rows.strides[0];
  return static_cast<T*>(rows.data) + offset;
}

}  // namespace
}  // namespace emc::EMC_ISA

// Runs `call<T>(...)` for the element type that a DType names.
#define EMC_FOR_DTYPE(dtype, call, ...) \
  do {                                  \
    switch (dtype) {                    \
      case ::emc::DType::kFloat32:      \
        call<float>(__VA_ARGS__);       \
        break;                          \
      case ::emc::DType::kFloat16:      \
        call<Half>(__VA_ARGS__);        \
        break;                          \
      case ::emc::DType::kBFloat16:     \
        call<BFloat16>(__VA_ARGS__);    \
        break;                          \
    }                                   \
  } while (false)
