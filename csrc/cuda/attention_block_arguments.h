// Arguments and launchers of the end of an attention block. A launcher returns null, or the text of an error.
#pragma once

#include "philox_arguments.h"

namespace emc::cuda {

// (rows, width), dense, or one row; null where it is absent. Each has a dtype of its own, since autocast mixes them.
struct BlockOperand {
  void* data;
  DType dtype;
  bool wide;  // rows can be moved in whole vectors; the launcher's business
};

struct BlockEpilogue {
  int64_t rows, width;
  BlockOperand x, update, weight, bias, out;
  float *mean, *inverse_deviation;  // (rows,)
  float eps;
  bool dropout;
  DeviceNoise noise;
  uint32_t keep_from;
  float dropout_scale;
  // Backward
  BlockOperand grad_out, grad_x, grad_update;
  BlockOperand grad_weight, grad_bias, grad_update_sum;  // column sums, one row each
  float* partial;                                        // (groups, 3, width): the groups' column sums
  int64_t groups;
  int rows_per_group;
  int lanes;
};

// Sets groups and rows_per_group, by the shape alone, so that the sums have the same bits on every device.
inline void set_groups(BlockEpilogue* a) {
  a->rows_per_group = a->rows < 16384 ? 16 : 64;
  a->groups = (a->rows + a->rows_per_group - 1) / a->rows_per_group;
}

extern "C" {
const char* emc_cuda_attention_block(const BlockEpilogue* arguments, int device, void* stream);
const char* emc_cuda_attention_block_backward(const BlockEpilogue* arguments, int device, void* stream);
}

}  // namespace emc::cuda
