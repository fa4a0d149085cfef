// Arguments and launchers of attention. A launcher returns null, or the text of an error.
#pragma once

#include "philox_arguments.h"

namespace emc::cuda {

constexpr int kAttentionMaxWidth = 128;

// (batch, time, head, width), any strides, in elements.
struct HeadsOperand {
  const void* data;
  int64_t stride[4];
  int together;  // elements of a row that can be read at once: 8 (of 16 bits), 4, 2 or 1; the launcher's business
};

struct Attention {
  DType dtype;
  int64_t batch, heads;
  int queries, keys, width;
  int stages;  // steps whose tiles a block has at once, 2 or 1; the launcher's business
  HeadsOperand query, key, value;
  const unsigned char* key_mask;  // (batch, keys) or null; not 0 where a key may be attended
  int64_t mask_stride[2];
  // Query t sees key s where its lag, t + keys - queries - s, is in [least_lag, lag_bound), which all are with [-queries, keys).
  int least_lag, lag_bound;
  float scale, scale2;  // of the scores; times log2(e)
  bool dropout;
  DeviceNoise noise;  // of the tensor (batch, heads, queries, keys)
  uint32_t keep_from;
  float dropout_scale;  // 1 without dropout
  float* statistics;    // (2, batch, heads, queries): largest score in base 2, sum of powers of two
  // Forward; dense, as all outputs
  void* out;
  // Backward
  HeadsOperand grad_out;
  float* delta;  // (batch, heads, queries), workspace: each query's sum of P dP
  void *grad_query, *grad_key, *grad_value;
};

extern "C" {
const char* emc_cuda_attention(const Attention* arguments, int device, void* stream);
const char* emc_cuda_attention_backward(const Attention* arguments, int device, void* stream);
}

}  // namespace emc::cuda
