// Arguments and launchers of attention blocks of a few frames, at inference. A launcher returns null, or the text of an error.
#pragma once

#include "../kernels.h"

namespace emc::cuda {

// What a block takes: a sequence of up to kFewFloats frames in float32, kFewHalves in the half types, heads of up to kFewHeadWidth.
constexpr int kFewFloats = 32, kFewHalves = 64, kFewHeadWidth = 32;

// What the heads of a block have put out becomes rows: LayerNorm(row + bias + sum over heads of partial) weight + shift.
struct Joint {
  const float* partial;               // (batch, heads, length, width); null: there is nothing to join, and rows stay what they are
  const void *bias, *weight, *shift;  // (width,); bias and shift may be null
  float eps;
};
// Rows (batch, length, width), dense, which the joint has yet to make of what stands there.
struct FewRows {
  const void* data;
  Joint joint;
};

struct FewBlock {
  FewRows x, memory;
  int queries, keys;
  const unsigned char* key_mask;  // (batch, keys) or null; not 0 where a key may be attended
  int64_t mask_stride[2];
  int least_lag, lag_bound;                             // as in Attention
  const void *w_q, *b_q, *w_k, *b_k, *w_v, *b_v, *w_o;  // (width, width) and (width,), dense; a bias may be null
  float* partial;                                       // (batch, heads, queries, width), out: each head's part of the output projection
};

// The heads of one block, or of two that do not depend on each other.
struct FewHeads {
  DType dtype;
  int batch, heads, width, head_width, blocks;
  float scale2;           // of the scores, times log2(e)
  bool wide, wide_heads;  // rows, and a head's part of one, can be read in whole vectors; the launcher's business
  FewBlock block[2];
};

// A block's end: rows of x with its joint, which is that of a block before it, and then the block's own.
struct FewJoin {
  DType dtype;
  int batch, heads, width, length;
  FewRows x;
  Joint joint;
  void* out;  // (batch, length, width), dense
  bool wide;
  int lanes;
};

extern "C" {
const char* emc_cuda_few_heads(const FewHeads* arguments, int device, void* stream);
const char* emc_cuda_few_join(const FewJoin* arguments, int device, void* stream);
}

}  // namespace emc::cuda
