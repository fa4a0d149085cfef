// What all CUDA kernels share: number types, rows of any stride, and the layout of rows on lanes. No host headers: NVRTC compiles this too.
//
// Everything is compiled without contraction (-fmad=false); where a product is added to something the code says fmaf. So a result does not
// depend on which copy of a loop the strides have chosen, and the emulator computes the very bits that a GPU does, but for the tensor
// cores' sums, ex2.approx and what a NaN carries.
#pragma once

#include "../kernels.h"
#include "ptx.cuh"

namespace emc::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block, wherever rows are dealt out to warps
constexpr unsigned kFullMask = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

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
  return {float_to_bfloat(x)};
}

// Elements that a lane takes at once of a row. How a row is dealt out to lanes never depends on strides.
constexpr int kVector = 4;

template <class T>
struct FourOf {
  using type = uint2;
};
template <>
struct FourOf<float> {
  using type = uint4;
};

// A vector as it stands in memory. The elements [0, left) of those at p, zeros beyond; `wide`: all at once.
template <class T>
struct Vector {
  using Whole = typename FourOf<T>::type;
  static constexpr int n = kVector;
  union {
    Whole whole;
    T part[n];
  };

  __device__ __forceinline__ Vector() {}
  __device__ __forceinline__ Vector(const T* p, int64_t stride, int64_t left, bool wide) {
    if (wide) {
      whole = __ldg(reinterpret_cast<const Whole*>(p));
    } else {
#pragma unroll
      for (int k = 0; k < n; ++k) part[k] = k < left ? p[k * stride] : from_float<T>(0.0f);
    }
  }
  __device__ __forceinline__ float get(int k) const { return to_float(part[k]); }
  __device__ __forceinline__ void set(int k, float x) { part[k] = from_float<T>(x); }
  __device__ __forceinline__ void store(T* p, int64_t left, bool wide) const {
    if (wide) {
      *reinterpret_cast<Whole*>(p) = whole;
    } else {
#pragma unroll
      for (int k = 0; k < n; ++k)
        if (k < left) p[k] = part[k];
    }
  }
};
template <class T>
__device__ __forceinline__ void load(const T* p, int64_t stride, int64_t left, bool wide, float (&x)[kVector]) {
  const Vector<T> v(p, stride, left, wide);
#pragma unroll
  for (int k = 0; k < kVector; ++k) x[k] = v.get(k);
}
template <class T>
__device__ __forceinline__ void store(T* p, int64_t left, bool wide, const float (&x)[kVector]) {
  Vector<T> v;
#pragma unroll
  for (int k = 0; k < kVector; ++k) v.set(k, x[k]);
  v.store(p, left, wide);
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

// First elements of a row in several tensors of any strides: one division per dimension for all of them.
template <int kCount>
__device__ __forceinline__ void row_offsets(const Walk& walk, const int64_t* const (&strides)[kCount], int64_t row,
                                            int64_t (&offset)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) offset[k] = 0;
#pragma unroll 1
  for (int d = walk.outer - 1; d >= 0; --d) {
    int64_t at = row;
    if (d > 0) divide(row, walk.sizes[d], &row, &at);
#pragma unroll
    for (int k = 0; k < kCount; ++k) offset[k] += at * strides[k][d];
  }
}

// The block's shared memory, of the size that the launch asked for. The only way to it, so that the emulator has it in its hands.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef EMC_EMULATOR
  return static_cast<T*>(emu::shared());
#else
  extern __shared__ uint4 emc_shared[];
  return reinterpret_cast<T*>(emc_shared);
#endif
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
  // The sum over the rows that a warp takes at once, of a number that each lane of a row has.
  template <class X>
  __device__ __forceinline__ X sum_of_rows(X x) const {
    for (int distance = lanes; distance < kWarp; distance *= 2) x += __shfl_xor_sync(kFullMask, x, distance);
    return x;
  }
  // The largest over the lanes of a row; a NaN is passed over.
  __device__ __forceinline__ float largest(float x) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kFullMask, x, distance);
      x = other > x ? other : x;
    }
    return x;
  }
  // The value of x in the first lane of the row for which `chosen` holds; in none: its own.
  __device__ __forceinline__ float first(bool chosen, float x) const {
    const int lane = threadIdx.x % kWarp;
    const unsigned mine = (kFullMask >> (kWarp - lanes)) << (lane - sub);
    const unsigned found = __ballot_sync(kFullMask, chosen) & mine;
    return __shfl_sync(kFullMask, x, found != 0 ? __ffs(static_cast<int>(found)) - 1 : lane);
  }
};

}  // namespace emc::cuda
