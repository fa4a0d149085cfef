// The end of an attention block, LayerNorm(x + Dropout(update)), in one pass over memory in each direction; and its parts, where a block
// has its LayerNorm before instead: LayerNorm(x) without an update, and x + Dropout(update), or Dropout(update) alone, without a LayerNorm.
#pragma once

#include "../kernels.h"

namespace emc {

// (rows, width), dense; null where it is absent.
struct BlockMatrix {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

struct BlockArgs {
  int64_t rows = 0, width = 0;
  BlockMatrix x, update, weight, bias, out;             // weight and bias are one row
  BlockMatrix grad_out, grad_x, grad_update;            // backward only
  BlockMatrix grad_beside;                              // backward: what else grad_x is to hold, or null
  float *mean = nullptr, *inverse_deviation = nullptr;  // (rows,)
  float* partial = nullptr;                             // backward: (groups, 3, width), the groups' column sums
  BlockMatrix grad_weight, grad_bias, grad_update_sum;  // backward: column sums, one row each
  double eps = 1e-5;
  double dropout_p = 0.0;
  Noise noise = {};  // of the tensor (B,T,width); read when dropout_p > 0
};

// Rows whose column sums are formed together. A constant, so that the order of summation does not depend on the number of threads.
constexpr int64_t kBlockGroup = 64;
// Floats of scratch that a thread needs.
inline int64_t block_scratch(int64_t width) { return 6 * ((width + 63) / 64 * 64); }

struct AttentionBlockKernels {
  void (*forward)(const BlockArgs&, int64_t begin, int64_t end, float* scratch);   // rows
  void (*backward)(const BlockArgs&, int64_t begin, int64_t end, float* scratch);  // groups of kBlockGroup rows
  void (*reduce)(const BlockArgs&, float* scratch);                                // the groups' column sums, in order
  void (*sum)(const BlockArgs&, int64_t begin, int64_t end, float* scratch);       // rows: out = x + Dropout(update)
};

EMC_KERNEL_TABLE(AttentionBlockKernels, attention_block_kernels)

}  // namespace emc
