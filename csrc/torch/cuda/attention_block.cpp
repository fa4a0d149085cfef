// Boxed operators attention_block_epilogue and its backward for CUDA. Schemas: emc_fast/ops/attention_block.py, which composes the block.
#include "../../cuda/attention_block_arguments.h"
#include "device.h"

namespace emc {
namespace {

cuda::BlockOperand block_operand(const Tensor& tensor, const char* name) {
  if (!tensor) return {};
  if (!tensor.is_contiguous()) throw std::runtime_error(std::string("emc_fast: ") + name + " must be contiguous");
  return {tensor.data(), dtype_of(tensor, name), false};
}

cuda::BlockEpilogue block_epilogue(const Tensor& x, const Tensor& update, const Tensor& weight, double dropout_p, const Tensor& seed,
                                   int64_t stream) {
  cuda::BlockEpilogue a{};
  a.width = x.size(-1), a.rows = x.numel() / a.width;
  if (update.numel() != x.numel() || weight.numel() != a.width) throw std::runtime_error("emc_fast: x, update and weight do not fit");
  a.x = block_operand(x, "x"), a.update = block_operand(update, "update"), a.weight = block_operand(weight, "weight");
  if (dropout_p > 0.0) {
    if (!seed) throw std::runtime_error("emc_fast: dropout needs a seed");
    a.dropout = true;
    a.noise = device_noise(x, seed, stream, Tensor());
    a.keep_from = keep_from(dropout_p);
    a.dropout_scale = dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - dropout_p)) : 0.0f;
  }
  return a;
}

void attention_block_epilogue(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), update = take_tensor(stack[1]), weight = take_tensor(stack[2]);
  const Tensor bias = take_optional_tensor(stack[3]);
  const double eps = take_double(stack[4]), dropout_p = take_double(stack[5]);
  const Tensor seed = take_optional_tensor(stack[6]);
  const int64_t stream = take_int(stack[7]);

  const OnDevice on(x);
  Tensor out = on.empty_like(x);
  Tensor mean = on.empty(x.sizes(), x.dim() - 1, aoti_torch_dtype_float32());
  Tensor inverse_deviation = on.empty(x.sizes(), x.dim() - 1, aoti_torch_dtype_float32());
  if (x.numel() > 0) {
    cuda::BlockEpilogue a = block_epilogue(x, update, weight, dropout_p, seed, stream);
    a.bias = block_operand(bias, "bias"), a.out = block_operand(out, "out"), a.eps = static_cast<float>(eps);
    a.mean = mean.data_as<float>(), a.inverse_deviation = inverse_deviation.data_as<float>();
    check_launch(cuda::emc_cuda_attention_block(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(out));
  stack[1] = give(std::move(mean));
  stack[2] = give(std::move(inverse_deviation));
}

void attention_block_epilogue_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]), x = take_tensor(stack[1]), update = take_tensor(stack[2]), weight = take_tensor(stack[3]);
  const Tensor mean = take_tensor(stack[4]), inverse_deviation = take_tensor(stack[5]);
  const double dropout_p = take_double(stack[6]);
  const Tensor seed = take_optional_tensor(stack[7]);
  const int64_t stream = take_int(stack[8]);

  const OnDevice on(x);
  Tensor grad_x = on.empty_like(x), grad_update = on.empty_like(update);
  Tensor grad_weight = on.empty_like(weight), grad_bias = on.empty_like(weight);
  const int64_t width = weight.numel();
  Tensor grad_update_sum = on.empty(&width, 1, update.torch_dtype());
  if (width > 0) {
    cuda::BlockEpilogue a = block_epilogue(x, update, weight, dropout_p, seed, stream);
    a.grad_out = block_operand(grad_out, "grad_out");
    a.grad_x = block_operand(grad_x, "grad_x"), a.grad_update = block_operand(grad_update, "grad_update");
    a.grad_weight = block_operand(grad_weight, "grad_weight"), a.grad_bias = block_operand(grad_bias, "grad_bias");
    a.grad_update_sum = block_operand(grad_update_sum, "grad_update_sum");
    a.mean = mean.data_as<float>(), a.inverse_deviation = inverse_deviation.data_as<float>();
    cuda::set_groups(&a);
    const int64_t sizes[3] = {a.groups, 3, width};
    const Tensor partial = on.empty(sizes, 3, aoti_torch_dtype_float32());
    a.partial = partial.data_as<float>();
    check_launch(cuda::emc_cuda_attention_block_backward(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(grad_x));
  stack[1] = give(std::move(grad_update));
  stack[2] = give(std::move(grad_weight));
  stack[3] = give(std::move(grad_bias));
  stack[4] = give(std::move(grad_update_sum));
}

const RegisterCuda attention_block_registered({{"attention_block_epilogue", attention_block_epilogue},
                                               {"attention_block_epilogue_backward", attention_block_epilogue_backward}});

}  // namespace
}  // namespace emc
