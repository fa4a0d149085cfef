// Runs attention's kernels over all tasks of a call: what attention and the attention block share.
#pragma once

#include <algorithm>
#include <numeric>

#include "../cpu/attention_kernels.h"
#include "workspace.h"

namespace emc {

// Positions that may be attended, per batch entry, or one list for all when there is no mask.
struct KeyLists {
  std::vector<int32_t> index, count;

  KeyLists(const Tensor& key_mask, int64_t batch, int64_t keys) : index(static_cast<size_t>((key_mask ? batch : 1) * keys)) {
    if (!key_mask) {
      std::iota(index.begin(), index.end(), 0);
      count.assign(1, static_cast<int32_t>(keys));
      return;
    }
    count.resize(static_cast<size_t>(batch));
    const bool* mask = key_mask.data_as<const bool>();
    const int64_t row = key_mask.stride(0), step = key_mask.stride(1);
    for (int64_t b = 0; b < batch; ++b) {
      int32_t* list = index.data() + b * keys;
      int32_t n = 0;
      for (int64_t s = 0; s < keys; ++s) {
        list[n] = static_cast<int32_t>(s);
        n += mask[b * row + s * step];
      }
      count[static_cast<size_t>(b)] = n;
    }
  }
};

inline void check_length(const AttentionArgs& a) {
  if (a.queries + a.keys > INT32_MAX) throw std::runtime_error("emc_fast: attention takes fewer than 2^31 queries and keys");
}

inline void set_dropout(AttentionArgs& a, double dropout_p, const Tensor& seed, int64_t stream) {
  if (!(dropout_p > 0.0)) return;
  if (!seed) throw std::runtime_error("emc_fast: dropout needs a seed");
  a.dropout_p = dropout_p;
  const int64_t lead = a.batch * a.heads, seeds = seed.numel();
  if (seeds == 0 || lead % seeds != 0) throw std::runtime_error("emc_fast: the seeds do not divide the batch and the heads");
  a.noise = Noise{seed.data_as<const int64_t>(), lead / seeds, a.queries, 0, static_cast<uint32_t>(stream)};
}

// Tasks worth a thread: about 2^18 multiplications.
inline int64_t attention_grain(const AttentionArgs& a) {
  return (int64_t{1} << 18) / (std::min(a.queries, attention_chunk(a)) * a.keys * a.width + 1) + 1;
}

// All tasks of a pass; each thread has its own workspace.
template <class Kernels>
void run_attention_tasks(const Kernels& kernels, const AttentionArgs& a) {
  parallel_tasks(a.batch * a.heads * attention_chunks(a), attention_grain(a), kernels.workspace(a),
                 [&](int64_t task, float* workspace) { kernels.run(a, task, workspace); });
}

inline void run_attention(const AttentionArgs& a) { run_attention_tasks(EMC_KERNELS_BF16(attention_forward_kernels), a); }

inline void run_attention_backward(AttentionArgs a) {
  const auto& kernels = EMC_KERNELS_BF16(attention_backward_kernels);
  const int64_t chunks = attention_chunks(a), heads = a.batch * a.heads;
  Tensor partial;
  if (chunks != 1) {  // several, or no queries at all: the sum of nothing is zero
    const int64_t sizes[5] = {chunks, heads, 2, a.keys, a.width};
    partial = empty_cpu(sizes, 5, aoti_torch_dtype_float32());
    a.partial = partial.data_as<float>();
  }
  if (chunks > 0) run_attention_tasks(kernels, a);
  if (chunks != 1)
    parallel_for(heads, 16384 / (a.keys * a.width + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) kernels.reduce(a, head);
    });
}

}  // namespace emc
