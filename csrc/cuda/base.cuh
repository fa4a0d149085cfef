// What all CUDA kernels share: number types, rows of any stride, and the layout of rows on lanes. No host headers: NVRTC compiles this too.
//
// Everything is compiled without contraction (-fmad=false); where a product is added to something the code says fmaf. So a result does not
// depend on which copy of a loop the strides have chosen, and the emulator computes the very bits that a GPU does.
#pragma once

#include "../kernels.h"
#include "ptx.cuh"

namespace emc::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block, wherever rows are dealt out to warps
constexpr unsigned kFullMask = 0xffffffffu;
constexpr float kInf = __builtin_huge_valf();

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Half x) { return half_to_float(x.bits); }
__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ Half from_float<Half>(float x) {
  return {float_to_half(x)};
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float x) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  return {static_cast<unsigned short>((x == x ? rounded : bits | 0x400000u) >> 16)};
}

// Elements of 16 bytes: what a lane takes at once of a row. How a row is dealt out to lanes never depends on strides.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// The elements [0, left) of a vector at p, zeros beyond. `wide`: 16 bytes at once.
template <class T>
__device__ __forceinline__ void load(const T* p, int64_t stride, int64_t left, bool wide, float (&x)[kVector<T>]) {
  constexpr int n = kVector<T>;
  union {
    uint4 whole;
    T part[n];
  } v;
  if (wide) {
    v.whole = __ldg(reinterpret_cast<const uint4*>(p));
#pragma unroll
    for (int k = 0; k < n; ++k) x[k] = to_float(v.part[k]);
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) x[k] = k < left ? to_float(p[k * stride]) : 0.0f;
  }
}
template <class T>
__device__ __forceinline__ void store(T* p, int64_t left, bool wide, const float (&x)[kVector<T>]) {
  constexpr int n = kVector<T>;
  union {
    uint4 whole;
    T part[n];
  } v;
#pragma unroll
  for (int k = 0; k < n; ++k) v.part[k] = from_float<T>(x[k]);
  if (wide) {
    *reinterpret_cast<uint4*>(p) = v.whole;
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k)
      if (k < left) p[k] = v.part[k];
  }
}

// Quotient and remainder of numbers that nearly always fit 32 bits, where division takes a fifth of the time.
__device__ __forceinline__ void divide(int64_t a, int64_t b, int64_t* quotient, int64_t* remainder) {
  if (((static_cast<uint64_t>(a) | static_cast<uint64_t>(b)) >> 32) == 0) {
    const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    *quotient = q;
    *remainder = static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b);
  } else {
    *quotient = a / b;
    *remainder = a - *quotient * b;
  }
}

// First element of a row in memory of any strides.
__device__ __forceinline__ int64_t row_offset(const Walk& walk, const int64_t* strides, int64_t row) {
  int64_t offset = 0;
  for (int d = walk.outer - 1; d > 0; --d) {
    int64_t at;
    divide(row, walk.sizes[d], &row, &at);
    offset += at * strides[d];
  }
  return walk.outer > 0 ? offset + row * strides[0] : 0;
}
template <class T>
__device__ __forceinline__ const T* row_of(const Walk& walk, const Operand& operand, int64_t row) {
  return static_cast<const T*>(operand.data) + row_offset(walk, operand.outer, row);
}

// A warp takes 32 / lanes rows at once, `lanes` lanes to a row.
struct Lanes {
  int lanes, sub;     // lanes to a row; this lane's number among them
  int64_t row, step;  // this lane's first row; from there to its next one
  __device__ __forceinline__ explicit Lanes(int lanes_) : lanes(lanes_) {
    const int lane = threadIdx.x % kWarp, rows = kWarp / lanes;
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    sub = lane % lanes;
    row = warp * rows + lane / lanes;
    step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp) * rows;
  }
  // The sum over the lanes of a row, in each of them. All lanes of the warp must come.
  template <class X>
  __device__ __forceinline__ X sum(X x) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullMask, x, distance);
    return x;
  }
};

}  // namespace emc::cuda
