// Kernel of cross covariance: every sequence of one set against every sequence of another, channel by channel, in float64.
#pragma once

#include "../kernels.h"

namespace emc {

// x (x_count, frames, channels) and y (y_count, frames, channels), strides in elements. Dense outputs: covariance (x_count, y_count,
// channels), moments (count, 2, channels): mean and variance; all with `frames` in the denominator.
struct CovarianceProblem {
  const float* x;
  const float* y;
  int64_t x_stride[3], y_stride[3];
  int64_t x_count, y_count, frames, channels;
  double* covariance;
  double* x_moments;
  double* y_moments;
};

struct CovarianceKernels {
  int64_t lanes;                                   // channels that are done together
  int64_t (*workspace)(const CovarianceProblem&);  // bytes
  void (*run)(const CovarianceProblem&, int64_t first_channel, void* workspace);
};

EMC_KERNEL_TABLE(CovarianceKernels, covariance_kernels)

}  // namespace emc
