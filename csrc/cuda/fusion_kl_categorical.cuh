// Kernels of the fusion loss of categorical distributions given as logits: forward reads a row twice, backward once.
//
//   KL(p || q) = sum_i p_i (log p_i - log q_i) = sum_i p_i phi(y_i),  y = log q - log p,  phi(y) = e^y - 1 - y,  since p and q both sum to
//   1
//
// No term of the second form is negative, so that a loss near 0 keeps its digits. Where y is large, p phi(y) is q - p (1 + y), which cannot
// overflow. Elements beyond the row are -inf in all three distributions, for which every term is 0.
#pragma once

#include "fusion_kl_rows.cuh"

namespace emc::cuda {

constexpr float kLeastNormal = 1.17549435e-38f;

// What turns the logits of a row into probabilities: p = e^(x - top) scale.
struct Scales {
  float top[3], scale[3];

  __device__ __forceinline__ float probability(int k, float x) const { return Exponential(x - top[k]).value() * scale[k]; }
};

// The derivative of sum p (log p - log q) by x_p is p (a - mean of a under p), where a is x_p - x_q, or the sum over two q. The numbers a
// can all be large, so they are taken relative to that of the most probable class; with one class that takes nearly all, little but 0 is
// then left to round.
struct Slope {
  float origin, mean;  // a of the most probable class; the mean of a - origin
};

// What the backward pass wants to know of a row. log q - log p = (x_q - x_p) - shift.
struct alignas(16) RowStats {
  Scales scales;
  float shift_rf, shift_fs;
  Slope real, face;
};
static_assert(sizeof(RowStats) == FusionKl::kStats * sizeof(float), "emc_fast/ops/fusion_kl_categorical.py has the number too");

__device__ __forceinline__ float slope_real(float r, float f, float s) { return (r - f) + (r - s); }
__device__ __forceinline__ float slope_face(float f, float s) { return f - s; }
// a - origin; 0 for a class that p excludes: 0 log 0 = 0, and so is its derivative.
__device__ __forceinline__ float relative(float x_p, float a, float origin) { return x_p == -infinity() ? 0.0f : a - origin; }
// log q - log p of one class, for a class that p excludes (log p = -inf) a number that stands for inf but times 0 is 0.
__device__ __forceinline__ float log_ratio(float x_p, float x_q, float shift) { return x_p == -infinity() ? 1e30f : (x_q - x_p) - shift; }

// The largest logit so far of one distribution, the sum of e^(logit - largest), and a number of the largest's class.
struct Largest {
  float top = -infinity(), slope = 0.0f;
  double total = 0.0;

  template <int n>
  __device__ __forceinline__ void take(const float (&x)[n], const float (&a)[n]) {
    float here = top;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      slope = x[k] > here ? a[k] : slope;
      here = x[k] > here ? x[k] : here;
    }
    if (here > top) {
      total *= static_cast<double>(Exponential(top - here).value());
      top = here;
    }
    const float base = top == -infinity() ? 0.0f : top;  // every class excluded so far: each adds 0, and a NaN is still found
    float part = 0.0f;
#pragma unroll
    for (int k = 0; k < n; ++k) part += Exponential(x[k] - base).value();
    total += static_cast<double>(part);
  }
  // Puts the lanes of a row together. All lanes of the warp come.
  __device__ __forceinline__ void combine(const Lanes& lanes) {
    const float largest = lanes.largest(top);
    slope = lanes.first(top == largest, slope);
    slope = fabsf(slope) < infinity() ? slope : 0.0f;
    const double own = top == largest ? total : total * static_cast<double>(Exponential(top - largest).value());
    total = lanes.sum(own);
    top = largest;
  }
};

// ln t in float64 for a sum of exponentials, of which the largest is 1; 0 where every class is excluded gives -inf, a NaN stays.
//   t = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh(s), s = (m - 1) / (m + 1)
__device__ __forceinline__ double log_of_sum(double t) {
  if (!(t >= 0.5 && t < 1e30)) return t == 0.0 ? -static_cast<double>(infinity()) : t * static_cast<double>(infinity());
  const int bits = static_cast<int>(__float_as_uint(static_cast<float>(t))) - 0x3f3504f3, e = bits >> 23;
  const double m = t * static_cast<double>(power_of_two(-e));
  const double d = m + 1.0;
  double inverse = static_cast<double>(1.0f / static_cast<float>(d));
  inverse = inverse * (2.0 - d * inverse);
  inverse = inverse * (2.0 - d * inverse);
  const double s = (m - 1.0) * inverse, z = s * s;
  double p = 1.0 / 17.0;
#pragma unroll
  for (int k = 15; k > 1; k -= 2) p = p * z + 1.0 / k;
  return static_cast<double>(e) * 0.693147180559945309 + 2.0 * (s + s * (z * p));
}

// Sums of the terms p phi(y) of KL(p || q), and of q - p. Both come from one exponential while y <= 1, without the cancellation of close p
// and q.
struct Divergence {
  float kl, excess;

  // A class that p excludes adds q to the first, which the sum over the others lacks.
  __device__ __forceinline__ void add(float p, float q, float y) {
    const Exponential e(y);
    const float positive = at_least(p, kLeastNormal);  // an underflown p is not 0: a class that only q excludes costs inf
    const bool far = y > 1.0f;
    kl += far ? fmaf(-p, 1.0f + y, q) : positive * e.minus_tangent();
    excess += far ? q - p : p * e.minus_one();
  }
};

// q - p of one class, likewise.
__device__ __forceinline__ float difference(float p, float q, float y) { return y > 1.0f ? q - p : p * Exponential(y).minus_one(); }

// The logits of one vector; -inf beyond the row.
template <class T>
__device__ __forceinline__ void logits(const Vector<T>& v, int64_t left, float (&x)[kVector]) {
#pragma unroll
  for (int k = 0; k < kVector; ++k) x[k] = k < left ? v.get(k) : -infinity();
}

template <class T>
__global__ void __launch_bounds__(kThreads) fusion_kl_categorical(const FusionKlCuda a) {
  constexpr int n = kVector;
  const int64_t width = a.kl.walk.width;
  sum_tiles<T, 3>(a, [&](const Lanes& lanes, const KlRow<T, 3>& at, int64_t row) {
    const int64_t end = at.counts ? width : 0;
    Largest largest[3];
    for (int64_t i = lanes.sub * n; i < end; i += lanes.lanes * n) {
      Vector<T> v[3];
      at.read(a, i, v);
      float x[3][n], real[n], face[n];
#pragma unroll
      for (int k = 0; k < 3; ++k) logits(v[k], width - i, x[k]);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        real[k] = slope_real(x[0][k], x[1][k], x[2][k]);
        face[k] = slope_face(x[1][k], x[2][k]);
      }
      largest[0].take(x[0], real);
      largest[1].take(x[1], face);
      largest[2].take(x[2], face);
    }
    RowStats stats;
    double log_sum[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      largest[k].combine(lanes);
      stats.scales.top[k] = largest[k].top;
      stats.scales.scale[k] = 1.0f / static_cast<float>(largest[k].total);
      log_sum[k] = static_cast<double>(largest[k].top) + log_of_sum(largest[k].total);
    }
    stats.real.origin = largest[0].slope;
    stats.face.origin = largest[1].slope;
    const float shift_rf = static_cast<float>(log_sum[1] - log_sum[0]), shift_rs = static_cast<float>(log_sum[2] - log_sum[0]),
                shift_fs = static_cast<float>(log_sum[2] - log_sum[1]);
    double kl[3] = {}, excess[3] = {}, mass[2] = {}, moment[2] = {};
    int64_t i = lanes.sub * n;
    while (i < end) {
      Divergence pairs[3] = {};  // rf, rs, fs
      float masses[2] = {}, moments[2] = {};
      for (int piece = 0; piece < kPiece && i < end; ++piece, i += lanes.lanes * n) {
        Vector<T> v[3];
        at.read(a, i, v);
#pragma unroll
        for (int k = 0; k < n; ++k) {
          if (k >= width - i) continue;
          const float r = v[0].get(k), f = v[1].get(k), s = v[2].get(k);
          const float p_r = stats.scales.probability(0, r), p_f = stats.scales.probability(1, f), p_s = stats.scales.probability(2, s);
          pairs[0].add(p_r, p_f, log_ratio(r, f, shift_rf));
          pairs[1].add(p_r, p_s, log_ratio(r, s, shift_rs));
          pairs[2].add(p_f, p_s, log_ratio(f, s, shift_fs));
          masses[0] += p_r;
          masses[1] += p_f;
          moments[0] = fmaf(p_r, relative(r, slope_real(r, f, s), stats.real.origin), moments[0]);
          moments[1] = fmaf(p_f, relative(f, slope_face(f, s), stats.face.origin), moments[1]);
        }
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        kl[k] += static_cast<double>(pairs[k].kl);
        excess[k] += static_cast<double>(pairs[k].excess);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        mass[k] += static_cast<double>(masses[k]);
        moment[k] += static_cast<double>(moments[k]);
      }
    }
    double loss = 0.0;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      excess[k] = lanes.sum(excess[k]);
      // Both distributions of a pair sum to 1. What the sum of q - p lacks of 0 is the rounding error of the shift, and with it both the
      // loss of close distributions and their gradients are put right.
      loss += lanes.sum(kl[k]) - 0.5 * excess[k] * excess[k];
    }
    stats.shift_rf = static_cast<float>(static_cast<double>(shift_rf) + excess[0]);
    stats.shift_fs = static_cast<float>(static_cast<double>(shift_fs) + excess[2]);
    stats.real.mean = static_cast<float>(lanes.sum(moment[0])) / static_cast<float>(lanes.sum(mass[0]));
    stats.face.mean = static_cast<float>(lanes.sum(moment[1])) / static_cast<float>(lanes.sum(mass[1]));
    if (row < a.kl.walk.rows && lanes.sub == 0) {
      if (!at.counts) stats = RowStats{};  // masked rows have none
      *reinterpret_cast<RowStats*>(a.kl.stats + row * FusionKl::kStats) = stats;
    }
    return loss;
  });
}

//   dKL(p || q) / dx_p = p (-y - KL) = p (a - mean of a),  dKL(p || q) / dx_q = q - p
template <class T>
__global__ void __launch_bounds__(kThreads) fusion_kl_categorical_backward(const FusionKlCuda a) {
  constexpr int n = kVector;
  differentiate_rows<T, 3>(a, [&](const Lanes& lanes, const KlRow<T, 3>& at, int64_t row, float g, T* const* out) {
    const RowStats stats = *reinterpret_cast<const RowStats*>(a.kl.stats + row * FusionKl::kStats);
    for (int64_t i = lanes.sub * n; i < a.kl.walk.width; i += lanes.lanes * n) {
      Vector<T> v[3];
      at.read(a, i, v);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const float r = v[0].get(k), f = v[1].get(k), s = v[2].get(k);
        const float p_r = stats.scales.probability(0, r), p_f = stats.scales.probability(1, f), p_s = stats.scales.probability(2, s);
        const float rf = difference(p_r, p_f, log_ratio(r, f, stats.shift_rf)), fs = difference(p_f, p_s, log_ratio(f, s, stats.shift_fs));
        const float own_r = p_r * (relative(r, slope_real(r, f, s), stats.real.origin) - stats.real.mean);
        const float own_f = p_f * (relative(f, slope_face(f, s), stats.face.origin) - stats.face.mean);
        v[0].set(k, own_r * g);
        v[1].set(k, (rf + own_f) * g);
        v[2].set(k, (fs + (fs + rf)) * g);
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) v[k].store(out[k] + i, a.kl.walk.width - i, a.wide_out);
    }
  });
}

}  // namespace emc::cuda
