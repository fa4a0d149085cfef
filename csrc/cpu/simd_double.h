// Vectors of doubles as wide as the floats of simd.h are: half as many lanes.
#pragma once

#include "simd.h"

namespace emc::EMC_ISA {
namespace {

constexpr int H = W / 2;
typedef double D __attribute__((vector_size(8 * H)));
typedef float FHalf __attribute__((vector_size(4 * H)));

EMC_INLINE D splat(double x) { return x - D{}; }
EMC_INLINE D min(D a, D b) {
#if defined(__AVX512F__)
  return (D)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (D)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (D)_mm_min_pd((__m128d)a, (__m128d)b);
#else
  return a < b ? a : b;
#endif
}

// The floats of a vector as two vectors of doubles.
EMC_INLINE void widen(F v, D* low, D* high) {
  struct {
    FHalf low, high;
  } half;
  std::memcpy(&half, &v, sizeof half);
  *low = __builtin_convertvector(half.low, D);
  *high = __builtin_convertvector(half.high, D);
}

// n in 1..H floats a stride apart, widened; the other lanes are zero.
EMC_INLINE D load_channels(const float* p, int64_t stride, int64_t n) {
  if (stride == 1 && n == H) {
    FHalf v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, D);
  }
  D v = {};
  for (int i = 0; i < H; ++i)
    if (i < n) v[i] = p[i * stride];
  return v;
}

}  // namespace
}  // namespace emc::EMC_ISA
