// Kernel of lagged correlation: Pearson's coefficient of two sequences at every lag of a range, channel by channel.
#pragma once

#include "../kernels.h"

namespace emc {

// One sequence x and one y, (frames, channels) with strides in elements; out (2 max_lag + 1, channels), dense. Lag l pairs x[t + l] with
// y[t].
struct LagProblem {
  const float* x;
  const float* y;
  int64_t x_stride[2], y_stride[2];
  int64_t frames, channels, max_lag;
  double* out;
};

struct LagKernels {
  int64_t (*workspace)(int64_t frames, int64_t max_lag);  // bytes
  void (*correlate)(const LagProblem&, void* workspace);
};

EMC_KERNEL_TABLE(LagKernels, lag_kernels)

}  // namespace emc
