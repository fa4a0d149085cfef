// Cross covariance: H channels in the lanes of a vector. All sequences are laid out once around their means, in float64; then every product
// of two of them is one pass over both, several at a time so that a frame that is loaded is used more than once.
#include "cross_covariance_kernels.h"
#include "simd_double.h"

namespace emc::EMC_ISA {
namespace {

constexpr int kX = 5, kY = 2;  // sequences of each set that are multiplied together; the field has ten draws

// `count` channels of every frame around their mean; mean and variance into moments (2, channels).
void pack(const float* v, const int64_t* stride, int64_t frames, int64_t channels, int64_t first, int64_t count, D* to, double* moments) {
  D sum[4] = {};
  for (int64_t t = 0; t < frames; ++t) {
    to[t] = load_channels(v + t * stride[1] + first * stride[2], stride[2], count);
    sum[t % 4] += to[t];
  }
  const D n = splat(static_cast<double>(frames)), mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / n;
  D square[4] = {};
  for (int64_t t = 0; t < frames; ++t) {
    to[t] = to[t] - mean;
    square[t % 4] += to[t] * to[t];
  }
  const D variance = ((square[0] + square[1]) + (square[2] + square[3])) / n;
  for (int64_t lane = 0; lane < count; ++lane) {
    moments[first + lane] = mean[lane];
    moments[channels + first + lane] = variance[lane];
  }
}

template <int kSomeX, int kSomeY>
void products(const D* x, const D* y, int64_t frames, const CovarianceProblem& p, int64_t k, int64_t j, int64_t first, int64_t count) {
  D sum[kSomeX][kSomeY];
  for (int a = 0; a < kSomeX; ++a)
    for (int b = 0; b < kSomeY; ++b) sum[a][b] = D{};
  for (int64_t t = 0; t < frames; ++t)
    for (int a = 0; a < kSomeX; ++a)
      for (int b = 0; b < kSomeY; ++b) sum[a][b] += x[a * frames + t] * y[b * frames + t];
  for (int a = 0; a < kSomeX; ++a)
    for (int b = 0; b < kSomeY; ++b)
      for (int64_t lane = 0; lane < count; ++lane)
        p.covariance[((k + a) * p.y_count + j + b) * p.channels + first + lane] = sum[a][b][lane] / static_cast<double>(frames);
}

int64_t workspace(const CovarianceProblem& p) { return 64 + static_cast<int64_t>(sizeof(D)) * (p.x_count + p.y_count) * p.frames; }

void run(const CovarianceProblem& p, int64_t first, void* memory) {
  const int64_t frames = p.frames, count = p.channels - first < H ? p.channels - first : H;
  D* const x = reinterpret_cast<D*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
  D* const y = x + p.x_count * frames;
  for (int64_t k = 0; k < p.x_count; ++k)
    pack(p.x + k * p.x_stride[0], p.x_stride, frames, p.channels, first, count, x + k * frames, p.x_moments + k * 2 * p.channels);
  for (int64_t j = 0; j < p.y_count; ++j)
    pack(p.y + j * p.y_stride[0], p.y_stride, frames, p.channels, first, count, y + j * frames, p.y_moments + j * 2 * p.channels);
  for (int64_t j = 0; j < p.y_count;) {
    const bool several_y = j + kY <= p.y_count;
    for (int64_t k = 0; k < p.x_count;) {
      const bool several_x = k + kX <= p.x_count;
      const auto product = several_x ? (several_y ? products<kX, kY> : products<kX, 1>) : several_y ? products<1, kY> : products<1, 1>;
      product(x + k * frames, y + j * frames, frames, p, k, j, first, count);
      k += several_x ? kX : 1;
    }
    j += several_y ? kY : 1;
  }
}

}  // namespace

const CovarianceKernels covariance_kernels = {H, workspace, run};

}  // namespace emc::EMC_ISA
