// Kernels of the philox operators: fill a tensor with noise, and dropout.
#pragma once

#include "../kernels.h"

namespace emc {

struct PhiloxKernels {
  // Rows [begin, end) of a dense output (rows of `width` elements).
  void (*normal)(const Noise&, DType, void* out, int64_t width, int64_t begin, int64_t end);
  void (*uniform)(const Noise&, DType, void* out, int64_t width, int64_t begin, int64_t end);
  // out = x / (1 - p) where u >= p, else 0; its own backward.
  void (*dropout)(const Noise&, double p, const Rows& x, void* out, int64_t begin, int64_t end);
};

EMC_KERNEL_TABLE(PhiloxKernels, philox_kernels)

}  // namespace emc
