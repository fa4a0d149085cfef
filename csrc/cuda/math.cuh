// Exponentials, logarithm and sine in float32, about 1 ulp, from multiplications and additions alone.
//
// The toolkit's own functions are as good, but differ in their last bits from version to version and cannot run on the emulator. These give
// the same bits everywhere.
#pragma once

#include "base.cuh"

namespace emc::cuda {

// The nearest integer n to x, and 2^n if n is within [-126, 127].
struct Rounded {
  float shifted;  // adding 1.5 * 2^23 leaves no bit below the units: n stands in the low bits of the mantissa

  __device__ __forceinline__ explicit Rounded(float x) : shifted(x + 12582912.0f) {}
  __device__ __forceinline__ float integer() const { return shifted - 12582912.0f; }
  __device__ __forceinline__ int whole() const { return static_cast<int>(__float_as_uint(shifted)) - 0x4b400000; }
  __device__ __forceinline__ float power() const { return __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u); }
};

__device__ __forceinline__ float at_most(float x, float bound) { return x > bound ? bound : x; }  // a NaN stays
__device__ __forceinline__ float at_least(float x, float bound) { return x < bound ? bound : x; }
__device__ __forceinline__ float power_of_two(int n) { return __uint_as_float(static_cast<unsigned>(n + 127) << 23); }

// e^x for every float: 0 below the smallest subnormal, inf above the largest number, a NaN stays.
__device__ __forceinline__ float exp_any(float x) {
  const float bounded = at_least(at_most(x, 89.0f), -104.0f);
  const Rounded n(bounded * 1.44269504f);
  float r = fmaf(n.integer(), -0.693359375f, bounded);  // ln 2 in two parts; the first has few bits, so n times it is exact
  r = fmaf(n.integer(), 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  const float y = fmaf(p, r * r, r) + 1.0f;
  const int whole = n.whole(), half = whole >> 1;  // 2^n in two factors: it may be subnormal or inf while the result is not
  const float scaled = y * power_of_two(half) * power_of_two(whole - half);
  return x == x ? scaled : x;
}

// 2^x for x below 127: 0 below the normal numbers, a NaN stays.
__device__ __forceinline__ float exp2_moderate(float x) {
  const float bounded = at_least(x, -127.0f);  // where the power of two is 0
  const Rounded n(bounded);
  const float r = bounded - n.integer();
  float p = 1.535336206e-4f;  // minimax of (2^r - 1) / r, relative error of 2^r 2e-9
  p = fmaf(p, r, 1.339887459e-3f);
  p = fmaf(p, r, 9.618437359e-3f);
  p = fmaf(p, r, 5.550332471e-2f);
  p = fmaf(p, r, 2.402264791e-1f);
  p = fmaf(p, r, 6.931472029e-1f);
  return fmaf(p, r, 1.0f) * n.power();
}

// e^x = 2^n e^r with |r| <= ln 2 / 2, in parts: e^x - 1 and e^x - 1 - x are put together without the cancellation that a finished e^x
// brings.
struct Exponential {
  float scale;      // 2^n
  float integer;    // n
  float r;          // x - n ln 2; far from 0 where n had to be bounded
  float bounded;    // r, but not below -1: 2^n has already taken such a term below the last bit
  float curvature;  // e^r - 1 - r

  __device__ __forceinline__ explicit Exponential(float x) {
    const Rounded n(at_least(at_most(x * 1.44269504f, 127.0f), -126.0f));
    scale = n.power();
    integer = n.integer();
    r = fmaf(integer, 2.12194440e-4f, fmaf(integer, -0.693359375f, x));
    bounded = at_least(r, -1.0f);
    float p = 1.985780254e-4f;  // minimax of (e^r - 1 - r) / r^2, relative error 3e-9
    p = fmaf(p, bounded, 1.393360668e-3f);
    p = fmaf(p, bounded, 8.333360776e-3f);
    p = fmaf(p, bounded, 4.166646674e-2f);
    p = fmaf(p, bounded, 1.666666716e-1f);
    p = fmaf(p, bounded, 0.5f);
    curvature = p * (bounded * bounded);
  }
  // e^x, 0 below the normal numbers
  __device__ __forceinline__ float value() const { return r < -1.0f ? 0.0f : scale * (1.0f + (bounded + curvature)); }
  // e^x - 1
  __device__ __forceinline__ float minus_one() const { return fmaf(scale, bounded + curvature, scale - 1.0f); }
  // e^x - 1 - x, never negative; with n = 0 the polynomial alone
  __device__ __forceinline__ float minus_tangent() const {
    const float whole = scale - 1.0f;
    return fmaf(scale, curvature, fmaf(whole, r, fmaf(integer, -0.693147182f, whole)));
  }
};

// ln u for a normal u > 0.
__device__ __forceinline__ float log_normal(float u) {
  const int bits = static_cast<int>(__float_as_uint(u)) - 0x3f3504f3;  // the mantissa in [sqrt(1/2), sqrt(2)) steps the exponent here
  const float e = static_cast<float>(bits >> 23);
  const float f = __uint_as_float(static_cast<unsigned>((bits & 0x7fffff) + 0x3f3504f3)) - 1.0f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = fmaf(p, f, -1.1514610310e-1f);
  p = fmaf(p, f, 1.1676998740e-1f);
  p = fmaf(p, f, -1.2420140846e-1f);
  p = fmaf(p, f, 1.4249322787e-1f);
  p = fmaf(p, f, -1.6668057665e-1f);
  p = fmaf(p, f, 2.0000714765e-1f);
  p = fmaf(p, f, -2.4999993993e-1f);
  p = fmaf(p, f, 3.3333331174e-1f);
  float y = f * z * p;
  y = fmaf(e, -2.12194440e-4f, y);
  y = fmaf(z, -0.5f, y);
  return fmaf(e, 0.693359375f, f + y);
}

// sin and cos of 2 pi u for u in [0, 1]. Turns are reduced exactly, so small values are as good as large.
__device__ __forceinline__ void sincos_turns(float u, float* sine, float* cosine) {
  const Rounded quarters(u * 4.0f);
  const float x = fmaf(quarters.integer(), -0.25f, u) * 6.28318531f;
  const float z = x * x;
  float s = -1.9515295891e-4f;
  s = fmaf(s, z, 8.3321608736e-3f);
  s = fmaf(s, z, -1.6666654611e-1f);
  s = fmaf(s * z, x, x);
  float c = 2.443315711809948e-5f;
  c = fmaf(c, z, -1.388731625493765e-3f);
  c = fmaf(c, z, 4.166664568298827e-2f);
  c = fmaf(c, z * z, fmaf(z, -0.5f, 1.0f));
  const unsigned quarter = static_cast<unsigned>(quarters.whole());
  const bool odd = (quarter & 1u) != 0;
  *sine = __uint_as_float(__float_as_uint(odd ? c : s) ^ ((quarter & 2u) << 30));
  *cosine = __uint_as_float(__float_as_uint(odd ? s : c) ^ (((quarter + 1u) & 2u) << 30));
}

}  // namespace emc::cuda
