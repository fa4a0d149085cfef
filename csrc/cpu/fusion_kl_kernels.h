// The fusion losses on the CPU: what the boxed operators (csrc/torch/fusion_kl*.cpp) and the kernels share.
//
// Rows are dealt out in blocks whose borders depend on the shape alone. A block is summed in row order in float64, and the operator adds
// the blocks in order, so that the loss has the same bits on any number of threads.
#pragma once

#include "../fusion_kl.h"

namespace emc {

struct FusionKlKernels {
  // Blocks [begin, end).
  void (*forward)(const FusionKl&, int64_t begin, int64_t end);
  void (*backward)(const FusionKl&, int64_t begin, int64_t end);
};

EMC_KERNEL_TABLE(FusionKlKernels, fusion_kl_kernels)
EMC_KERNEL_TABLE(FusionKlKernels, fusion_kl_categorical_kernels)

}  // namespace emc
