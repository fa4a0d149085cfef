// Kernel of dynamic time warping, D[t,s] = d[t,s] + min(D[t-1,s], D[t,s-1], D[t-1,s-1]).
//
// A warp takes a pair. It goes over x in bands of 32 frames, a lane to a frame; within a band lane r is r columns behind lane 0, so that
// what it needs of the frame above is what lane r - 1 has just computed. The last frame's costs pass from band to band through memory, in
// place: lane 0 reads a column 31 steps before lane 31 writes it.
#pragma once

#include "base.cuh"
#include "dtw_arguments.h"

namespace emc::cuda {

constexpr int kDtwThreads = 128;  // of a block, at the most
constexpr int kColumns = 64;      // columns of y in shared memory: those of this step's lanes and the next 32
constexpr int kPitch = kColumns + 1;

template <class Cost>
__device__ __forceinline__ Cost lesser(Cost a, Cost b) {
  return a < b ? a : b;
}

// Squared distance of two frames, straight from memory: where a frame is too long for shared memory.
template <bool kProduct>
__device__ __forceinline__ float distance_of(const Dtw& a, const float* x, const float* y) {
  float sum = 0.0f, x_norm = 0.0f, y_norm = 0.0f;
  for (int64_t c = 0; c < a.channels; ++c) {
    const float u = x[c * a.x_stride[2]], v = y[c * a.y_stride[2]];
    if constexpr (kProduct) {
      x_norm = fmaf(u, u, x_norm);
      y_norm = fmaf(v, v, y_norm);
      sum = fmaf(-2.0f * u, v, sum);
    } else {
      sum = fmaf(u - v, u - v, sum);
    }
  }
  return kProduct ? x_norm + y_norm + sum : sum;
}

// A band of x and some columns of y, channel by channel, of one warp; with kProduct the squared norms stand behind the channels.
template <bool kProduct>
struct Stage {
  float* x;  // (channels + kProduct, 32)
  float* y;  // (channels + kProduct, kPitch): column s in place s % kColumns

  __device__ __forceinline__ Stage(const Dtw& a, int warp) {
    const int64_t width = a.channels + kProduct;
    x = shared_memory<float>() + warp * width * (kWarp + kPitch);
    y = x + width * kWarp;
  }
  // Frame `lane` of the band, zeros for none.
  __device__ __forceinline__ void put_row(const Dtw& a, const float* from, int lane) const {
    float norm = 0.0f;
    for (int64_t c = 0; c < a.channels; ++c) {
      const float v = from != nullptr ? from[c * a.x_stride[2]] : 0.0f;
      x[c * kWarp + lane] = kProduct ? -2.0f * v : v;
      norm = fmaf(v, v, norm);
    }
    if (kProduct) x[a.channels * kWarp + lane] = norm;
  }
  // The columns [first, first + 32) that there are; `first` is a multiple of 32. All lanes come.
  __device__ __forceinline__ void put_columns(const Dtw& a, const float* from, int64_t first, int64_t frames, int lane) const {
    __syncwarp();
    const int channels = static_cast<int>(a.channels), place = static_cast<int>(first % kColumns);
    for (int i = lane; i < kWarp * channels; i += kWarp) {
      const int column = i / channels, c = i - column * channels;
      if (first + column < frames) y[c * kPitch + place + column] = from[(first + column) * a.y_stride[1] + c * a.y_stride[2]];
    }
    __syncwarp();
    if (kProduct && first + lane < frames) {
      float norm = 0.0f;
      for (int c = 0; c < channels; ++c) norm = fmaf(y[c * kPitch + place + lane], y[c * kPitch + place + lane], norm);
      y[channels * kPitch + place + lane] = norm;
    }
    __syncwarp();
  }
  __device__ __forceinline__ float distance(const Dtw& a, int lane, int64_t s) const {
    const int channels = static_cast<int>(a.channels), place = static_cast<int>(s % kColumns);
    float sum = kProduct ? x[channels * kWarp + lane] + y[channels * kPitch + place] : 0.0f;
#pragma unroll 4
    for (int c = 0; c < channels; ++c) {
      const float u = x[c * kWarp + lane], v = y[c * kPitch + place];
      sum = kProduct ? fmaf(u, v, sum) : fmaf(u - v, u - v, sum);
    }
    return sum;
  }
};

template <class Cost, bool kProduct>
__global__ void __launch_bounds__(kDtwThreads, 4) dtw(const Dtw a) {
  const Cost infinite = static_cast<Cost>(infinity());
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * a.warps + warp;
  Cost* const above_band = static_cast<Cost*>(a.workspace) + number * a.y_frames;
  const Stage<kProduct> stage(a, warp);
  for (int64_t pair = number; pair < a.count; pair += static_cast<int64_t>(a.blocks) * a.warps) {
    const int64_t n = a.pairs[2 * pair], m = a.pairs[2 * pair + 1];
    // The caller cannot look at these numbers without waiting for the device.
    const bool named = n >= 0 && n < a.x_count && m >= 0 && m < a.y_count;
    const int64_t rows = !named ? 0 : a.x_lengths != nullptr ? a.x_lengths[n] : a.x_frames;
    const int64_t frames = !named ? 0 : a.y_lengths != nullptr ? a.y_lengths[m] : a.y_frames;
    if (rows < 1 || rows > a.x_frames || frames < 1 || frames > a.y_frames) {
      if (lane == 0) a.out[pair] = static_cast<double>(__uint_as_float(0x7fc00000u));
      continue;
    }
    const float *const x = a.x + n * a.x_stride[0], *const y = a.y + m * a.y_stride[0];
    // A rounding above the square, so that a pair at its bound is within it.
    const double bound =
        a.bound != nullptr ? a.bound[pair] * a.bound[pair] * (1.0 + 8.8817841970012523e-16) : static_cast<double>(infinity());
    bool beyond = false;
    for (int64_t first = 0; first < rows && !beyond; first += kWarp) {
      const int64_t t = first + lane;
      const float* const frame = t < rows ? x + t * a.x_stride[1] : nullptr;
      __syncwarp();
      if (a.staged) stage.put_row(a, frame, lane);
      Cost left = infinite, diagonal = t == 0 ? static_cast<Cost>(0) : infinite, value = infinite, low = infinite;
      for (int64_t step = 0; step < frames + kWarp - 1; ++step) {
        if (a.staged && step % kWarp == 0) stage.put_columns(a, y, step, frames, lane);
        const int64_t s = step - lane;
        Cost above = __shfl_up_sync(kFullMask, value, 1u);
        if (lane == 0) above = first > 0 && s < frames ? above_band[s] : infinite;
        if (frame != nullptr && s >= 0 && s < frames) {
          const float d = a.staged ? stage.distance(a, lane, s) : distance_of<kProduct>(a, frame, y + s * a.y_stride[1]);
          value = lesser(lesser(left, diagonal), above) + static_cast<Cost>(d);
          left = value;
          if (lane == kWarp - 1) {
            above_band[s] = value;
            low = lesser(low, value);
          }
          if (t == rows - 1 && s == frames - 1) {
            const double cost = static_cast<double>(value);  // an estimate may fall below zero by a rounding
            a.out[pair] = cost > bound ? static_cast<double>(infinity()) : sqrt(cost > 0.0 ? cost : 0.0);
          }
        }
        if (s >= 0) diagonal = above;
      }
      // Every path crosses every frame of x: a pair is too far once all costs of one are.
      low = __shfl_sync(kFullMask, low, kWarp - 1);
      beyond = first + kWarp<rows&& static_cast<double>(low)> bound;
    }
    if (beyond && lane == 0) a.out[pair] = static_cast<double>(infinity());
  }
}

}  // namespace emc::cuda
