// Philox4x32-10 (Salmon et al., SC 2011) in registers, the noise of a row as docs/operators.md defines it, and the kernels of the philox
// operators.
#pragma once

#include "math.cuh"
#include "philox_arguments.h"

namespace emc::cuda {

// Where the noise of one row begins.
struct NoiseRow {
  uint32_t key_low, key_high, r, stream;
  uint64_t block;  // of the row's first element
};

// Row of a tensor (*lead, T, d): `row` is the flat index over (*lead, T).
__device__ __forceinline__ NoiseRow noise_row(const DeviceNoise& noise, int64_t row, int64_t width) {
  int64_t lead, frame, which, r;
  divide(row, noise.frames, &lead, &frame);
  divide(lead, noise.rows_per_seed, &which, &r);
  const uint64_t seed = static_cast<uint64_t>(__ldg(noise.seeds + which));
  const uint64_t offset = noise.frame_offset != nullptr ? static_cast<uint64_t>(__ldg(noise.frame_offset)) : 0;
  const uint64_t blocks = static_cast<uint64_t>((width + 3) / 4);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(r), noise.stream,
          (static_cast<uint64_t>(frame) + offset) * blocks};
}

// The four words of a block.
__device__ __forceinline__ void words(const NoiseRow& row, int64_t block, uint32_t (&c)[4]) {
  const uint64_t n = row.block + static_cast<uint64_t>(block);
  uint32_t low = row.key_low, high = row.key_high;
  c[0] = static_cast<uint32_t>(n);
  c[1] = static_cast<uint32_t>(n >> 32);
  c[2] = row.r;
  c[3] = row.stream;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t first = __umulhi(c[2], 0xCD9E8D57u) ^ c[1] ^ low, third = __umulhi(c[0], 0xD2511F53u) ^ c[3] ^ high;
    c[1] = c[2] * 0xCD9E8D57u;
    c[3] = c[0] * 0xD2511F53u;
    c[0] = first;
    c[2] = third;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
}

// (w >> 9 + 1/2) 2^-23: exact, never 0 or 1.
__device__ __forceinline__ float uniform(uint32_t w) { return (static_cast<float>(w >> 9) + 0.5f) * 1.1920929e-7f; }

__device__ __forceinline__ void normals(const uint32_t (&w)[4], float* x) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    float sine, cosine;
    sincos_turns(uniform(w[k + 1]), &sine, &cosine);
    const float radius = sqrtf(-2.0f * log_normal(uniform(w[k])));
    x[k] = radius * cosine;
    x[k + 1] = radius * sine;
  }
}

// The four words, and the normals, of the elements [i, i + kVector) of a row; i is a multiple of kVector.
__device__ __forceinline__ void words_at(const NoiseRow& row, int64_t i, uint32_t (&w)[kVector]) { words(row, i / kVector, w); }
__device__ __forceinline__ void normals_at(const NoiseRow& row, int64_t i, float (&x)[kVector]) {
  uint32_t w[kVector];
  words_at(row, i, w);
  normals(w, x);
}

template <class T, bool kNormal>
__global__ void __launch_bounds__(kThreads) philox_fill(const PhiloxFill a) {
  constexpr int n = kVector;
  T* const out = static_cast<T*>(a.out);
  const Lanes lanes(a.lanes);
  for (int64_t row = lanes.row; row < a.rows; row += lanes.step) {
    const NoiseRow noise = noise_row(a.noise, row, a.width);
    for (int64_t i = lanes.sub * n; i < a.width; i += lanes.lanes * n) {
      float x[n];
      if constexpr (kNormal) {
        normals_at(noise, i, x);
      } else {
        uint32_t w[n];
        words_at(noise, i, w);
#pragma unroll
        for (int k = 0; k < n; ++k) x[k] = uniform(w[k]);
      }
      store(out + row * a.width + i, a.width - i, a.wide_out, x);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) dropout(const DropoutArguments a) {
  constexpr int n = kVector;
  T* const out = static_cast<T*>(a.out);
  const Lanes lanes(a.lanes);
  for (int64_t row = lanes.row; row < a.walk.rows; row += lanes.step) {
    const NoiseRow noise = noise_row(a.noise, row, a.walk.width);
    int64_t offset[1];
    row_offsets(a.walk, {a.x.outer}, row, offset);
    const T* const from = static_cast<const T*>(a.x.data) + offset[0];
    for (int64_t i = lanes.sub * n; i < a.walk.width; i += lanes.lanes * n) {
      const int64_t left = a.walk.width - i;
      float x[n];
      load(from + i * a.x.stride, a.x.stride, left, a.wide_in, x);
      uint32_t w[n];
      words_at(noise, i, w);
#pragma unroll
      for (int k = 0; k < n; ++k) x[k] = (w[k] >> 9) >= a.keep_from ? x[k] * a.scale : 0.0f;  // a NaN that is dropped is gone
      store(out + row * a.walk.width + i, left, a.wide_out, x);
    }
  }
}

}  // namespace emc::cuda
