// Exponentials, logarithm, sine and cosine on vectors, about 1 ulp; polynomials after Cephes (S. Moshier), arranged for vectors without
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

// 2^n for an integer n in [-152, 254]; a product with it becomes inf or 0 where that leaves the floats.
struct Power {
#if defined(__AVX512F__)
  F n;
  EMC_INLINE explicit Power(F n_) : n(n_) {}
  EMC_INLINE F times(F y) const { return (F)_mm512_scalef_ps((__m512)y, (__m512)n); }
#else
  F first, second;  // 2^n may be subnormal or inf while the product is not
  EMC_INLINE explicit Power(F n) {
    const I whole = __builtin_convertvector(n, I), half = whole >> 1;
    first = (F)((half + 127) << 23), second = (F)((whole - half + 127) << 23);
  }
  EMC_INLINE F times(F y) const { return y * first * second; }
#endif
};

// Standard deviation e^(v/2) of a log-variance v, and e^v - 1, which keeps its digits near v = 0. NaN stays.
//   v/2 = n ln 2 + r,  q = e^r - 1:  e^(v/2) = 2^n (1 + q),  e^v - 1 = 2^2n (1 + q)^2 - 1, which for n = 0 is 2 q + q^2
struct Deviation {
  F value, variance_minus_one;

  EMC_INLINE explicit Deviation(F logvar) {
    const F h = at_least(at_most(0.5f * logvar, 89.f), -104.f);  // beyond, the deviation is inf or 0
    const F n = round_small(h * 1.44269504088896341f);
    F r = fma(n, -0.693359375f, h);  // ln 2 in two parts; the first has few bits, so n times it is exact
    r = fma(n, 2.12194440e-4f, r);
    F p = splat(1.9875691500e-4f);
    p = fma(p, r, 1.3981999507e-3f);
    p = fma(p, r, 8.3334519073e-3f);
    p = fma(p, r, 4.1665795894e-2f);
    p = fma(p, r, 1.6666665459e-1f);
    p = fma(p, r, 5.0000001201e-1f);
    const F q = fma(p, r * r, r);
    const Power power(n);
    value = power.times(q + 1.f);
    const F one = select((I)(n == 0.f), F{}, splat(1.f));
    variance_minus_one = power.times(power.times(fma(q, q, q + q) + one)) - one;
  }
};

// e^x for x <= 0, where softmax lives: exactly 0 below about -87.7 (no subnormals), NaN stays.
EMC_INLINE F exp_nonpositive(F x) {
  x = at_least(x, -88.f);
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

// ln x of a positive, normal and finite x.
EMC_INLINE F log_normal_number(F x) {
  // Mantissa in [sqrt(1/2), sqrt(2)): the offset makes the exponent field step there.
  const I shifted = (I)x - 0x3f3504f3;
  const F e = __builtin_convertvector(shifted >> 23, F);
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
  return fma(e, 0.693359375f, f + y);
}

// sin and cos of x within an eighth of a turn either side of 0.
EMC_INLINE void sincos_eighth(F x, F* sine, F* cosine) {
  const F z = x * x;
  F s = splat(-1.9515295891e-4f);
  s = fma(s, z, 8.3321608736e-3f);
  s = fma(s, z, -1.6666654611e-1f);
  *sine = fma(s * z, x, x);
  F c = splat(2.443315711809948e-5f);
  c = fma(c, z, -1.388731625493765e-3f);
  c = fma(c, z, 4.166664568298827e-2f);
  *cosine = fma(c, z * z, fma(z, -0.5f, splat(1.f)));
}

}  // namespace
}  // namespace emc::EMC_ISA
