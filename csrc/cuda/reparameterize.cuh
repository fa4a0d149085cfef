// Kernels of reparameterize: z = mu + exp(logvar / 2) eps and the divergence to N(0, I), in one pass each way. The noise never leaves the
// registers.
#pragma once

#include "philox.cuh"
#include "reparameterize_arguments.h"

namespace emc::cuda {

// A row as a lane reads it: mean, log-variance, noise, and on the way back the gradients.
template <class T>
struct DrawRow {
  static constexpr int n = kVector;
  const T *mu, *logvar, *given, *grad_z;
  const float* grad_kl;
  NoiseRow made;

  __device__ __forceinline__ DrawRow(const Reparameterize& a, int64_t row) {
    int64_t offset[5];
    row_offsets(a.walk, {a.mu.outer, a.logvar.outer, a.noise.outer, a.grad_z.outer, a.grad_kl.outer}, row, offset);
    mu = static_cast<const T*>(a.mu.data) + offset[0];
    logvar = static_cast<const T*>(a.logvar.data) + offset[1];
    given = a.noise.data != nullptr ? static_cast<const T*>(a.noise.data) + offset[2] : nullptr;
    grad_z = static_cast<const T*>(a.grad_z.data) + offset[3];
    grad_kl = static_cast<const float*>(a.grad_kl.data) + offset[4];
    if (given == nullptr) made = noise_row(a.philox, row, a.walk.width);
  }
  __device__ __forceinline__ void read(const Reparameterize& a, int64_t i, float (&m)[n], float (&v)[n], float (&eps)[n]) const {
    const int64_t left = a.walk.width - i;
    load(mu + i * a.mu.stride, a.mu.stride, left, a.wide_mu, m);
    load(logvar + i * a.logvar.stride, a.logvar.stride, left, a.wide_logvar, v);
    if (given != nullptr) {
      load(given + i * a.noise.stride, a.noise.stride, left, a.wide_noise, eps);
    } else {
      normals_at(made, i, eps);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) reparameterize(const Reparameterize a) {
  constexpr int n = kVector;
  const Lanes lanes(a.lanes);
  // All lanes of a warp go round together, since the sum needs them.
  for (int64_t row = lanes.row; __any_sync(kFullMask, row < a.walk.rows); row += lanes.step) {
    float total = 0.0f;
    if (row < a.walk.rows) {
      const DrawRow<T> at(a, row);
      for (int64_t i = lanes.sub * n; i < a.walk.width; i += lanes.lanes * n) {
        float m[n], v[n], z[n];
        at.read(a, i, m, v, z);
        float part = 0.0f;
#pragma unroll
        for (int k = 0; k < n; ++k) {
          z[k] = fmaf(exp_any(0.5f * v[k]), z[k], m[k]);
          part += fmaf(m[k], m[k], exp_any(v[k]) - 1.0f - v[k]);  // beyond the row there are zeros, which add exactly nothing
        }
        total += part;
        store(static_cast<T*>(a.z) + row * a.walk.width + i, a.walk.width - i, a.wide_out, z);
      }
    }
    total = lanes.sum(total);
    if (row < a.walk.rows && lanes.sub == 0) a.kl[row] = 0.5f * total;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) reparameterize_backward(const Reparameterize a) {
  constexpr int n = kVector;
  const Lanes lanes(a.lanes);
  for (int64_t row = lanes.row; row < a.walk.rows; row += lanes.step) {
    const DrawRow<T> at(a, row);
    const float gk = *at.grad_kl;
    for (int64_t i = lanes.sub * n; i < a.walk.width; i += lanes.lanes * n) {
      float m[n], v[n], eps[n], g[n];
      at.read(a, i, m, v, eps);
      load(at.grad_z + i * a.grad_z.stride, a.grad_z.stride, a.walk.width - i, a.wide_grad, g);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        m[k] = fmaf(gk, m[k], g[k]);
        v[k] = 0.5f * fmaf(gk, exp_any(v[k]) - 1.0f, g[k] * eps[k] * exp_any(0.5f * v[k]));
      }
      store(static_cast<T*>(a.grad_mu) + row * a.walk.width + i, a.walk.width - i, a.wide_out, m);
      store(static_cast<T*>(a.grad_logvar) + row * a.walk.width + i, a.walk.width - i, a.wide_out, v);
    }
  }
}

}  // namespace emc::cuda
