// Boxed operators for a whole attention block in float32 on the CPU, forward, backward and inference. Schemas and the choice between these
// and the composed block: emc_fast/ops/attention_block.py.
#include <cmath>

#include "../cpu/matrix_product_kernels.h"
#include "attention_block_epilogue.h"
#include "attention_run.h"

namespace emc {
namespace {

// Multiplications that are worth a thread.
constexpr int64_t kWorth = int64_t{1} << 18;

// Products that do not wait for each other: all right operands are packed, then all blocks of rows are computed.
class Products {
 public:
  void add(const ProductArgs& args) {
    if (args.rows > 0 && args.columns > 0) all_.push_back(args);
  }

  // `after(which, first row, end row, memory)` follows each block of rows on its thread, with room for `after_floats` floats.
  template <class After>
  void run(int64_t after_floats, const After& after) {
    const auto& kernels = EMC_KERNELS_AMX(matrix_product_kernels);
    std::vector<int64_t> pack_ends, row_ends, starts;
    int64_t pack_tasks = 0, row_tasks = 0, floats = 0, workspace = 0, work = 0;
    for (const ProductArgs& p : all_) {
      const bool packed = product_is_packed(p);
      starts.push_back(floats);
      floats += packed ? (kernels.packed_floats(p) + 15) / 16 * 16 : 0;
      workspace = std::max(workspace, kernels.workspace(p));
      pack_ends.push_back(pack_tasks += packed ? product_column_tasks(p) : 0);
      row_ends.push_back(row_tasks += product_row_tasks(p));
      work = std::max(work, product_task_rows(p) * p.inner * p.columns);
    }
    workspace = (workspace + 15) / 16 * 16;
    const Workspace packed(floats);
    for (size_t i = 0; i < all_.size(); ++i) all_[i].packed = packed.get() + starts[i];
    const auto each = [&](const std::vector<int64_t>& ends, int64_t begin, int64_t end, const auto& body) {
      for (size_t i = 0; i < all_.size() && begin < end; ++i) {
        const int64_t first = i == 0 ? 0 : ends[i - 1];
        if (begin >= ends[i]) continue;
        const int64_t last = std::min(end, ends[i]);
        body(i, begin - first, last - first);
        begin = last;
      }
    };
    const int64_t grain = kWorth / (work + 1) + 1;
    parallel_with_workspace(pack_tasks, grain * 4, 1, [&](int64_t begin, int64_t end, float* memory) {
      each(pack_ends, begin, end, [&](size_t i, int64_t from, int64_t to) { kernels.pack(all_[i], from, to, memory); });
    });
    parallel_with_workspace(row_tasks, grain, workspace + after_floats, [&](int64_t begin, int64_t end, float* memory) {
      each(row_ends, begin, end, [&](size_t i, int64_t from, int64_t to) {
        const int64_t height = product_task_rows(all_[i]);
        for (int64_t task = from; task < to; ++task) {
          kernels.run(all_[i], task, task + 1, memory);
          after(i, task * height, std::min((task + 1) * height, all_[i].rows), memory + workspace);
        }
      });
    });
  }
  void run() {
    run(0, [](size_t, int64_t, int64_t, float*) {});
  }

 private:
  std::vector<ProductArgs> all_;
};

Matrix dense(const Tensor& tensor, int64_t columns) { return {tensor.data_as<const float>(), columns, 1}; }
Matrix transposed(const Matrix& m) { return {m.data, m.column_stride, m.row_stride}; }
Matrix of_weight(const Tensor& w) { return {w.data_as<const float>(), w.stride(0), w.stride(1)}; }

// The arguments that forward, backward and inference share, in the order of the schema from `stack` on.
struct Block {
  Tensor x, memory, w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o, ln_weight, ln_bias;
  double ln_eps;
  int64_t heads;
  Tensor key_mask;
  bool causal;
  int64_t window;
  double dropout_p;
  Tensor seed;
  int64_t stream, batch = 0, queries = 0, keys = 0, width = 0;
  Precision precision = float32_precision();  // of all products of the call

  explicit Block(StableIValue* stack)
      : x(take_tensor(stack[0])),
        memory(take_tensor(stack[1])),
        w_q(take_tensor(stack[2])),
        b_q(take_optional_tensor(stack[3])),
        w_k(take_tensor(stack[4])),
        b_k(take_optional_tensor(stack[5])),
        w_v(take_tensor(stack[6])),
        b_v(take_optional_tensor(stack[7])),
        w_o(take_tensor(stack[8])),
        b_o(take_optional_tensor(stack[9])),
        ln_weight(take_tensor(stack[10])),
        ln_bias(take_optional_tensor(stack[11])),
        ln_eps(take_double(stack[12])),
        heads(take_int(stack[13])),
        key_mask(take_optional_tensor(stack[14])),
        causal(take_bool(stack[15])),
        window(take_int(stack[16])),
        dropout_p(take_double(stack[17])),
        seed(take_optional_tensor(stack[18])),
        stream(take_int(stack[19])) {
    if (x.dim() == 3 && memory.dim() == 3) batch = x.size(0), queries = x.size(1), keys = memory.size(1), width = x.size(2);
  }

  // After all tensors of the stack are owned: an exception may follow. Complete, since inference comes here unchecked.
  void check() const {
    const auto require = [](bool holds, const char* what) {
      if (!holds) throw std::runtime_error(std::string("emc_fast: the fused attention block takes ") + what);
    };
    const auto is_float = [](const Tensor& t) {
      return t.torch_dtype() == aoti_torch_dtype_float32() && t.device_type() == aoti_torch_device_type_cpu();
    };
    require(x.dim() == 3 && memory.dim() == 3, "x and memory of 3 dimensions");
    require(memory.size(0) == batch && memory.size(2) == width, "memory of x's batch and width");
    for (const Tensor* t : {&x, &memory}) require(is_float(*t) && t->is_contiguous(), "contiguous float32 x and memory");
    for (const Tensor* t : {&w_q, &w_k, &w_v, &w_o})
      require(is_float(*t) && t->dim() == 2 && t->size(0) == width && t->size(1) == width, "float32 weights (d,d)");
    for (const Tensor* t : {&b_q, &b_k, &b_v, &b_o, &ln_weight, &ln_bias})
      if (*t) require(is_float(*t) && t->is_contiguous() && t->dim() == 1 && t->size(0) == width, "contiguous float32 vectors (d,)");
    require(heads > 0 && width > 0 && width % heads == 0 && width / heads <= kAttentionMaxWidth, "heads that divide d, up to 128 wide");
    if (key_mask)
      require(key_mask.torch_dtype() == aoti_torch_dtype_bool() && key_mask.device_type() == aoti_torch_device_type_cpu() &&
                  key_mask.dim() == 2 && key_mask.size(0) == batch && key_mask.size(1) == keys,
              "a bool key_mask (B,S)");
  }

  int64_t rows() const { return batch * queries; }
  int64_t context_rows() const { return batch * keys; }

  // y W^T + b
  ProductArgs project(const Matrix& y, int64_t count, const Tensor& w, const Tensor& b, float* out) const {
    ProductArgs p;
    p.rows = count, p.inner = p.columns = width, p.precision = precision;
    p.a = y, p.b = transposed(of_weight(w)), p.out = out;
    p.bias = b ? b.data_as<const float>() : nullptr;
    return p;
  }
  // grad W (+ add)
  ProductArgs project_back(const float* grad, int64_t count, const Tensor& w, const float* add, float* out) const {
    ProductArgs p;
    p.rows = count, p.inner = p.columns = width, p.precision = precision;
    p.a = Matrix{grad, width, 1}, p.b = of_weight(w), p.add = add, p.out = out;
    return p;
  }
  // grad^T y
  ProductArgs of_weights(const float* grad, const Matrix& y, int64_t count, float* out) const {
    ProductArgs p;
    p.rows = p.columns = width, p.inner = count, p.precision = precision;
    p.a = Matrix{grad, 1, width}, p.b = y, p.out = out;
    return p;
  }

  // The memory as a matrix. Masked rows are zero: 0 * NaN would reach the gradients of the weights.
  Matrix context(Tensor& copy) const {
    if (!key_mask) return dense(memory, width);
    copy = empty_like(memory);
    const float* from = memory.data_as<const float>();
    float* to = copy.data_as<float>();
    const bool* mask = key_mask.data_as<const bool>();
    const int64_t row = key_mask.stride(0), step = key_mask.stride(1);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t s = 0; s < keys; ++s, from += width, to += width)
        if (mask[b * row + s * step]) {
          __builtin_memcpy(to, from, static_cast<size_t>(width) * sizeof(float));
        } else {
          std::fill_n(to, width, 0.f);
        }
    return dense(copy, width);
  }

  AttentionOperand heads_of(const float* y, int64_t length) const {
    AttentionOperand o;
    o.data = const_cast<float*>(y);
    o.stride[0] = length * width, o.stride[1] = width, o.stride[2] = width / heads, o.stride[3] = 1;
    return o;
  }
  AttentionArgs attention(const float* q, const float* k, const float* v, const KeyLists& lists, float* statistics) const {
    AttentionArgs a;
    a.batch = batch, a.queries = queries, a.keys = keys, a.heads = heads, a.width = width / heads, a.precision = precision;
    check_length(a);
    a.query = heads_of(q, queries), a.key = heads_of(k, keys), a.value = heads_of(v, keys);
    a.statistics = statistics;
    a.key_index = lists.index.data(), a.key_count = lists.count.data(), a.key_index_stride = key_mask ? keys : 0;
    a.causal = causal, a.window = window;
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.width)));
    set_dropout(a, dropout_p, seed, stream);
    return a;
  }

  // q, k, v, attended, update: (B,T or S,d) each; the rest as the operator's outputs.
  void forward(float* q, float* k, float* v, float* attended, float* statistics, const Tensor& update, const Tensor& mean,
               const Tensor& inverse_deviation, const Tensor& out) const {
    if (rows() == 0) return;
    Tensor copy;
    const Matrix context_matrix = context(copy);
    Products in;
    in.add(project(dense(x, width), rows(), w_q, b_q, q));
    in.add(project(context_matrix, context_rows(), w_k, b_k, k));
    in.add(project(context_matrix, context_rows(), w_v, b_v, v));
    in.run();
    const KeyLists lists(key_mask, batch, keys);
    AttentionArgs a = attention(q, k, v, lists, statistics);
    a.out = heads_of(attended, queries);
    run_attention(a);
    BlockArgs end = epilogue_arguments(x, update, ln_weight, dropout_p, seed, stream + 1);
    end.bias = matrix(ln_bias, "bias"), end.out = matrix(out, "out"), end.eps = ln_eps;
    end.mean = mean.data_as<float>(), end.inverse_deviation = inverse_deviation.data_as<float>();
    const auto& kernels = EMC_KERNELS(attention_block_kernels);
    Products last;
    last.add(project(Matrix{attended, width, 1}, rows(), w_o, b_o, update.data_as<float>()));
    last.run(block_scratch(width), [&](size_t, int64_t begin, int64_t end_row, float* scratch) {  // while the rows are in the cache
      kernels.forward(end, begin, end_row, scratch);
    });
  }
};

void fused(StableIValue* stack, uint64_t, uint64_t) {
  const Block block(stack);
  block.check();
  const int64_t query_sizes[3] = {block.batch, block.queries, block.width}, key_sizes[3] = {block.batch, block.keys, block.width};
  const int64_t statistics_sizes[4] = {2, block.batch, block.heads, block.queries};
  const int32_t type = aoti_torch_dtype_float32();
  Tensor out = empty_cpu(query_sizes, 3, type), q = empty_cpu(query_sizes, 3, type), k = empty_cpu(key_sizes, 3, type);
  Tensor v = empty_cpu(key_sizes, 3, type), attended = empty_cpu(query_sizes, 3, type), statistics = empty_cpu(statistics_sizes, 4, type);
  Tensor update = empty_cpu(query_sizes, 3, type), mean = statistic(block.x), inverse_deviation = statistic(block.x);
  block.forward(q.data_as<float>(), k.data_as<float>(), v.data_as<float>(), attended.data_as<float>(), statistics.data_as<float>(), update,
                mean, inverse_deviation, out);
  Tensor* results[9] = {&out, &q, &k, &v, &attended, &statistics, &update, &mean, &inverse_deviation};
  for (int i = 0; i < 9; ++i) stack[i] = give(std::move(*results[i]));
}

void inference(StableIValue* stack, uint64_t, uint64_t) {
  const Block block(stack);
  block.check();
  Tensor out = empty_like(block.x);
  const int64_t query = block.rows() * block.width, key = block.context_rows() * block.width, statistics = 2 * block.rows() * block.heads;
  const int64_t floats = 2 * query + 2 * key + statistics;
  const Workspace scratch(floats);
  const Tensor mean = statistic(block.x), inverse_deviation = statistic(block.x);
  float *q = scratch.get(), *k = q + query, *v = k + key, *attended = v + key, *sums = attended + query;
  // A row of `update` becomes one of `out` after the row has been read.
  block.forward(q, k, v, attended, sums, out, mean, inverse_deviation, out);
  stack[0] = give(std::move(out));
}

void fused_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]), q = take_tensor(stack[1]), k = take_tensor(stack[2]), v = take_tensor(stack[3]);
  const Tensor attended = take_tensor(stack[4]), statistics = take_tensor(stack[5]), update = take_tensor(stack[6]);
  const Tensor mean = take_tensor(stack[7]), inverse_deviation = take_tensor(stack[8]);
  const Block block(stack + 9);
  block.check();
  const int64_t width = block.width, rows = block.rows(), context_rows = block.context_rows();
  Tensor grad_x = empty_like(block.x), grad_memory = empty_like(block.memory), grad_update = empty_like(update);
  Tensor grad_ln_weight = empty_like(block.ln_weight), grad_ln_bias = empty_like(block.ln_weight), grad_b_o = empty_like(block.ln_weight);
  Tensor grad_b_q = empty_like(block.ln_weight), grad_b_k = empty_like(block.ln_weight), grad_b_v = empty_like(block.ln_weight);
  const int64_t square[2] = {width, width};
  const int32_t type = aoti_torch_dtype_float32();
  Tensor grad_w_q = empty_cpu(square, 2, type), grad_w_k = empty_cpu(square, 2, type), grad_w_v = empty_cpu(square, 2, type);
  Tensor grad_w_o = empty_cpu(square, 2, type);

  BlockArgs end = epilogue_arguments(block.x, update, block.ln_weight, block.dropout_p, block.seed, block.stream + 1);
  end.grad_out = matrix(grad_out, "grad_out"), end.grad_x = matrix(grad_x, "grad_x"), end.grad_update = matrix(grad_update, "grad_update");
  end.grad_weight = matrix(grad_ln_weight, "grad_weight"), end.grad_bias = matrix(grad_ln_bias, "grad_bias");
  end.grad_update_sum = matrix(grad_b_o, "grad_update_sum");
  end.mean = mean.data_as<float>(), end.inverse_deviation = inverse_deviation.data_as<float>();
  run_epilogue_backward(end);

  const Workspace scratch(2 * (rows + context_rows) * width);
  float *grad_attended = scratch.get(), *of_q = grad_attended + rows * width, *of_k = of_q + rows * width,
        *of_v = of_k + context_rows * width;
  Products into_attention;
  into_attention.add(block.project_back(grad_update.data_as<float>(), rows, block.w_o, nullptr, grad_attended));
  into_attention.run();
  const KeyLists lists(block.key_mask, block.batch, block.keys);
  if (rows > 0 || context_rows > 0) {
    AttentionArgs a = block.attention(q.data_as<float>(), k.data_as<float>(), v.data_as<float>(), lists, statistics.data_as<float>());
    a.grad_out = block.heads_of(grad_attended, block.queries);
    a.grad_query = block.heads_of(of_q, block.queries);
    a.grad_key = block.heads_of(of_k, block.keys), a.grad_value = block.heads_of(of_v, block.keys);
    run_attention_backward(a);
  }

  Tensor copy;
  const Matrix context = block.context(copy);
  Products first;
  first.add(block.project_back(of_q, rows, block.w_q, grad_x.data_as<float>(), grad_x.data_as<float>()));
  first.add(block.project_back(of_k, context_rows, block.w_k, nullptr, grad_memory.data_as<float>()));
  first.add(block.of_weights(of_q, dense(block.x, width), rows, grad_w_q.data_as<float>()));
  first.add(block.of_weights(of_k, context, context_rows, grad_w_k.data_as<float>()));
  first.add(block.of_weights(of_v, context, context_rows, grad_w_v.data_as<float>()));
  first.add(block.of_weights(grad_update.data_as<float>(), dense(attended, width), rows, grad_w_o.data_as<float>()));
  first.run();
  Products second;  // adds to the first's
  second.add(block.project_back(of_v, context_rows, block.w_v, grad_memory.data_as<float>(), grad_memory.data_as<float>()));
  second.run();
  const auto& kernels = EMC_KERNELS_AMX(matrix_product_kernels);
  kernels.sum_rows(of_q, rows, width, grad_b_q.data_as<float>());
  kernels.sum_rows(of_k, context_rows, width, grad_b_k.data_as<float>());
  kernels.sum_rows(of_v, context_rows, width, grad_b_v.data_as<float>());

  Tensor* results[12] = {&grad_x,   &grad_memory, &grad_w_q, &grad_b_q, &grad_w_k,       &grad_b_k,
                         &grad_w_v, &grad_b_v,    &grad_w_o, &grad_b_o, &grad_ln_weight, &grad_ln_bias};
  for (int i = 0; i < 12; ++i) stack[i] = give(std::move(*results[i]));
}

const Register cpu("CPU", {{"attention_block_fused", fused},
                           {"attention_block_fused_backward", fused_backward},
                           {"attention_block_inference", inference}});

}  // namespace
}  // namespace emc
