// Fused attention on the CPU: what the boxed operator (csrc/torch/attention.cpp) and the kernels share.
//
// Both directions work on one (batch, head, chunk of queries) at a time, a task. Queries stand in the SIMD lanes: scores are computed
// transposed, S^T = K Q^T, so that the online softmax needs no horizontal operation and any head width runs without padding. Keys that the
// mask removes are dropped while packing and never read: a masked sequence costs what its attended keys cost, its bits do not depend on its
// padding, and what stands in masked places cannot leak.
#pragma once

#include "../kernels.h"

namespace emc {

// (batch, time, head, width); strides in elements, any.
struct AttentionOperand {
  void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
};

struct AttentionArgs {
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, width = 0;
  DType dtype = DType::kFloat32;
  Precision precision = Precision::kHighest;
  AttentionOperand query, key, value;
  AttentionOperand out;                                         // forward only
  AttentionOperand grad_out, grad_query, grad_key, grad_value;  // backward only
  // (2,B,H,T): each query's largest score, or one near it (up to 16 less), and its sum of exp(score - that), 0 where it sees nothing. The
  // usual one number, the logarithm of the sum of exponentials, would lose what the sum holds: around 4 float32 keeps 2^-22, not 2^-24.
  float* statistics = nullptr;
  // Positions of the keys that may be attended, ascending; one list per batch entry, or one for all (stride 0).
  const int32_t* key_index = nullptr;
  const int32_t* key_count = nullptr;
  int64_t key_index_stride = 0;
  bool causal = false;
  int64_t window = 0;  // 0: none
  float scale = 1.0f;
  double dropout_p = 0.0;
  Noise noise = {};          // of the tensor (B,H,T,S); read when dropout_p > 0
  float* partial = nullptr;  // backward in several chunks: (chunks, B*H, 2, S, D), the chunks' sums for grad_key and grad_value
};

// The split into tasks depends on the shape alone, never on the number of threads: any number gives the same bits.
constexpr int64_t kAttentionMaxWidth = 128;

// Queries of a task: 256, and of long sequences a quarter, so that what backward keeps for each chunk grows with the length and not with
// its square.
inline int64_t attention_chunk(const AttentionArgs& a) {
  const int64_t quarter = (a.queries + 255) / 256 * 64;
  return quarter > 256 ? quarter : 256;
}
inline int64_t attention_chunks(const AttentionArgs& a) { return (a.queries + attention_chunk(a) - 1) / attention_chunk(a); }

// Tasks are numbered (b * heads + h) * chunks + chunk; `workspace` gives the floats that a thread needs for one.
struct AttentionForwardKernels {
  int64_t (*workspace)(const AttentionArgs&);
  void (*run)(const AttentionArgs&, int64_t task, float* workspace);
};
struct AttentionBackwardKernels {
  int64_t (*workspace)(const AttentionArgs&);
  void (*run)(const AttentionArgs&, int64_t task, float* workspace);
  // grad_key and grad_value of head (b * heads + h) from the chunks' sums; only with several chunks.
  void (*reduce)(const AttentionArgs&, int64_t head);
};

EMC_KERNEL_TABLE_BF16(AttentionForwardKernels, attention_forward_kernels)
EMC_KERNEL_TABLE_BF16(AttentionBackwardKernels, attention_backward_kernels)

}  // namespace emc
