// What the kernels of both fusion losses share: walking rows, and sums whose order depends on the shape alone.
#pragma once

#include "fusion_kl_arguments.h"
#include "math.cuh"

namespace emc::cuda {

constexpr int kPiece = 16;  // vectors of a lane that are summed in float32 before the sum goes to float64

// A row as a lane reads it: the inputs, whether it counts, and on the way back the gradient of its loss.
template <class T, int kInputs>
struct KlRow {
  const T* from[kInputs];
  const float* grad;
  bool counts = false;

  __device__ __forceinline__ KlRow(const FusionKlCuda& a, int64_t row) {
    if (row >= a.kl.walk.rows) return;
    const int64_t* strides[kInputs + 2];
    int64_t offset[kInputs + 2];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) strides[k] = a.kl.input[k].outer;
    strides[kInputs] = a.kl.mask.outer;
    strides[kInputs + 1] = a.kl.grad.outer;
    row_offsets(a.kl.walk, strides, row, offset);
#pragma unroll
    for (int k = 0; k < kInputs; ++k) from[k] = static_cast<const T*>(a.kl.input[k].data) + offset[k];
    const auto* mask = static_cast<const unsigned char*>(a.kl.mask.data);
    counts = mask == nullptr || mask[offset[kInputs]] != 0;
    grad = static_cast<const float*>(a.kl.grad.data) + offset[kInputs + 1];
  }
  __device__ __forceinline__ void read(const FusionKlCuda& a, int64_t i, Vector<T> (&x)[kInputs]) const {
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      const int64_t stride = a.kl.input[k].stride;
      x[k] = Vector<T>(from[k] + i * stride, stride, a.kl.walk.width - i, (a.wide_inputs >> k & 1u) != 0);
    }
  }
};

// Forward over tiles, a warp to a tile: loss(lanes, at, row) is the row's loss in each of its lanes; all lanes of the warp come.
template <class T, int kInputs, class Loss>
__device__ __forceinline__ void sum_tiles(const FusionKlCuda& a, const Loss& loss) {
  const Lanes lanes(a.lanes);
  const int at_once = kWarp / lanes.lanes, lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; tile < a.tiles; tile += warps) {
    double sum = 0.0;
    int64_t count = 0;
    for (int64_t r = 0; r < a.rows_per_tile; r += at_once) {
      const int64_t row = tile * a.rows_per_tile + r + lane / lanes.lanes;
      const KlRow<T, kInputs> at(a, row);
      const double value = loss(lanes, at, row);
      if (at.counts) {
        sum += value;
        ++count;
      }
      if (a.kl.row_loss != nullptr && row < a.kl.walk.rows && lanes.sub == 0)
        a.kl.row_loss[row] = at.counts ? static_cast<float>(value) : 0.0f;
    }
    sum = lanes.sum_of_rows(sum);
    count = lanes.sum_of_rows(count);
    if (a.tile_loss != nullptr && lane == 0) {
      a.tile_loss[tile] = sum;
      a.tile_count[tile] = count;
    }
  }
}

// Adds the tiles, one block: a thread every kThreads-th of them, then the threads in order.
template <class T>  // a template, so that each unit may have its copy
__global__ void __launch_bounds__(kThreads) finish(const FusionKlCuda a) {
  T sum = 0;
  int64_t count = 0;
  for (int64_t tile = threadIdx.x; tile < a.tiles; tile += kThreads) {
    sum += a.tile_loss[tile];
    count += a.tile_count[tile];
  }
  T* const sums = shared_memory<T>();
  auto* const counts = reinterpret_cast<int64_t*>(sums + kThreads);
  sums[threadIdx.x] = sum;
  counts[threadIdx.x] = count;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
      counts[threadIdx.x] += counts[threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) *a.loss = static_cast<float>(a.mean && counts[0] > 0 ? sums[0] / static_cast<T>(counts[0]) : sums[0]);
}

// Counts the rows of the mask, a partial count for each warp.
template <class T>
__global__ void __launch_bounds__(kThreads) count_rows(const FusionKlCuda a) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * kThreads;
  T count = 0;
  for (int64_t row = thread; row < a.kl.walk.rows; row += step) {
    int64_t offset[1];
    row_offsets(a.kl.walk, {a.kl.mask.outer}, row, offset);
    count += static_cast<const unsigned char*>(a.kl.mask.data)[offset[0]] != 0;
  }
  count = Lanes(kWarp).sum(count);
  if (threadIdx.x % kWarp == 0) a.counts[thread / kWarp] = count;
}

// What the gradient of a row's loss is divided by, where the loss is a mean.
__device__ __forceinline__ float mean_divisor(const FusionKlCuda& a) {
  if (!a.mean) return 1.0f;
  int64_t count = a.kl.walk.rows;
  if (a.counts != nullptr) {
    count = 0;
    for (int i = static_cast<int>(threadIdx.x) % kWarp; i < FusionKlCuda::kCounts; i += kWarp) count += a.counts[i];
    count = Lanes(kWarp).sum(count);
  }
  return static_cast<float>(count > 0 ? count : 1);
}

// Backward over rows: differentiate(lanes, at, row, g, out) of each row that counts; the gradients of the others are zero.
template <class T, int kInputs, class Differentiate>
__device__ __forceinline__ void differentiate_rows(const FusionKlCuda& a, const Differentiate& differentiate) {
  const Lanes lanes(a.lanes);
  const float divisor = mean_divisor(a);
  for (int64_t row = lanes.row; row < a.kl.walk.rows; row += lanes.step) {
    T* out[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) out[k] = static_cast<T*>(a.kl.grad_input[k]) + row * a.kl.walk.width;
    const KlRow<T, kInputs> at(a, row);
    if (at.counts) {
      differentiate(lanes, at, row, *at.grad / divisor, out);
    } else {
      Vector<T> zero;
#pragma unroll
      for (int k = 0; k < kVector; ++k) zero.set(k, 0.0f);
      for (int64_t i = lanes.sub * kVector; i < a.kl.walk.width; i += lanes.lanes * kVector) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) zero.store(out[k] + i, a.kl.walk.width - i, a.wide_out);
      }
    }
  }
}

}  // namespace emc::cuda
