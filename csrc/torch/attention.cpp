// Boxed operators attention and attention_backward for the CPU. Schemas and checks: emc_fast/ops/attention.py.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "../cpu/attention_kernels.h"
#include "attention_workspace.h"

namespace emc {
namespace {

AttentionOperand operand(const Tensor& tensor) {
  AttentionOperand x;
  x.data = tensor.data();
  std::copy_n(tensor.strides(), 4, x.stride);
  return x;
}

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

AttentionArgs arguments(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& key_mask, const KeyLists& lists,
                        bool causal, int64_t window, std::optional<StableIValue> scale, double dropout_p, const Tensor& seed,
                        int64_t stream) {
  AttentionArgs a;
  a.batch = query.size(0), a.queries = query.size(1), a.heads = query.size(2), a.width = query.size(3), a.keys = key.size(1);
  a.dtype = dtype_of(query, "query");
  if (dtype_of(key, "key") != a.dtype || dtype_of(value, "value") != a.dtype)
    throw std::runtime_error("emc_fast: query, key and value must have one dtype");
  if (a.width > kAttentionMaxWidth) throw std::runtime_error("emc_fast: the head width exceeds 128");
  if (a.queries + a.keys > INT32_MAX) throw std::runtime_error("emc_fast: attention takes fewer than 2^31 queries and keys");
  a.query = operand(query), a.key = operand(key), a.value = operand(value);
  a.key_index = lists.index.data(), a.key_count = lists.count.data(), a.key_index_stride = key_mask ? a.keys : 0;
  a.causal = causal, a.window = window;
  a.scale = static_cast<float>(scale ? take_double(*scale) : 1.0 / std::sqrt(static_cast<double>(a.width)));
  if (dropout_p > 0.0) {
    if (!seed) throw std::runtime_error("emc_fast: dropout needs a seed");
    a.dropout_p = dropout_p;
    const int64_t lead = a.batch * a.heads, seeds = seed.numel();
    if (seeds == 0 || lead % seeds != 0) throw std::runtime_error("emc_fast: the seeds do not divide the batch and the heads");
    a.noise = Noise{seed.data_as<const int64_t>(), lead / seeds, a.queries, 0, static_cast<uint32_t>(stream)};
  }
  return a;
}

// Tasks worth a thread: about 2^18 multiplications.
int64_t grain(const AttentionArgs& a) { return (int64_t{1} << 18) / (std::min(a.queries, kAttentionChunk) * a.keys * a.width + 1) + 1; }

// All tasks of a pass; each thread has its own workspace.
template <class Kernels>
void run_tasks(const Kernels& kernels, const AttentionArgs& a) {
  parallel_with_workspace(a.batch * a.heads * attention_chunks(a), grain(a), kernels.workspace(a),
                          [&](int64_t begin, int64_t end, float* workspace) {
                            for (int64_t task = begin; task < end; ++task) kernels.run(a, task, workspace);
                          });
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
    run_tasks(EMC_KERNELS_AMX(attention_forward_kernels), a);
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
    const auto& kernels = EMC_KERNELS_AMX(attention_backward_kernels);
    const int64_t chunks = attention_chunks(a), heads = a.batch * a.heads;
    Tensor partial;
    if (chunks != 1) {  // several, or no queries at all: the sum of nothing is zero
      const int64_t sizes[5] = {chunks, heads, 2, a.keys, a.width};
      partial = empty_cpu(sizes, 5, aoti_torch_dtype_float32());
      a.partial = partial.data_as<float>();
    }
    if (chunks > 0) run_tasks(kernels, a);
    if (chunks != 1)
      parallel_for(heads, 16384 / (a.keys * a.width + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head) kernels.reduce(a, head);
      });
  }
  stack[0] = give(std::move(grad_query));
  stack[1] = give(std::move(grad_key));
  stack[2] = give(std::move(grad_value));
}

const Register cpu("CPU", {{"attention", attention}, {"attention_backward", attention_backward}});

}  // namespace
}  // namespace emc
