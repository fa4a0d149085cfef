// Kernels of the end of an attention block, LayerNorm(x + Dropout(update)), and its gradients. The operator layer puts the block together
// from these, the attention kernels and torch's matrix products.
//
// Which dtype an operand has is looked up when it is read: the branch is the same for all, and a kernel for every combination would be
// dozens.
#pragma once

#include "attention_block_arguments.h"
#include "philox.cuh"

namespace emc::cuda {

constexpr int kKept = 4;  // vectors of a row that a lane keeps in registers; what is beyond is made again when it is needed
constexpr int kColumnsAtOnce = kWarp * kVector;  // columns whose sums a block forms at a time

// Elements i .. i + 3 of row `row`; zeros beyond the width.
__device__ __forceinline__ void load(const BlockOperand& m, int64_t row, int64_t i, int64_t width, float (&x)[kVector]) {
  const int64_t at = row * width + i;
  if (m.dtype == DType::kFloat32) {
    load(static_cast<const float*>(m.data) + at, 1, width - i, m.wide, x);
  } else if (m.dtype == DType::kFloat16) {
    load(static_cast<const Half*>(m.data) + at, 1, width - i, m.wide, x);
  } else {
    load(static_cast<const BFloat16*>(m.data) + at, 1, width - i, m.wide, x);
  }
}
__device__ __forceinline__ void store(const BlockOperand& m, int64_t row, int64_t i, int64_t width, const float (&x)[kVector]) {
  const int64_t at = row * width + i;
  if (m.dtype == DType::kFloat32) {
    store(static_cast<float*>(m.data) + at, width - i, m.wide, x);
  } else if (m.dtype == DType::kFloat16) {
    store(static_cast<Half*>(m.data) + at, width - i, m.wide, x);
  } else {
    store(static_cast<BFloat16*>(m.data) + at, width - i, m.wide, x);
  }
}

// x after dropout, elements i .. i + 3 of a row: selected and not multiplied, so that a NaN that is dropped is gone.
__device__ __forceinline__ void drop(const BlockEpilogue& a, const NoiseRow& noise, int64_t i, float (&x)[kVector]) {
  if (!a.dropout) return;
  uint32_t w[kVector];
  words_at(noise, i, w);
#pragma unroll
  for (int k = 0; k < kVector; ++k) x[k] = (w[k] >> 9) >= a.keep_from ? x[k] * a.dropout_scale : 0.0f;
}
// x + dropout(update)
__device__ __forceinline__ void residual(const BlockEpilogue& a, const NoiseRow& noise, int64_t row, int64_t i, float (&y)[kVector]) {
  float x[kVector];
  load(a.x, row, i, a.width, x);
  load(a.update, row, i, a.width, y);
  drop(a, noise, i, y);
#pragma unroll
  for (int k = 0; k < kVector; ++k) y[k] += x[k];
}

// The vectors of a row that are a lane's: made by `make` once where they are kept, else on every visit.
template <class Make>
struct RowVectors {
  const Lanes& lanes;
  int64_t width;
  const Make& make;
  float kept[kKept][kVector];

  __device__ __forceinline__ RowVectors(const Lanes& lanes_, int64_t width_, const Make& make_)
      : lanes(lanes_), width(width_), make(make_) {
#pragma unroll
    for (int n = 0; n < kKept; ++n)
      if (at(n) < width) make(at(n), kept[n]);
  }
  __device__ __forceinline__ int64_t at(int n) const { return (static_cast<int64_t>(n) * lanes.lanes + lanes.sub) * kVector; }
  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& each) const {
#pragma unroll
    for (int n = 0; n < kKept; ++n)
      if (at(n) < width) each(at(n), kept[n]);
#pragma unroll 1
    for (int64_t i = at(kKept); i < width; i += lanes.lanes * kVector) {
      float x[kVector];
      make(i, x);
      each(i, x);
    }
  }
};

template <class T>  // a template, so that each unit may have its copy
__global__ void __launch_bounds__(kThreads, 2) attention_block(const BlockEpilogue a) {
  const Lanes lanes(a.lanes);
  const T n = static_cast<T>(a.width);
  // All lanes of a warp go round together, since the sums need them.
  for (int64_t row = lanes.row; __any_sync(kFullMask, row < a.rows); row += lanes.step) {
    const int64_t width = row < a.rows ? a.width : 0;
    NoiseRow noise{};
    if (a.dropout && row < a.rows) noise = noise_row(a.noise, row, a.width);
    const auto make = [&](int64_t i, float (&y)[kVector]) { residual(a, noise, row, i, y); };
    const RowVectors<decltype(make)> sums(lanes, width, make);
    T total = 0, squares = 0;
    sums.visit([&](int64_t, const float (&y)[kVector]) { total += (y[0] + y[1]) + (y[2] + y[3]); });
    const T mean = lanes.sum(total) / n;
    sums.visit([&](int64_t i, const float (&y)[kVector]) {
#pragma unroll
      for (int k = 0; k < kVector; ++k)
        if (i + k < width) squares = fmaf(y[k] - mean, y[k] - mean, squares);
    });
    const T inverse = 1.0f / sqrtf(lanes.sum(squares) / n + a.eps);
    sums.visit([&](int64_t i, const float (&y)[kVector]) {
      float weight[kVector], bias[kVector] = {0.0f, 0.0f, 0.0f, 0.0f}, z[kVector];
      load(a.weight, 0, i, width, weight);
      if (a.bias.data != nullptr) load(a.bias, 0, i, width, bias);
#pragma unroll
      for (int k = 0; k < kVector; ++k) z[k] = fmaf((y[k] - mean) * inverse, weight[k], bias[k]);
      store(a.out, row, i, width, z);
    });
    if (row < a.rows && lanes.sub == 0) {
      a.mean[row] = mean;
      a.inverse_deviation[row] = inverse;
    }
  }
}

// With y the normalised row and g = grad_out weight: the gradient of x + dropout(update) is (g - mean(g) - y mean(g y)) / deviation.
struct BlockRow {
  NoiseRow noise{};
  int64_t row;
  float mean, inverse;
  __device__ __forceinline__ BlockRow(const BlockEpilogue& a, int64_t row_)
      : row(row_), mean(a.mean[row_]), inverse(a.inverse_deviation[row_]) {
    if (a.dropout) noise = noise_row(a.noise, row, a.width);
  }
  __device__ __forceinline__ void normalised(const BlockEpilogue& a, int64_t i, float (&y)[kVector]) const {
    residual(a, noise, row, i, y);
#pragma unroll
    for (int k = 0; k < kVector; ++k) y[k] = i + k < a.width ? (y[k] - mean) * inverse : 0.0f;
  }
};

// Adds what the warps of the block have of some columns, in order, and gives it to `take(column in the warp's vectors, sums)` once for each
// vector. `shared` holds kThreads vectors of `n` sums.
template <int n>
__device__ __forceinline__ bool add_warps(float* shared, float (&sums)[n][kVector]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();  // what was there has been read
#pragma unroll
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int k = 0; k < kVector; ++k) shared[((warp * n + j) * kVector + k) * kWarp + lane] = sums[j][k];
  __syncthreads();
  if (warp != 0) return false;
  for (int other = 1; other < kThreads / kWarp; ++other)
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[j][k] += shared[((other * n + j) * kVector + k) * kWarp + lane];
  return true;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) attention_block_backward(const BlockEpilogue a) {
  const Lanes lanes(a.lanes);
  const T n = static_cast<T>(a.width);
  T* const means = shared_memory<T>();  // of each row of the group: mean(g), mean(g y)
  T* const scratch = means + 2 * a.rows_per_group;
  const int at_once = kThreads / a.lanes, place = threadIdx.x / a.lanes;
  for (int64_t group = blockIdx.x; group < a.groups; group += gridDim.x) {
    const int64_t first = group * a.rows_per_group, left = a.rows - first;
    const int rows = left < a.rows_per_group ? static_cast<int>(left) : a.rows_per_group;
    __syncthreads();
    for (int r = place; __any_sync(kFullMask, r < rows); r += at_once) {
      const int64_t width = r < rows ? a.width : 0;
      const BlockRow row(a, first + (r < rows ? r : 0));
      T total = 0, product = 0;
      for (int64_t i = lanes.sub * kVector; i < width; i += lanes.lanes * kVector) {
        float y[kVector], g[kVector], weight[kVector];
        row.normalised(a, i, y);
        load(a.grad_out, row.row, i, a.width, g);
        load(a.weight, 0, i, a.width, weight);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          total = fmaf(g[k], weight[k], total);
          product = fmaf(g[k] * weight[k], y[k], product);
        }
      }
      total = lanes.sum(total) / n;
      product = lanes.sum(product) / n;
      if (r < rows && lanes.sub == 0) {
        means[2 * r] = total;
        means[2 * r + 1] = product;
      }
    }
    __syncthreads();
    // By columns: a lane takes a vector of them, a warp every eighth row.
    for (int64_t column = 0; column < a.width; column += kColumnsAtOnce) {
      const int64_t i = column + threadIdx.x % kWarp * kVector;
      float sums[3][kVector] = {};  // of grad_out y, grad_out, grad_update
      if (i < a.width) {
        float weight[kVector];
        load(a.weight, 0, i, a.width, weight);
        for (int r = threadIdx.x / kWarp; r < rows; r += kThreads / kWarp) {
          const BlockRow row(a, first + r);
          float y[kVector], g[kVector], grad[kVector];
          row.normalised(a, i, y);
          load(a.grad_out, row.row, i, a.width, g);
#pragma unroll
          for (int k = 0; k < kVector; ++k) {
            sums[0][k] = fmaf(g[k], y[k], sums[0][k]);
            sums[1][k] += g[k];
            grad[k] = (g[k] * weight[k] - means[2 * r] - y[k] * means[2 * r + 1]) * row.inverse;
          }
          store(a.grad_x, row.row, i, a.width, grad);
          drop(a, row.noise, i, grad);
          store(a.grad_update, row.row, i, a.width, grad);
#pragma unroll
          for (int k = 0; k < kVector; ++k) sums[2][k] += grad[k];
        }
      }
      if (add_warps(scratch, sums) && i < a.width) {
        const BlockOperand partial{a.partial, DType::kFloat32, a.width % kVector == 0};
#pragma unroll
        for (int j = 0; j < 3; ++j) store(partial, group * 3 + j, i, a.width, sums[j]);
      }
    }
  }
}

// The groups' sums, in order: a block takes some columns of one of the three results, a warp every eighth group.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) attention_block_sums(const BlockEpilogue a) {
  const int64_t chunks = (a.width + kColumnsAtOnce - 1) / kColumnsAtOnce;
  for (int64_t item = blockIdx.x; item < 3 * chunks; item += gridDim.x) {
    const int64_t which = item / chunks, i = (item - which * chunks) * kColumnsAtOnce + threadIdx.x % kWarp * kVector;
    float sums[1][kVector] = {};
    constexpr int kStep = kThreads / kWarp, kAhead = 8;  // loads that are on their way at once: a few blocks do all of it
    if (i < a.width) {
      const float* from = a.partial + which * a.width + i;
      const auto add = [&](auto wide, int64_t group, auto count) {
        float x[decltype(count)::kValue][kVector];
#pragma unroll
        for (int n = 0; n < decltype(count)::kValue; ++n)
          load(from + (group + n * kStep) * 3 * a.width, 1, a.width - i, decltype(wide)::kValue != 0, x[n]);
#pragma unroll
        for (int n = 0; n < decltype(count)::kValue; ++n)
#pragma unroll
          for (int k = 0; k < kVector; ++k) sums[0][k] += x[n][k];
      };
      const auto add_all = [&](auto wide) {
        int64_t group = threadIdx.x / kWarp;
        for (; group + (kAhead - 1) * kStep < a.groups; group += kAhead * kStep) add(wide, group, Number<kAhead>());
        for (; group < a.groups; group += kStep) add(wide, group, Number<1>());
      };
      if (a.width % kVector == 0) {
        add_all(Number<1>());
      } else {
        add_all(Number<0>());
      }
    }
    if (add_warps(shared_memory<T>(), sums) && i < a.width)
      store(which == 0 ? a.grad_weight : which == 1 ? a.grad_bias : a.grad_update_sum, 0, i, a.width, sums[0]);
  }
}

}  // namespace emc::cuda
