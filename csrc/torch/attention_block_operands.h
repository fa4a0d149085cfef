// The operands of an attention block, and its products and attention as calls of the kernels; for float32 on the CPU. Shared by the block
// with its LayerNorm behind (attention_block_fused.cpp) and the one with it before, or without (attention_sublayer.cpp).
#pragma once

#include <cmath>

#include "../cpu/matrix_product_kernels.h"
#include "attention_block_epilogue.h"
#include "attention_block_weights.h"
#include "attention_run.h"

namespace emc {

// Multiplications that are worth a thread.
constexpr int64_t kWorth = int64_t{1} << 18;

// Products that do not wait for each other: all right operands are packed, then all blocks of rows are computed.
class Products {
 public:
  void add(const ProductArgs& args) {
    if (args.rows > 0 && args.columns > 0) all_[count_++] = args;
  }

  // `after(which, first row, end row, memory)` follows each block of rows on its thread, with room for `after_floats` floats; once for
  // products that are computed together.
  template <class After>
  void run(int64_t after_floats, const After& after) {
    const auto& kernels = EMC_KERNELS_BF16(matrix_product_kernels);
    // Neighbours with one left operand are computed together: it is then read, and put in order, once.
    for (size_t i = count_; i-- > 1;)
      if (products_share(all_[i - 1], all_[i])) all_[i - 1].beside = &all_[i];
    const auto leads = [&](size_t i) { return i == 0 || all_[i - 1].beside == nullptr; };
    int64_t pack_ends[kMost], row_ends[kMost], starts[kMost];
    int64_t pack_tasks = 0, row_tasks = 0, floats = 0, workspace = 0, work = 0;
    for (size_t i = 0; i < count_; ++i) {
      const ProductArgs& p = all_[i];
      const bool packed = product_is_packed(p);
      starts[i] = floats;
      floats += packed ? (kernels.packed_floats(p) + 15) / 16 * 16 : 0;
      workspace = std::max(workspace, kernels.workspace(p));
      pack_ends[i] = pack_tasks += packed ? product_column_tasks(p) : 0;
      row_ends[i] = row_tasks += leads(i) ? product_row_tasks(p) : 0;
      work = std::max(work, product_task_rows(p) * p.inner * p.columns);
    }
    workspace = (workspace + 15) / 16 * 16;
    const Workspace packed(floats);
    for (size_t i = 0; i < count_; ++i) all_[i].packed = packed.get() + starts[i];
    const auto each = [&](const int64_t* ends, int64_t begin, int64_t end, const auto& body) {
      for (size_t i = 0; i < count_ && begin < end; ++i) {
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
    parallel_tasks(row_tasks, grain, workspace + after_floats, [&](int64_t task, float* memory) {
      each(row_ends, task, task + 1, [&](size_t i, int64_t from, int64_t to) {
        const int64_t height = product_task_rows(all_[i]);
        kernels.run(all_[i], from, to, memory);
        after(i, from * height, std::min(to * height, all_[i].rows), memory + workspace);
      });
    });
  }
  void run() {
    run(0, [](size_t, int64_t, int64_t, float*) {});
  }

 private:
  static constexpr size_t kMost = 8;  // of one call; a backward pass has seven
  ProductArgs all_[kMost];
  size_t count_ = 0;
};

inline Matrix dense(const Tensor& tensor, int64_t columns) { return {tensor.data_as<const float>(), columns, 1}; }
inline Matrix transposed(const Matrix& m) { return {m.data, m.column_stride, m.row_stride}; }
inline Matrix of_weight(const Tensor& w) { return {w.data_as<const float>(), w.stride(0), w.stride(1)}; }

// The arguments that forward, backward and inference share. Without a memory x attends to itself.
struct BlockOperands : BlockWeights {
  Tensor x, memory;
  int64_t heads;
  Tensor key_mask;
  bool causal;
  int64_t window;
  double dropout_p = 0.0;
  Tensor seed;
  int64_t stream = 0, batch = 0, queries = 0, keys = 0, width = 0;
  Precision precision = float32_precision();  // of all products of the call

  // In the order of the schema.
  explicit BlockOperands(const StableIValue* stack, bool sublayer = false)
      : BlockWeights(stack + 2, sublayer),
        x(take_tensor(stack[0])),
        memory(sublayer ? take_optional_tensor(stack[1]) : take_tensor(stack[1])),
        heads(take_int(stack[13])),
        key_mask(take_optional_tensor(stack[14])),
        causal(take_bool(stack[15])),
        window(take_int(stack[16])),
        dropout_p(take_double(stack[17])),
        seed(take_optional_tensor(stack[18])),
        stream(take_int(stack[19])) {
    measure();
  }
  BlockOperands(Tensor x_, Tensor memory_, BlockWeights weights, int64_t heads_, Tensor key_mask_, bool causal_, int64_t window_)
      : BlockWeights(std::move(weights)),
        x(std::move(x_)),
        memory(std::move(memory_)),
        heads(heads_),
        key_mask(std::move(key_mask_)),
        causal(causal_),
        window(window_) {
    measure();
  }
  void measure() {
    if (x.dim() != 3) return;
    batch = x.size(0), queries = keys = x.size(1), width = x.size(2);
    if (memory && memory.dim() == 3) keys = memory.size(1);
  }

  // After all tensors of the stack are owned: an exception may follow. Complete, since inference comes here unchecked.
  void check() const {
    const auto require = [](bool holds, const char* what) {
      if (!holds) throw std::runtime_error(std::string("emc_fast: the fused attention block takes ") + what);
    };
    const auto is_float = [](const Tensor& t) {
      return t.torch_dtype() == aoti_torch_dtype_float32() && t.device_type() == aoti_torch_device_type_cpu();
    };
    require(x.dim() == 3 && is_float(x) && x.is_contiguous(), "a contiguous float32 x of 3 dimensions");
    if (memory) {
      require(memory.dim() == 3 && memory.size(0) == batch && memory.size(2) == width, "memory of x's batch and width");
      require(is_float(memory) && memory.is_contiguous(), "a contiguous float32 memory");
    }
    for (const Tensor* t : {&w_q, &w_k, &w_v, &w_o})
      require(is_float(*t) && t->dim() == 2 && t->size(0) == width && t->size(1) == width, "float32 weights (d,d)");
    for (const Tensor* t : {&b_q, &b_k, &b_v, &b_o, &ln_weight, &ln_bias})
      if (*t) require(is_float(*t) && t->is_contiguous() && t->dim() == 1 && t->size(0) == width, "contiguous float32 vectors (d,)");
    require(ln_weight || !ln_bias, "no bias of a LayerNorm without its weight");
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

  // What keys and values are made of, (B,S,d) from `from` on, as a matrix. Masked rows are zero: 0 * NaN would reach the gradients of the
  // weights.
  Matrix context(const float* from, Tensor& copy) const {
    if (!key_mask) return {from, width, 1};
    const int64_t sizes[3] = {batch, keys, width};
    copy = empty_cpu(sizes, 3, aoti_torch_dtype_float32());
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

  // Queries are asked of `asked` (B T, d), keys and values made of `told` (B S, d); q, attended: (B,T,d), k, v: (B,S,d).
  void attend(const Matrix& asked, const Matrix& told, float* q, float* k, float* v, float* attended, float* statistics) const {
    Products in;
    in.add(project(asked, rows(), w_q, b_q, q));
    in.add(project(told, context_rows(), w_k, b_k, k));
    in.add(project(told, context_rows(), w_v, b_v, v));
    in.run();
    const KeyLists lists(key_mask, batch, keys);
    AttentionArgs a = attention(q, k, v, lists, statistics);
    a.out = heads_of(attended, queries);
    run_attention(a);
  }
};

// What attention's forward pass has kept for backward.
struct Attended {
  Tensor q, k, v, attended, statistics;

  explicit Attended(const StableIValue* stack)
      : q(take_tensor(stack[0])),
        k(take_tensor(stack[1])),
        v(take_tensor(stack[2])),
        attended(take_tensor(stack[3])),
        statistics(take_tensor(stack[4])) {}
  explicit Attended(const BlockOperands& block) {
    const int64_t query_sizes[3] = {block.batch, block.queries, block.width}, key_sizes[3] = {block.batch, block.keys, block.width};
    const int64_t statistics_sizes[4] = {2, block.batch, block.heads, block.queries};
    const int32_t type = aoti_torch_dtype_float32();
    q = empty_cpu(query_sizes, 3, type), k = empty_cpu(key_sizes, 3, type), v = empty_cpu(key_sizes, 3, type);
    attended = empty_cpu(query_sizes, 3, type), statistics = empty_cpu(statistics_sizes, 4, type);
  }
};

// The same for inference, in scratch memory.
struct AttentionScratch {
  const Workspace memory;
  float *q, *k, *v, *attended, *statistics, *mean, *inverse_deviation;

  explicit AttentionScratch(const BlockOperands& block)
      : memory(2 * (block.rows() + block.context_rows()) * block.width + 2 * block.rows() * (block.heads + 1)) {
    const int64_t query = block.rows() * block.width, key = block.context_rows() * block.width;
    q = memory.get(), k = q + query, v = k + key, attended = v + key, statistics = attended + query;
    mean = statistics + 2 * block.rows() * block.heads, inverse_deviation = mean + block.rows();
  }
};

// The gradients of the four projections, in two steps: of what they put out, and of what went into them.
struct ProjectionGradients {
  Tensor w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o;

  // grad_update: (B T, d), of the output projection's result.
  ProjectionGradients(const BlockOperands& block, const Attended& saved, const float* grad_update)
      : block_(block), saved_(saved), grad_update_(grad_update), scratch_(2 * (block.rows() + block.context_rows()) * block.width) {
    const int64_t square[2] = {block.width, block.width};
    for (Tensor* w : {&w_q, &w_k, &w_v, &w_o}) *w = empty_cpu(square, 2, aoti_torch_dtype_float32());
    for (Tensor* b : {&b_q, &b_k, &b_v, &b_o}) *b = empty_cpu(square, 1, aoti_torch_dtype_float32());
    float* grad_attended = scratch_.get();
    of_q_ = grad_attended + block.rows() * block.width, of_k_ = of_q_ + block.rows() * block.width;
    of_v_ = of_k_ + block.context_rows() * block.width;
    Products into_attention;
    into_attention.add(block.project_back(grad_update, block.rows(), block.w_o, nullptr, grad_attended));
    into_attention.run();
    const KeyLists lists(block.key_mask, block.batch, block.keys);
    if (block.rows() == 0 && block.context_rows() == 0) return;
    AttentionArgs a = block.attention(saved.q.data_as<float>(), saved.k.data_as<float>(), saved.v.data_as<float>(), lists,
                                      saved.statistics.data_as<float>());
    a.grad_out = block.heads_of(grad_attended, block.queries);
    a.grad_query = block.heads_of(of_q_, block.queries);
    a.grad_key = block.heads_of(of_k_, block.keys), a.grad_value = block.heads_of(of_v_, block.keys);
    run_attention_backward(a);
  }

  // asked, told: as for `attend`. grad_asked and grad_told may be one: then the one adds to the other. `beside` is added to grad_asked, or
  // null; it may be grad_asked.
  void finish(const Matrix& asked, const Matrix& told, const float* beside, float* grad_asked, float* grad_told) {
    const int64_t rows = block_.rows(), context_rows = block_.context_rows(), width = block_.width;
    // Each adds to what the one before it has made. The weights' are the longest and come first.
    Products first, second, third;
    const bool shared = grad_asked == grad_told;
    first.add(block_.of_weights(of_q_, asked, rows, w_q.data_as<float>()));
    first.add(block_.of_weights(of_k_, told, context_rows, w_k.data_as<float>()));
    first.add(block_.of_weights(of_v_, told, context_rows, w_v.data_as<float>()));
    first.add(block_.of_weights(grad_update_, dense(saved_.attended, width), rows, w_o.data_as<float>()));
    first.add(block_.project_back(of_q_, rows, block_.w_q, beside, grad_asked));
    (shared ? second : first).add(block_.project_back(of_k_, context_rows, block_.w_k, shared ? grad_told : nullptr, grad_told));
    (shared ? third : second).add(block_.project_back(of_v_, context_rows, block_.w_v, grad_told, grad_told));
    for (Products* products : {&first, &second, &third}) products->run();
    const auto& kernels = EMC_KERNELS_BF16(matrix_product_kernels);
    const float* const from[3] = {of_q_, of_k_, of_v_};
    Tensor* const to[3] = {&b_q, &b_k, &b_v};
    parallel_for(3, 65536 / (rows * width + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.sum_rows(from[i], i == 0 ? rows : context_rows, width, to[i]->data_as<float>());
    });
  }

 private:
  const BlockOperands& block_;
  const Attended& saved_;
  const float* grad_update_;
  const Workspace scratch_;
  float *of_q_, *of_k_, *of_v_;
};

}  // namespace emc
