// Boxed operators attention and attention_backward for CUDA. Schemas and checks: emc_fast/ops/attention.py.
#include <algorithm>
#include <climits>
#include <cmath>

#include "../../cuda/attention_arguments.h"
#include "device.h"

namespace emc {
namespace {

// What both operators take, in the order of their schemas.
struct AttentionInputs {
  Tensor query, key, value, statistics, key_mask, seed;
  bool causal;
  int64_t window, stream;
  std::optional<StableIValue> scale;
  double dropout_p;

  AttentionInputs(const StableIValue* stack, bool backward)
      : query(take_tensor(stack[0])), key(take_tensor(stack[1])), value(take_tensor(stack[2])) {
    if (backward) statistics = take_tensor(stack[3]);
    const StableIValue* options = stack + (backward ? 4 : 3);
    key_mask = take_optional_tensor(options[0]);
    causal = take_bool(options[1]);
    window = take_int(options[2]);
    scale = take_optional(options[3]);
    dropout_p = take_double(options[4]);
    seed = take_optional_tensor(options[5]);
    stream = take_int(options[6]);
  }

  cuda::Attention arguments() const {
    cuda::Attention a{};
    a.dtype = dtype_of(query, "query");
    if (dtype_of(key, "key") != a.dtype || dtype_of(value, "value") != a.dtype)
      throw std::runtime_error("emc_fast: query, key and value must have one dtype");
    const int64_t queries = query.size(1), keys = key.size(1), width = query.size(3);
    if (width > cuda::kAttentionMaxWidth) throw std::runtime_error("emc_fast: the head width exceeds 128");
    if (queries + keys > INT_MAX - 1024) throw std::runtime_error("emc_fast: attention takes fewer than 2^31 queries and keys");
    a.batch = query.size(0), a.heads = query.size(2);
    a.queries = static_cast<int>(queries), a.keys = static_cast<int>(keys), a.width = static_cast<int>(width);
    a.query = operand(query), a.key = operand(key), a.value = operand(value);
    set_seen(a, key_mask, causal, window);
    const double factor = scale ? take_double(*scale) : 1.0 / std::sqrt(static_cast<double>(width));
    a.scale = static_cast<float>(factor);
    a.scale2 = static_cast<float>(factor * 1.4426950408889634);
    a.dropout_scale = 1.0f;
    if (dropout_p > 0.0) {
      if (!seed) throw std::runtime_error("emc_fast: dropout needs a seed");
      const int64_t lead = a.batch * a.heads, seeds = seed.numel();
      if (seeds == 0 || lead % seeds != 0) throw std::runtime_error("emc_fast: the seeds do not divide the batch and the heads");
      if (seed.torch_dtype() != aoti_torch_dtype_int64() || !seed.is_contiguous())
        throw std::runtime_error("emc_fast: seed must be a contiguous int64 tensor");
      a.dropout = true;
      a.noise = {seed.data_as<const int64_t>(), nullptr, lead / seeds, queries, static_cast<uint32_t>(stream)};
      a.keep_from = keep_from(dropout_p);
      a.dropout_scale = dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - dropout_p)) : 0.0f;
    }
    return a;
  }

  static cuda::HeadsOperand operand(const Tensor& tensor) {
    cuda::HeadsOperand x{};
    x.data = tensor.data();
    std::copy_n(tensor.strides(), 4, x.stride);
    return x;
  }
};

void attention(StableIValue* stack, uint64_t, uint64_t) {
  const AttentionInputs in(stack, false);
  const OnDevice on(in.query);
  Tensor out = on.empty_like(in.query);
  const int64_t sizes[4] = {2, in.query.size(0), in.query.size(2), in.query.size(1)};
  Tensor statistics = on.empty(sizes, 4, aoti_torch_dtype_float32());
  if (out.numel() > 0) {
    cuda::Attention a = in.arguments();
    a.out = out.data(), a.statistics = statistics.data_as<float>();
    check_launch(cuda::emc_cuda_attention(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(out));
  stack[1] = give(std::move(statistics));
}

void attention_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]);
  const AttentionInputs in(stack + 1, true);
  const OnDevice on(in.query);
  Tensor grad_query = on.empty_like(in.query), grad_key = on.empty_like(in.key), grad_value = on.empty_like(in.value);
  if (in.query.numel() > 0 || in.key.numel() > 0) {
    cuda::Attention a = in.arguments();
    if (dtype_of(grad_out, "grad_out") != a.dtype) throw std::runtime_error("emc_fast: grad_out must have the dtype of query");
    if (!in.statistics.is_contiguous()) throw std::runtime_error("emc_fast: statistics must be contiguous");
    a.grad_out = AttentionInputs::operand(grad_out);
    a.statistics = in.statistics.data_as<float>();
    const int64_t rows = a.batch * a.heads * a.queries;
    const Tensor delta = on.empty(&rows, 1, aoti_torch_dtype_float32());
    a.delta = delta.data_as<float>();
    a.grad_query = grad_query.data(), a.grad_key = grad_key.data(), a.grad_value = grad_value.data();
    check_launch(cuda::emc_cuda_attention_backward(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(grad_query));
  stack[1] = give(std::move(grad_key));
  stack[2] = give(std::move(grad_value));
}

const RegisterCuda attention_registered({{"attention", attention}, {"attention_backward", attention_backward}});

}  // namespace
}  // namespace emc
