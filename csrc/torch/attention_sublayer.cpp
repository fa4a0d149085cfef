// Boxed operators attention_sublayer, its backward and its inference, in float32 on the CPU. Schemas: emc_fast/ops/attention_sublayer.py.
#include "attention_block_operands.h"

namespace emc {
namespace {

// [x +] Dropout(W_o Attn(W_q n, W_k m, W_v m) + b_o); n = LayerNorm(x), or x where there is no LayerNorm; m = n where there is no memory.
struct Sublayer : BlockOperands {
  double output_p;
  bool residual;

  explicit Sublayer(StableIValue* stack) : BlockOperands(stack, true), output_p(take_double(stack[20])), residual(take_bool(stack[21])) {}

  // LayerNorm(x) without an update.
  BlockArgs norm(float* mean, float* inverse_deviation) const {
    BlockArgs a;
    a.rows = rows(), a.width = width, a.eps = ln_eps;
    a.x = matrix(x, "x"), a.weight = matrix(ln_weight, "weight"), a.bias = matrix(ln_bias, "bias");
    a.mean = mean, a.inverse_deviation = inverse_deviation;
    return a;
  }
  // [x +] Dropout(update), row by row.
  BlockArgs output(const float* update, bool with_x, float* out) const {
    BlockArgs a;
    a.rows = rows(), a.width = width;
    if (with_x) a.x = matrix(x, "x");
    a.update = {const_cast<float*>(update)}, a.out = {out};
    set_dropout(a, x, output_p, seed, stream + 1);
    return a;
  }

  Matrix asked(const float* normalised) const { return {ln_weight ? normalised : x.data_as<const float>(), width, 1}; }
  Matrix told(const Matrix& asked_, Tensor& copy) const { return context(memory ? memory.data_as<const float>() : asked_.data, copy); }

  // The arguments as of `attend`; normalised: (B,T,d), mean and inverse_deviation: (B,T), where there is a LayerNorm.
  void forward(float* normalised, float* mean, float* inverse_deviation, float* q, float* k, float* v, float* attended, float* statistics,
               float* out) const {
    if (rows() == 0) return;
    const auto& kernels = EMC_KERNELS(attention_block_kernels);
    if (ln_weight) {
      BlockArgs a = norm(mean, inverse_deviation);
      a.out = {normalised};
      parallel_with_workspace(a.rows, epilogue_grain(width), block_scratch(width),
                              [&](int64_t begin, int64_t end, float* scratch) { kernels.forward(a, begin, end, scratch); });
    }
    Tensor copy;
    attend(asked(normalised), told(asked(normalised), copy), q, k, v, attended, statistics);
    Products last;
    ProductArgs p = project(Matrix{attended, width, 1}, rows(), w_o, b_o, out);
    if (output_p > 0.0) {
      last.add(p);
      const BlockArgs end = output(out, residual, out);
      last.run(block_scratch(width), [&](size_t, int64_t begin, int64_t end_row, float* scratch) {  // while the rows are in the cache
        kernels.sum(end, begin, end_row, scratch);
      });
    } else {
      p.add = residual ? x.data_as<const float>() : nullptr;
      last.add(p);
      last.run();
    }
  }
};

// Like x where there is a LayerNorm, else empty.
Tensor with_norm(const Sublayer& s, const int64_t* sizes, int64_t dims) {
  const int64_t none = 0;
  return s.ln_weight ? empty_cpu(sizes, dims, aoti_torch_dtype_float32()) : empty_cpu(&none, 1, aoti_torch_dtype_float32());
}

void sublayer(StableIValue* stack, uint64_t, uint64_t) {
  const Sublayer s(stack);
  s.check();
  Tensor out = empty_like(s.x), normalised = with_norm(s, s.x.sizes(), 3), mean = with_norm(s, s.x.sizes(), 2);
  Tensor inverse_deviation = with_norm(s, s.x.sizes(), 2);
  Attended kept(s);
  s.forward(normalised.data_as<float>(), mean.data_as<float>(), inverse_deviation.data_as<float>(), kept.q.data_as<float>(),
            kept.k.data_as<float>(), kept.v.data_as<float>(), kept.attended.data_as<float>(), kept.statistics.data_as<float>(),
            out.data_as<float>());
  Tensor* results[9] = {&out, &kept.q, &kept.k, &kept.v, &kept.attended, &kept.statistics, &normalised, &mean, &inverse_deviation};
  for (int i = 0; i < 9; ++i) stack[i] = give(std::move(*results[i]));
}

void inference(StableIValue* stack, uint64_t, uint64_t) {
  const Sublayer s(stack);
  s.check();
  Tensor out = empty_like(s.x);
  const AttentionScratch scratch(s);
  const Workspace norm(s.ln_weight ? s.rows() * (s.width + 2) : 0);
  float *normalised = norm.get(), *mean = normalised + s.rows() * s.width, *inverse_deviation = mean + s.rows();
  s.forward(normalised, mean, inverse_deviation, scratch.q, scratch.k, scratch.v, scratch.attended, scratch.statistics,
            out.data_as<float>());
  stack[0] = give(std::move(out));
}

void backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]);
  const Attended kept(stack + 1);
  const Tensor normalised = take_tensor(stack[6]), mean = take_tensor(stack[7]), inverse_deviation = take_tensor(stack[8]);
  const Sublayer s(stack + 9);
  s.check();
  const int64_t none = 0, rows = s.rows(), width = s.width;
  const int32_t type = aoti_torch_dtype_float32();
  Tensor grad_x = empty_like(s.x), grad_memory = s.memory ? empty_like(s.memory) : empty_cpu(&none, 1, type);
  Tensor grad_ln_weight = with_norm(s, &width, 1), grad_ln_bias = with_norm(s, &width, 1);
  const auto& kernels = EMC_KERNELS(attention_block_kernels);

  const bool drops = s.output_p > 0.0;
  const Workspace scratch((drops ? rows * width : 0) + (s.ln_weight ? rows * width : 0));
  const float* grad_update = grad_out.data_as<const float>();
  float* grad_normalised = s.ln_weight ? scratch.get() + (drops ? rows * width : 0) : grad_x.data_as<float>();
  if (drops && rows > 0) {  // a dropout's gradient is its mask again
    const BlockArgs a = s.output(grad_update, false, scratch.get());
    parallel_with_workspace(rows, epilogue_grain(width), block_scratch(width),
                            [&](int64_t begin, int64_t end, float* memory) { kernels.sum(a, begin, end, memory); });
    grad_update = scratch.get();
  }

  ProjectionGradients grads(s, kept, grad_update);
  EMC_KERNELS_BF16(matrix_product_kernels).sum_rows(grad_update, rows, width, grads.b_o.data_as<float>());
  Tensor copy;
  const Matrix asked = s.asked(normalised.data_as<const float>());
  grads.finish(asked, s.told(asked, copy), !s.ln_weight && s.residual ? grad_out.data_as<const float>() : nullptr, grad_normalised,
               s.memory ? grad_memory.data_as<float>() : grad_normalised);
  if (s.ln_weight) {
    BlockArgs a = s.norm(mean.data_as<float>(), inverse_deviation.data_as<float>());
    a.grad_out = {grad_normalised}, a.grad_x = matrix(grad_x, "grad_x");
    if (s.residual) a.grad_beside = matrix(grad_out, "grad_out");
    a.grad_weight = matrix(grad_ln_weight, "grad_weight"), a.grad_bias = matrix(grad_ln_bias, "grad_bias");
    run_epilogue_backward(a);
  }
  Tensor* results[12] = {&grad_x,    &grad_memory, &grads.w_q, &grads.b_q, &grads.w_k,      &grads.b_k,
                         &grads.w_v, &grads.b_v,   &grads.w_o, &grads.b_o, &grad_ln_weight, &grad_ln_bias};
  for (int i = 0; i < 12; ++i) stack[i] = give(std::move(*results[i]));
}

const Register cpu("CPU", {{"attention_sublayer", sublayer},
                           {"attention_sublayer_backward", backward},
                           {"attention_sublayer_inference", inference}});

}  // namespace
}  // namespace emc
