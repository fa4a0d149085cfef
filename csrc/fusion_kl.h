// Arguments of the fusion losses, for the CPU's kernels and for CUDA's.
#pragma once

#include "kernels.h"

namespace emc {

struct FusionKl {
  static constexpr int64_t kRowsPerBlock = 64;
  static constexpr int kStats = 12;

  DType dtype;
  Walk walk;
  // Gaussian: the means of real, comp_face and comp_speech, then their log-variances or, for unit variance, no data. Categorical: the
  // logits.
  Operand input[6];
  Operand mask;  // bool, true where a row counts; no data: every row does
  // Forward
  float* row_loss;     // (rows,), 0 where masked, or null
  double* block_loss;  // (blocks,), or null
  // Backward: the gradient of a row's loss is grad / divisor, which rounds once
  Operand grad;  // float32, strides 0 for a scalar
  float divisor;
  void* grad_input[6];  // dense
  // Categorical, (rows, kStats): what the forward pass learnt of each row, so that the backward pass reads it but once.
  float* stats;
};

}  // namespace emc
