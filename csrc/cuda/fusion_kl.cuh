// Kernels of the fusion loss of diagonal Gaussians: forward and backward in one pass over the inputs each.
//
//   KL(p || q) = 1/2 sum_i [phi(l_p - l_q) + (m_p - m_q)^2 e^-l_q],  phi(x) = e^x - 1 - x
//   loss of a row = KL(real || face) + KL(real || speech) + KL(face || speech)
//
// phi is evaluated as a whole, so that a loss near 0 keeps its digits. Beyond the row there are zeros, for which every term is 0.
#pragma once

#include "fusion_kl_rows.cuh"

namespace emc::cuda {

// e^-l as (2^m)^2 e^r. The power is applied to a difference of means before that is squared, in two steps: neither equal means over a tiny
// variance (0 * inf) nor far means over a huge one (inf * 0) make a NaN of a finite term.
struct InverseVariance {
  float low, high;  // their product is 2^m
  float rest;       // e^r

  __device__ __forceinline__ explicit InverseVariance(float logvar) {
    const float y = at_least(at_most(-logvar, 350.0f), -350.0f);  // beyond, float32 holds no term but 0 and inf
    const Rounded m(y * 0.72134752f);                             // 1 / (2 ln 2)
    const float r = fmaf(m.integer(), 4.24388880e-4f, fmaf(m.integer(), -1.38671875f, y));
    float p = 2.444009260e-5f;  // minimax of (e^r - 1 - r) / r^2 for |r| <= ln 2
    p = fmaf(p, r, 2.010984899e-4f);
    p = fmaf(p, r, 1.389370416e-3f);
    p = fmaf(p, r, 8.332527243e-3f);
    p = fmaf(p, r, 4.166652635e-2f);
    p = fmaf(p, r, 1.666667312e-1f);
    p = fmaf(p, r, 0.5f);
    rest = fmaf(p, r * r, r) + 1.0f;
    const Rounded half(m.integer() * 0.5f);
    low = half.power();
    high = Rounded(m.integer() - half.integer()).power();
  }
  // d^2 e^-l
  __device__ __forceinline__ float quadratic(float d) const {
    const float scaled = d * low * high;
    return scaled * rest * scaled;
  }
  // d e^-l
  __device__ __forceinline__ float linear(float d) const { return d * low * high * rest * low * high; }
};

// Twice the loss of one element. x: three means, then three log-variances unless the variance is 1.
template <int kInputs>
__device__ __forceinline__ float twice_loss(const float (&x)[kInputs]) {
  const float rf = x[0] - x[1], rs = x[0] - x[2], fs = x[1] - x[2];
  if constexpr (kInputs == 3) {
    return fmaf(rf, rf, fmaf(rs, rs, fs * fs));
  } else {
    const InverseVariance face(x[4]), speech(x[5]);
    const float means = face.quadratic(rf) + speech.quadratic(rs) + speech.quadratic(fs);
    return means + Exponential(x[3] - x[4]).minus_tangent() + Exponential(x[3] - x[5]).minus_tangent() +
           Exponential(x[4] - x[5]).minus_tangent();
  }
}

// The loss's derivatives, times g.
template <int kInputs>
__device__ __forceinline__ void derivatives(const float (&x)[kInputs], float g, float (&grad)[kInputs]) {
  const float rf = x[0] - x[1], rs = x[0] - x[2], fs = x[1] - x[2];
  if constexpr (kInputs == 3) {
    grad[0] = (rf + rs) * g;
    grad[1] = (fs - rf) * g;
    grad[2] = (rs + fs) * -g;
  } else {
    const InverseVariance face(x[4]), speech(x[5]);
    const float slope_rf = face.linear(rf), slope_rs = speech.linear(rs), slope_fs = speech.linear(fs);
    grad[0] = (slope_rf + slope_rs) * g;
    grad[1] = (slope_fs - slope_rf) * g;
    grad[2] = (slope_rs + slope_fs) * -g;
    const float excess_rf = Exponential(x[3] - x[4]).minus_one();
    const float excess_rs = Exponential(x[3] - x[5]).minus_one();
    const float excess_fs = Exponential(x[4] - x[5]).minus_one();
    const float half = 0.5f * g;
    grad[3] = (excess_rf + excess_rs) * half;
    grad[4] = (excess_fs - excess_rf - face.quadratic(rf)) * half;
    grad[5] = (excess_rs + excess_fs + speech.quadratic(rs) + speech.quadratic(fs)) * -half;
  }
}

template <class T, int kInputs>
__global__ void __launch_bounds__(kThreads, 3) fusion_kl(const FusionKlCuda a) {
  constexpr int n = kVector;
  sum_tiles<T, kInputs>(a, [&](const Lanes& lanes, const KlRow<T, kInputs>& at, int64_t) {
    double total = 0.0;
    if (at.counts) {
      int64_t i = lanes.sub * n;
      while (i < a.kl.walk.width) {
        float part = 0.0f;
        for (int piece = 0; piece < kPiece && i < a.kl.walk.width; ++piece, i += lanes.lanes * n) {
          Vector<T> v[kInputs];
          at.read(a, i, v);
#pragma unroll
          for (int k = 0; k < n; ++k) {
            float x[kInputs];
#pragma unroll
            for (int j = 0; j < kInputs; ++j) x[j] = v[j].get(k);
            part += twice_loss(x);
          }
        }
        total += static_cast<double>(part);
      }
    }
    return 0.5 * lanes.sum(total);
  });
}

template <class T, int kInputs>
__global__ void __launch_bounds__(kThreads, 3) fusion_kl_backward(const FusionKlCuda a) {
  constexpr int n = kVector;
  differentiate_rows<T, kInputs>(a, [&](const Lanes& lanes, const KlRow<T, kInputs>& at, int64_t, float g, T* const* out) {
    for (int64_t i = lanes.sub * n; i < a.kl.walk.width; i += lanes.lanes * n) {
      Vector<T> v[kInputs];
      at.read(a, i, v);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        float x[kInputs], grad[kInputs];
#pragma unroll
        for (int j = 0; j < kInputs; ++j) x[j] = v[j].get(k);
        derivatives(x, g, grad);
#pragma unroll
        for (int j = 0; j < kInputs; ++j) v[j].set(k, grad[j]);
      }
#pragma unroll
      for (int j = 0; j < kInputs; ++j) v[j].store(out[j] + i, a.kl.walk.width - i, a.wide_out);
    }
  });
}

}  // namespace emc::cuda
