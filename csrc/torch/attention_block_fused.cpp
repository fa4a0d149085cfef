// Boxed operators for a whole attention block in float32 on the CPU, forward, backward and inference, and for the three blocks of EA at
// inference. Schemas and the choice between these and the composed block: emc_fast/ops/attention_block.py, emotion_attention.py.
#include "attention_block_operands.h"

namespace emc {
namespace {

struct Block : BlockOperands {
  using BlockOperands::BlockOperands;

  const float* told() const { return (memory ? memory : x).data_as<const float>(); }

  // The arguments as of `attend`; update: (B,T,d), mean, inverse_deviation: (B,T).
  void forward(float* q, float* k, float* v, float* attended, float* statistics, const Tensor& update, float* mean,
               float* inverse_deviation, const Tensor& out) const {
    if (rows() == 0) return;
    Tensor copy;
    attend(dense(x, width), context(told(), copy), q, k, v, attended, statistics);
    BlockArgs end = epilogue_arguments(x, update, ln_weight, dropout_p, seed, stream + 1);
    end.bias = matrix(ln_bias, "bias"), end.out = matrix(out, "out"), end.eps = ln_eps;
    end.mean = mean, end.inverse_deviation = inverse_deviation;
    const auto& kernels = EMC_KERNELS(attention_block_kernels);
    Products last;
    last.add(project(Matrix{attended, width, 1}, rows(), w_o, b_o, update.data_as<float>()));
    last.run(block_scratch(width), [&](size_t, int64_t begin, int64_t end_row, float* scratch) {  // while the rows are in the cache
      kernels.forward(end, begin, end_row, scratch);
    });
  }

  // Without what backward reads.
  Tensor infer() const {
    check();
    Tensor out = empty_like(x);
    const AttentionScratch scratch(*this);
    // A row of `update` becomes one of `out` after the row has been read.
    forward(scratch.q, scratch.k, scratch.v, scratch.attended, scratch.statistics, out, scratch.mean, scratch.inverse_deviation, out);
    return out;
  }
};

void fused(StableIValue* stack, uint64_t, uint64_t) {
  const Block block(stack);
  block.check();
  Tensor out = empty_like(block.x), update = empty_like(block.x), mean = statistic(block.x), inverse_deviation = statistic(block.x);
  Attended kept(block);
  block.forward(kept.q.data_as<float>(), kept.k.data_as<float>(), kept.v.data_as<float>(), kept.attended.data_as<float>(),
                kept.statistics.data_as<float>(), update, mean.data_as<float>(), inverse_deviation.data_as<float>(), out);
  Tensor* results[9] = {&out, &kept.q, &kept.k, &kept.v, &kept.attended, &kept.statistics, &update, &mean, &inverse_deviation};
  for (int i = 0; i < 9; ++i) stack[i] = give(std::move(*results[i]));
}

void inference(StableIValue* stack, uint64_t, uint64_t) {
  const Block block(stack);
  stack[0] = give(block.infer());
}

// EA(f, e): f attends to itself, e to itself, and what comes of the first to what comes of the second.
void emotion_inference(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int kSlots = BlockWeights::kSlots;
  const StableIValue* const rest = stack + 2 + 3 * kSlots;
  const int64_t heads = take_int(rest[0]), window = take_int(rest[4]);
  const bool causal = take_bool(rest[3]);
  const Block features(take_tensor(stack[0]), Tensor(), BlockWeights(stack + 2), heads, take_optional_tensor(rest[1]), causal, window);
  Block emotion(take_tensor(stack[1]), Tensor(), BlockWeights(stack + 2 + kSlots), heads, take_optional_tensor(rest[2]), causal, window);
  BlockWeights weights(stack + 2 + 2 * kSlots);
  emotion.precision = features.precision;
  Tensor asked = features.infer(), told = emotion.infer();
  Block cross(std::move(asked), std::move(told), std::move(weights), heads, std::move(emotion.key_mask), causal, window);
  cross.precision = features.precision;
  stack[0] = give(cross.infer());
}

void fused_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_out = take_tensor(stack[0]);
  const Attended kept(stack + 1);
  const Tensor update = take_tensor(stack[6]), mean = take_tensor(stack[7]), inverse_deviation = take_tensor(stack[8]);
  const Block block(stack + 9);
  block.check();
  Tensor grad_x = empty_like(block.x), grad_memory = empty_like(block.memory), grad_update = empty_like(update);
  Tensor grad_ln_weight = empty_like(block.ln_weight), grad_ln_bias = empty_like(block.ln_weight), grad_b_o = empty_like(block.ln_weight);

  BlockArgs end = epilogue_arguments(block.x, update, block.ln_weight, block.dropout_p, block.seed, block.stream + 1);
  end.grad_out = matrix(grad_out, "grad_out"), end.grad_x = matrix(grad_x, "grad_x"), end.grad_update = matrix(grad_update, "grad_update");
  end.grad_weight = matrix(grad_ln_weight, "grad_weight"), end.grad_bias = matrix(grad_ln_bias, "grad_bias");
  end.grad_update_sum = matrix(grad_b_o, "grad_update_sum");
  end.mean = mean.data_as<float>(), end.inverse_deviation = inverse_deviation.data_as<float>();
  run_epilogue_backward(end);

  ProjectionGradients grads(block, kept, grad_update.data_as<float>());
  Tensor copy;
  float* residual = grad_x.data_as<float>();
  grads.finish(dense(block.x, block.width), block.context(block.told(), copy), residual, residual, grad_memory.data_as<float>());
  Tensor* results[12] = {&grad_x,    &grad_memory, &grads.w_q, &grads.b_q, &grads.w_k,      &grads.b_k,
                         &grads.w_v, &grads.b_v,   &grads.w_o, &grad_b_o,  &grad_ln_weight, &grad_ln_bias};
  for (int i = 0; i < 12; ++i) stack[i] = give(std::move(*results[i]));
}

const Register cpu("CPU", {{"attention_block_fused", fused},
                           {"attention_block_fused_backward", fused_backward},
                           {"attention_block_inference", inference},
                           {"emotion_attention_inference", emotion_inference}});

}  // namespace
}  // namespace emc
