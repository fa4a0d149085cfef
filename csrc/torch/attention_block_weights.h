// The parameters of an attention block as they stand on the stack, for the CPU's boxed operators and for CUDA's.
#pragma once

#include "boxed.h"

namespace emc {

// The parameters of a block, in the order of the schema. In a sublayer the LayerNorm may be absent.
struct BlockWeights {
  Tensor w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o, ln_weight, ln_bias;
  double ln_eps;

  static constexpr int kSlots = 11;  // of the stack
  explicit BlockWeights(const StableIValue* stack, bool sublayer = false)
      : w_q(take_tensor(stack[0])),
        b_q(take_optional_tensor(stack[1])),
        w_k(take_tensor(stack[2])),
        b_k(take_optional_tensor(stack[3])),
        w_v(take_tensor(stack[4])),
        b_v(take_optional_tensor(stack[5])),
        w_o(take_tensor(stack[6])),
        b_o(take_optional_tensor(stack[7])),
        ln_weight(sublayer ? take_optional_tensor(stack[8]) : take_tensor(stack[8])),
        ln_bias(take_optional_tensor(stack[9])),
        ln_eps(take_double(stack[10])) {}
};

}  // namespace emc
