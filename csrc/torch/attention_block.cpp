// Boxed operators attention_block_epilogue and its backward for the CPU. Schemas: emc_fast/ops/attention_block.py, which composes the
// block.
#include "../cpu/attention_block_kernels.h"
#include "attention_workspace.h"

namespace emc {
namespace {

BlockMatrix matrix(const Tensor& tensor, const char* name) {
  if (!tensor) return {};
  if (!tensor.is_contiguous()) throw std::runtime_error(std::string("emc_fast: ") + name + " must be contiguous");
  return {tensor.data(), dtype_of(tensor, name)};
}

BlockArgs arguments(const Tensor& x, const Tensor& update, const Tensor& weight, double dropout_p, const Tensor& seed, int64_t stream) {
  BlockArgs a;
  a.width = x.size(-1), a.rows = x.numel() / a.width;
  if (update.numel() != x.numel() || weight.numel() != a.width) throw std::runtime_error("emc_fast: x, update and weight do not fit");
  a.x = matrix(x, "x"), a.update = matrix(update, "update"), a.weight = matrix(weight, "weight");
  if (dropout_p > 0.0) {
    if (!seed) throw std::runtime_error("emc_fast: dropout needs a seed");
    a.dropout_p = dropout_p, a.noise = noise_of(x, seed, stream, Tensor());
  }
  return a;
}

Tensor statistic(const Tensor& x) { return empty_cpu(x.sizes(), x.dim() - 1, aoti_torch_dtype_float32()); }

// Rows worth a thread: about 16k elements.
int64_t grain(int64_t width) { return 16384 / width + 1; }

void epilogue(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), update = take_tensor(stack[1]), weight = take_tensor(stack[2]);
  const Tensor bias = take_optional_tensor(stack[3]);
  const double eps = take_double(stack[4]), dropout_p = take_double(stack[5]);
  const Tensor seed = take_optional_tensor(stack[6]);
  const int64_t stream = take_int(stack[7]);

  Tensor out = empty_like(x), mean = statistic(x), inverse_deviation = statistic(x);
  if (x.numel() > 0) {
    BlockArgs a = arguments(x, update, weight, dropout_p, seed, stream);
    a.bias = matrix(bias, "bias"), a.out = matrix(out, "out"), a.eps = eps;
    a.mean = mean.data_as<float>(), a.inverse_deviation = inverse_deviation.data_as<float>();
    const auto& kernels = EMC_KERNELS(attention_block_kernels);
    parallel_with_workspace(a.rows, grain(a.width), block_scratch(a.width),
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
    BlockArgs a = arguments(x, update, weight, dropout_p, seed, stream);
    a.grad_out = matrix(grad_out, "grad_out"), a.grad_x = matrix(grad_x, "grad_x"), a.grad_update = matrix(grad_update, "grad_update");
    a.grad_weight = matrix(grad_weight, "grad_weight"), a.grad_bias = matrix(grad_bias, "grad_bias");
    a.grad_update_sum = matrix(grad_update_sum, "grad_update_sum");
    a.mean = mean.data_as<float>(), a.inverse_deviation = inverse_deviation.data_as<float>();
    const int64_t groups = (a.rows + kBlockGroup - 1) / kBlockGroup, sizes[3] = {groups, 3, width};
    const Tensor partial = empty_cpu(sizes, 3, aoti_torch_dtype_float32());
    a.partial = partial.data_as<float>();
    const auto& kernels = EMC_KERNELS(attention_block_kernels);
    parallel_with_workspace(groups, grain(width) / kBlockGroup + 1, block_scratch(width),
                            [&](int64_t begin, int64_t end, float* scratch) { kernels.backward(a, begin, end, scratch); });
    parallel_with_workspace(1, 1, block_scratch(width), [&](int64_t, int64_t, float* scratch) { kernels.reduce(a, scratch); });
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
