// The fusion losses on the CPU: what the boxed operators (csrc/torch/fusion_kl*.cpp) and the kernels share.
//
// Rows are dealt out in blocks whose borders depend on the shape alone. A block is summed in row order in float64, and the operator adds
// the blocks in order, so that the loss has the same bits on any number of threads.
#pragma once

#include "../kernels.h"

namespace emc {

struct FusionKl {
  static constexpr int kMaxOuter = 16;  // dimensions before the last, once adjacent ones are merged
  static constexpr int64_t kRowsPerBlock = 64;
  static constexpr int kStats = 12;

  // (outer..., width), any strides in elements.
  struct Operand {
    const void* data;
    int64_t outer[kMaxOuter];
    int64_t stride;
  };

  DType dtype;
  int outer;
  int64_t sizes[kMaxOuter];
  int64_t rows, width;
  // Gaussian: the means of real, comp_face and comp_speech, then their log-variances or, for unit variance, no data. Categorical: the
  // logits.
  Operand input[6];
  Operand mask;  // bool, true where a row counts; no data: every row does
  // Forward
  float* row_loss;     // (rows,), 0 where masked, or null
  double* block_loss;  // (blocks,), or null
  // Backward: the gradient of a row's loss is scale * grad
  Operand grad;  // float32, strides 0 for a scalar
  float scale;
  void* grad_input[6];  // dense
  // Categorical, (rows, kStats): what the forward pass learnt of each row, so that the backward pass reads it but once.
  float* stats;
};

struct FusionKlKernels {
  // Blocks [begin, end).
  void (*forward)(const FusionKl&, int64_t begin, int64_t end);
  void (*backward)(const FusionKl&, int64_t begin, int64_t end);
};

EMC_KERNEL_TABLE(FusionKlKernels, fusion_kl_kernels)
EMC_KERNEL_TABLE(FusionKlKernels, fusion_kl_categorical_kernels)

}  // namespace emc
