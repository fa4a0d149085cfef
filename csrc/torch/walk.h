// Tensors of one shape as a kernel walks them: neighbouring dimensions merged where every one of them steps through evenly.
#pragma once

#include "boxed.h"

namespace emc {

// Fills the walk over the first `dims` dimensions of `sizes`, with rows of `width`, and the operands' data and strides. An operand that has
// a dimension more gets the stride of that as well.
inline Walk walk_over(const std::vector<std::pair<const Tensor*, Operand*>>& operands, int64_t dims, const int64_t* sizes, int64_t width) {
  Walk walk{};
  walk.width = width;
  walk.rows = 1;
  for (int64_t d = 0; d < dims; ++d) walk.rows *= sizes[d];
  for (const auto& [tensor, operand] : operands) {
    operand->data = tensor->data();
    operand->stride = tensor->dim() > dims ? tensor->stride(dims) : 1;
  }
  int last = -1;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 1) continue;
    bool even = last >= 0;
    for (const auto& [tensor, operand] : operands) even = even && operand->outer[last] == tensor->stride(d) * sizes[d];
    if (!even && ++last >= Walk::kMaxOuter) throw std::runtime_error("emc_fast: more than 16 leading dimensions that cannot be merged");
    walk.sizes[last] = even ? walk.sizes[last] * sizes[d] : sizes[d];
    for (const auto& [tensor, operand] : operands) operand->outer[last] = tensor->stride(d);
  }
  walk.outer = last + 1;
  return walk;
}

}  // namespace emc
