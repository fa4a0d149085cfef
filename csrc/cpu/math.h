// exp, log and sin/cos of whole turns on vectors, about 1 ulp; polynomials after Cephes (S. Moshier), arranged for vectors without
// branches.
#pragma once

#include "simd.h"

namespace emc::EMC_ISA {
namespace {

// Nearest integer, as a float, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
EMC_INLINE F round_small(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (F)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const F magic = splat(0x1.8p23f);
  return (x + magic) - magic;
#endif
}

// e^x for every float: 0 below the smallest subnormal, inf above the largest float, NaN stays.
EMC_INLINE F exp(F x) {
  const F clamped = min(max(x, splat(-104.f)), splat(89.f));  // a NaN compares false and becomes a bound; restored at the end
  const F n = round_small(clamped * 1.44269504088896341f);
  F r = fma(n, -0.693359375f, clamped);  // ln 2 in two parts; the first has few bits, so n times it is exact
  r = fma(n, 2.12194440e-4f, r);
  F p = splat(1.9875691500e-4f);
  p = fma(p, r, 1.3981999507e-3f);
  p = fma(p, r, 8.3334519073e-3f);
  p = fma(p, r, 4.1665795894e-2f);
  p = fma(p, r, 1.6666665459e-1f);
  p = fma(p, r, 5.0000001201e-1f);
  const F y = fma(p, r * r, r) + 1.f;
#if defined(__AVX512F__)
  const F scaled = (F)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  // 2^n in two factors, since it may be subnormal or inf while the result is not.
  const I whole = __builtin_convertvector(n, I), half = whole >> 1;
  const F scaled = y * (F)((half + 127) << 23) * (F)((whole - half + 127) << 23);
#endif
  return select((I)(x == x), scaled, x);
}

// e^x for x <= 0, where softmax lives: exactly 0 below about -87.7 (no subnormals), NaN stays. Cheaper than exp, as accurate.
EMC_INLINE F exp_nonpositive(F x) {
#if defined(__AVX512F__)
  x = (F)_mm512_max_ps(_mm512_set1_ps(-88.f), (__m512)x);  // the second where one is NaN
#else
  x = x < -88.f ? splat(-88.f) : x;
#endif
  constexpr float kMagic = 0x1.8p23f + 127.f;  // the low bits hold the nearest integer and the bias of an exponent
  const F shifted = x * 1.44269504088896341f + kMagic;
  const F n = shifted - kMagic;
  F r = x - n * 0.693359375f;  // as in exp
  r = r - n * -2.12194440e-4f;
  F p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  return p * (F)((U)shifted << 23);  // n = -127 makes the factor 0
}

// ln x: -inf for 0, NaN below it, inf and NaN stay; subnormals are right.
EMC_INLINE F log(F x) {
  const I tiny = (I)(x < 0x1p-126f);
  const F scaled = select(tiny, x * 0x1p23f, x);
  const I bits = (I)scaled;
  // Mantissa in [sqrt(1/2), sqrt(2)): the offset makes the exponent field step there.
  const I shifted = bits - 0x3f3504f3;
  F e = __builtin_convertvector(shifted >> 23, F);
  e = e - select(tiny, splat(23.f), F{});
  const F f = (F)((shifted & 0x7fffff) + 0x3f3504f3) - 1.f;
  const F z = f * f;
  F p = splat(7.0376836292e-2f);
  p = fma(p, f, -1.1514610310e-1f);
  p = fma(p, f, 1.1676998740e-1f);
  p = fma(p, f, -1.2420140846e-1f);
  p = fma(p, f, 1.4249322787e-1f);
  p = fma(p, f, -1.6668057665e-1f);
  p = fma(p, f, 2.0000714765e-1f);
  p = fma(p, f, -2.4999993993e-1f);
  p = fma(p, f, 3.3333331174e-1f);
  F y = f * z * p;
  y = fma(e, -2.12194440e-4f, y);
  y = fma(z, -0.5f, y);
  F result = fma(e, 0.693359375f, f + y);
  result = select((I)(x == __builtin_inff()), x, result);
  result = select((I)(x == 0.f), splat(-__builtin_inff()), result);
  return select((I)(x >= 0.f), result, splat(__builtin_nanf("")));
}

// sin and cos of 2 pi u for u in [0, 1]. Turns are reduced exactly to an eighth either side of a quarter, so small values are as good as
// large.
EMC_INLINE void sincos_turns(F u, F* sine, F* cosine) {
  const F q = round_small(u * 4.f);
  const F x = fma(q, -0.25f, u) * 6.28318530717958648f;
  const F z = x * x;
  F s = splat(-1.9515295891e-4f);
  s = fma(s, z, 8.3321608736e-3f);
  s = fma(s, z, -1.6666654611e-1f);
  s = fma(s * z, x, x);
  F c = splat(2.443315711809948e-5f);
  c = fma(c, z, -1.388731625493765e-3f);
  c = fma(c, z, 4.166664568298827e-2f);
  c = fma(c, z * z, fma(z, -0.5f, splat(1.f)));
  const I quarter = __builtin_convertvector(q, I);
  const I odd = (quarter & 1) != 0;
  const U sine_sign = (U)(quarter & 2) << 30, cosine_sign = (U)((quarter + 1) & 2) << 30;
  *sine = (F)((U)select(odd, c, s) ^ sine_sign);
  *cosine = (F)((U)select(odd, s, c) ^ cosine_sign);
}

}  // namespace
}  // namespace emc::EMC_ISA
