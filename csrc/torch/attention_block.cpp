// Boxed operators attention_block_epilogue and its backward for the CPU. Schemas: emc_fast/ops/attention_block.py, which composes the
// block of them where attention_block_fused.cpp does not serve.
#include "attention_block_epilogue.h"

namespace emc {
namespace {

void epilogue(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), update = take_tensor(stack[1]), weight = take_tensor(stack[2]);
  const Tensor bias = take_optional_tensor(stack[3]);
  const double eps = take_double(stack[4]), dropout_p = take_double(stack[5]);
  const Tensor seed = take_optional_tensor(stack[6]);
  const int64_t stream = take_int(stack[7]);

  Tensor out = empty_like(x), mean = statistic(x), inverse_deviation = statistic(x);
  if (x.numel() > 0) {
    BlockArgs a = epilogue_arguments(x, update, weight, dropout_p, seed, stream);
    a.bias = matrix(bias, "bias"), a.out = matrix(out, "out"), a.eps = eps;
    a.mean = mean.data_as<float>(), a.inverse_deviation = inverse_deviation.data_as<float>();
    const auto& kernels = EMC_KERNELS(attention_block_kernels);
    parallel_with_workspace(a.rows, epilogue_grain(a.width), block_scratch(a.width),
                            [&](int64_t begin, int64_t end, float* scratch) { kernels.forward(a, begin, end, scratch); });
  }
  stack[0] = give(std::move(out));
  stack[1] = give(std::move(mean));
  stack[2] = give(std::move(inverse_deviation));
}

void epilogue_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]), x = take_tensor(stack[1]), update = take_tensor(stack[2]), weight = take_tensor(stack[3]);
  const Tensor mean = take_tensor(stack[4]), inverse_deviation = take_tensor(stack[5]);
  const double dropout_p = take_double(stack[6]);
  const Tensor seed = take_optional_tensor(stack[7]);
  const int64_t stream = take_int(stack[8]);

  Tensor grad_x = empty_like(x), grad_update = empty_like(update), grad_weight = empty_like(weight), grad_bias = empty_like(weight);
  const int64_t width = weight.numel();
  Tensor grad_update_sum = empty_cpu(&width, 1, update.torch_dtype());
  if (width > 0) {
    BlockArgs a = epilogue_arguments(x, update, weight, dropout_p, seed, stream);
    a.grad_out = matrix(grad_out, "grad_out"), a.grad_x = matrix(grad_x, "grad_x"), a.grad_update = matrix(grad_update, "grad_update");
    a.grad_weight = matrix(grad_weight, "grad_weight"), a.grad_bias = matrix(grad_bias, "grad_bias");
    a.grad_update_sum = matrix(grad_update_sum, "grad_update_sum");
    a.mean = mean.data_as<float>(), a.inverse_deviation = inverse_deviation.data_as<float>();
    run_epilogue_backward(a);
  }
  stack[0] = give(std::move(grad_x));
  stack[1] = give(std::move(grad_update));
  stack[2] = give(std::move(grad_weight));
  stack[3] = give(std::move(grad_bias));
  stack[4] = give(std::move(grad_update_sum));
}

const Register cpu("CPU", {{"attention_block_epilogue", epilogue}, {"attention_block_epilogue_backward", epilogue_backward}});

}  // namespace
}  // namespace emc
