// Boxed operators attention and attention_backward for the CPU. Schemas and checks: emc_fast/ops/attention.py.
#include <algorithm>
#include <cmath>

#include "attention_run.h"

namespace emc {
namespace {

AttentionOperand operand(const Tensor& tensor) {
  AttentionOperand x;
  x.data = tensor.data();
  std::copy_n(tensor.strides(), 4, x.stride);
  return x;
}

AttentionArgs arguments(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& key_mask, const KeyLists& lists,
                        bool causal, int64_t window, std::optional<StableIValue> scale, double dropout_p, const Tensor& seed,
                        int64_t stream) {
  AttentionArgs a;
  a.batch = query.size(0), a.queries = query.size(1), a.heads = query.size(2), a.width = query.size(3), a.keys = key.size(1);
  a.dtype = dtype_of(query, "query"), a.precision = float32_precision();
  if (dtype_of(key, "key") != a.dtype || dtype_of(value, "value") != a.dtype)
    throw std::runtime_error("emc_fast: query, key and value must have one dtype");
  if (a.width > kAttentionMaxWidth) throw std::runtime_error("emc_fast: the head width exceeds 128");
  check_length(a);
  a.query = operand(query), a.key = operand(key), a.value = operand(value);
  a.key_index = lists.index.data(), a.key_count = lists.count.data(), a.key_index_stride = key_mask ? a.keys : 0;
  a.causal = causal, a.window = window;
  a.scale = static_cast<float>(scale ? take_double(*scale) : 1.0 / std::sqrt(static_cast<double>(a.width)));
  set_dropout(a, dropout_p, seed, stream);
  return a;
}

void attention(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor query = take_tensor(stack[0]), key = take_tensor(stack[1]), value = take_tensor(stack[2]);
  const Tensor key_mask = take_optional_tensor(stack[3]);
  const bool causal = take_bool(stack[4]);
  const int64_t window = take_int(stack[5]);
  const auto scale = take_optional(stack[6]);
  const double dropout_p = take_double(stack[7]);
  const Tensor seed = take_optional_tensor(stack[8]);
  const int64_t stream = take_int(stack[9]);

  Tensor out = empty_like(query);
  const int64_t sizes[4] = {2, query.size(0), query.size(2), query.size(1)};
  Tensor statistics = empty_cpu(sizes, 4, aoti_torch_dtype_float32());
  if (out.numel() > 0) {
    const KeyLists lists(key_mask, query.size(0), key.size(1));
    AttentionArgs a = arguments(query, key, value, key_mask, lists, causal, window, scale, dropout_p, seed, stream);
    a.out = operand(out), a.statistics = statistics.data_as<float>();
    run_attention(a);
  }
  stack[0] = give(std::move(out));
  stack[1] = give(std::move(statistics));
}

void attention_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]), query = take_tensor(stack[1]), key = take_tensor(stack[2]), value = take_tensor(stack[3]);
  const Tensor statistics = take_tensor(stack[4]);
  const Tensor key_mask = take_optional_tensor(stack[5]);
  const bool causal = take_bool(stack[6]);
  const int64_t window = take_int(stack[7]);
  const auto scale = take_optional(stack[8]);
  const double dropout_p = take_double(stack[9]);
  const Tensor seed = take_optional_tensor(stack[10]);
  const int64_t stream = take_int(stack[11]);

  Tensor grad_query = empty_like(query), grad_key = empty_like(key), grad_value = empty_like(value);
  if (query.numel() > 0 || key.numel() > 0) {
    const KeyLists lists(key_mask, query.size(0), key.size(1));
    AttentionArgs a = arguments(query, key, value, key_mask, lists, causal, window, scale, dropout_p, seed, stream);
    if (dtype_of(grad_out, "grad_out") != a.dtype) throw std::runtime_error("emc_fast: grad_out must have the dtype of query");
    a.grad_out = operand(grad_out), a.statistics = statistics.data_as<float>();
    a.grad_query = operand(grad_query), a.grad_key = operand(grad_key), a.grad_value = operand(grad_value);
    run_attention_backward(a);
  }
  stack[0] = give(std::move(grad_query));
  stack[1] = give(std::move(grad_key));
  stack[2] = give(std::move(grad_value));
}

const Register cpu("CPU", {{"attention", attention}, {"attention_backward", attention_backward}});

}  // namespace
}  // namespace emc
