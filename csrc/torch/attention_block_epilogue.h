// Arguments of the end of an attention block; shared by the operator that is only that and by the whole block.
#pragma once

#include "../cpu/attention_block_kernels.h"
#include "workspace.h"

namespace emc {

inline BlockMatrix matrix(const Tensor& tensor, const char* name) {
  if (!tensor) return {};
  if (!tensor.is_contiguous()) throw std::runtime_error(std::string("emc_fast: ") + name + " must be contiguous");
  return {tensor.data(), dtype_of(tensor, name)};
}

inline void set_dropout(BlockArgs& a, const Tensor& x, double dropout_p, const Tensor& seed, int64_t stream) {
  if (!(dropout_p > 0.0)) return;
  if (!seed) throw std::runtime_error("emc_fast: dropout needs a seed");
  a.dropout_p = dropout_p, a.noise = noise_of(x, seed, stream, Tensor());
}

inline BlockArgs epilogue_arguments(const Tensor& x, const Tensor& update, const Tensor& weight, double dropout_p, const Tensor& seed,
                                    int64_t stream) {
  BlockArgs a;
  a.width = x.size(-1), a.rows = x.numel() / a.width;
  if (update.numel() != x.numel() || weight.numel() != a.width) throw std::runtime_error("emc_fast: x, update and weight do not fit");
  a.x = matrix(x, "x"), a.update = matrix(update, "update"), a.weight = matrix(weight, "weight");
  set_dropout(a, x, dropout_p, seed, stream);
  return a;
}

inline Tensor statistic(const Tensor& x) { return empty_cpu(x.sizes(), x.dim() - 1, aoti_torch_dtype_float32()); }

// Rows worth a thread: about 16k elements.
inline int64_t epilogue_grain(int64_t width) { return 16384 / width + 1; }

// All rows' gradients and the sums over rows, whose operands `a` names.
inline void run_epilogue_backward(BlockArgs a) {
  const int64_t groups = (a.rows + kBlockGroup - 1) / kBlockGroup, sizes[3] = {groups, 3, a.width};
  const Tensor partial = empty_cpu(sizes, 3, aoti_torch_dtype_float32());
  a.partial = partial.data_as<float>();
  const auto& kernels = EMC_KERNELS(attention_block_kernels);
  parallel_with_workspace(groups, epilogue_grain(a.width) / kBlockGroup + 1, block_scratch(a.width),
                          [&](int64_t begin, int64_t end, float* scratch) { kernels.backward(a, begin, end, scratch); });
  parallel_with_workspace(1, 1, block_scratch(a.width), [&](int64_t, int64_t, float* scratch) { kernels.reduce(a, scratch); });
}

}  // namespace emc
