// Boxed operators attention_block_inference and emotion_attention_inference for CUDA: blocks of a few frames. Schemas:
// emc_fast/ops/attention_block.py, which says where these are taken, and emotion_attention.py.
#include <cmath>

#include "../../cuda/emotion_attention_arguments.h"
#include "../attention_block_weights.h"
#include "device.h"

namespace emc {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("emc_fast: attention blocks of a few frames take ") + what);
}

// One block at inference: x (B,T,d) attends to the memory (B,S,d), or to itself where there is none.
struct Block : BlockWeights {
  const Tensor& x;
  const Tensor& memory;
  const Tensor& key_mask;

  Block(const Tensor& x_, const Tensor& memory_, BlockWeights weights, const Tensor& key_mask_)
      : BlockWeights(std::move(weights)), x(x_), memory(memory_ ? memory_ : x_), key_mask(key_mask_) {}

  void check(int64_t heads, DType dtype) const {
    const int64_t most = dtype == DType::kFloat32 ? cuda::kFewFloats : cuda::kFewHalves;
    // A pointer to another device's memory, or to the host's, would be followed all the same.
    for (const Tensor* y : {&x, &memory, &key_mask, &w_q, &b_q, &w_k, &b_k, &w_v, &b_v, &w_o, &b_o, &ln_weight, &ln_bias})
      if (*y) require(y->device_type() == x.device_type() && y->device_index() == x.device_index(), "tensors of one device");
    for (const Tensor* y : {&x, &memory}) {
      require(y->dim() == 3 && y->is_contiguous() && dtype_of(*y, "x") == dtype, "contiguous x and memory of 3 dimensions and one dtype");
      require(y->size(0) == x.size(0) && y->size(2) == x.size(2), "a memory of x's batch and width");
      require(y->size(1) > 0 && y->size(1) <= most, "1 to 32 frames in float32, 1 to 64 in the half types");
    }
    const int64_t width = x.size(2);
    require(heads > 0 && width % heads == 0 && width / heads <= cuda::kFewHeadWidth, "heads that divide d, up to 32 wide");
    require(x.size(0) > 0 && x.size(0) * heads < (int64_t{1} << 24), "a batch of at least 1, and fewer than 2^24 heads in all");
    for (const Tensor* w : {&w_q, &w_k, &w_v, &w_o})
      require(dtype_of(*w, "a weight") == dtype && w->is_contiguous() && w->dim() == 2 && w->size(0) == width && w->size(1) == width,
              "dense weights (d,d) of x's dtype");
    for (const Tensor* v : {&b_q, &b_k, &b_v, &b_o, &ln_weight, &ln_bias})
      if (*v)
        require(dtype_of(*v, "a vector") == dtype && v->is_contiguous() && v->dim() == 1 && v->size(0) == width,
                "dense vectors (d,) of x's dtype");
    if (key_mask)
      require(key_mask.torch_dtype() == aoti_torch_dtype_bool() && key_mask.dim() == 2 && key_mask.size(0) == x.size(0) &&
                  key_mask.size(1) == memory.size(1),
              "a bool key_mask (B,S)");
  }

  cuda::FewBlock arguments(const cuda::Joint& of_x, const cuda::Joint& of_memory, bool causal, int64_t window, float* partial) const {
    const auto at = [](const Tensor& t) { return t ? t.data() : nullptr; };
    cuda::FewBlock a{};
    a.x = {x.data(), of_x}, a.memory = {memory.data(), of_memory};
    a.queries = static_cast<int>(x.size(1)), a.keys = static_cast<int>(memory.size(1));
    set_seen(a, key_mask, causal, window);
    a.w_q = w_q.data(), a.w_k = w_k.data(), a.w_v = w_v.data(), a.w_o = w_o.data();
    a.b_q = at(b_q), a.b_k = at(b_k), a.b_v = at(b_v);
    a.partial = partial;
    return a;
  }
  cuda::Joint joint(const float* partial) const {
    return {partial, b_o ? b_o.data() : nullptr, ln_weight.data(), ln_bias ? ln_bias.data() : nullptr, static_cast<float>(ln_eps)};
  }
};

// The launches of a call, and what its heads put out in between.
struct Launches {
  const OnDevice on;
  const DType dtype;
  const int64_t batch, heads, width;

  Launches(const Tensor& x, int64_t heads_) : on(x), dtype(dtype_of(x, "x")), batch(x.size(0)), heads(heads_), width(x.size(2)) {}

  Tensor partial(const Tensor& x) const {
    const int64_t sizes[4] = {batch, heads, x.size(1), width};
    return on.empty(sizes, 4, aoti_torch_dtype_float32());
  }
  void run_heads(std::initializer_list<cuda::FewBlock> blocks) const {
    cuda::FewHeads a{};
    a.dtype = dtype, a.batch = static_cast<int>(batch), a.heads = static_cast<int>(heads), a.width = static_cast<int>(width);
    a.head_width = static_cast<int>(width / heads);
    a.scale2 = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(a.head_width)));
    for (const cuda::FewBlock& block : blocks) a.block[a.blocks++] = block;
    check_launch(cuda::emc_cuda_few_heads(&a, on.device(), on.stream()));
  }
  // The end of a block whose x has yet to be made by the joint `before`.
  Tensor join(const Tensor& x, const cuda::Joint& before, const cuda::Joint& last) const {
    Tensor out = on.empty_like(x);
    cuda::FewJoin a{};
    a.dtype = dtype, a.batch = static_cast<int>(batch), a.heads = static_cast<int>(heads), a.width = static_cast<int>(width);
    a.length = static_cast<int>(x.size(1));
    a.x = {x.data(), before}, a.joint = last, a.out = out.data();
    check_launch(cuda::emc_cuda_few_join(&a, on.device(), on.stream()));
    return out;
  }
};

void attention_block_inference(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), memory = take_tensor(stack[1]);
  BlockWeights weights(stack + 2);
  const int64_t heads = take_int(stack[13]);
  const Tensor key_mask = take_optional_tensor(stack[14]);
  const bool causal = take_bool(stack[15]);
  const int64_t window = take_int(stack[16]);
  const double dropout_p = take_double(stack[17]);
  const Tensor seed = take_optional_tensor(stack[18]);
  require(!(dropout_p > 0.0), "no dropout");
  require(x.dim() == 3, "an x of 3 dimensions");
  const Block block(x, memory, std::move(weights), key_mask);
  block.check(heads, dtype_of(x, "x"));

  const Launches launches(x, heads);
  const Tensor partial = launches.partial(x);
  launches.run_heads({block.arguments({}, {}, causal, window, partial.data_as<float>())});
  stack[0] = give(launches.join(x, {}, block.joint(partial.data_as<float>())));
}

// EA(f, e) in three launches: the heads of f's and of e's block, those of the block between them, and its end.
void emotion_attention_inference(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int kSlots = BlockWeights::kSlots;
  const StableIValue* const rest = stack + 2 + 3 * kSlots;
  const Tensor f = take_tensor(stack[0]), e = take_tensor(stack[1]), none;
  BlockWeights of_f(stack + 2), of_e(stack + 2 + kSlots), of_both(stack + 2 + 2 * kSlots);
  const int64_t heads = take_int(rest[0]), window = take_int(rest[4]);
  const Tensor key_mask = take_optional_tensor(rest[1]), emotion_mask = take_optional_tensor(rest[2]);
  const bool causal = take_bool(rest[3]);
  require(f.dim() == 3, "features of 3 dimensions");
  const Block features(f, none, std::move(of_f), key_mask), emotion(e, none, std::move(of_e), emotion_mask);
  const Block both(f, e, std::move(of_both), emotion_mask);
  for (const Block* block : {&features, &emotion, &both}) block->check(heads, dtype_of(f, "features"));

  const Launches launches(f, heads);
  const Tensor of_features = launches.partial(f), of_emotion = launches.partial(e), last = launches.partial(f);
  launches.run_heads({features.arguments({}, {}, causal, window, of_features.data_as<float>()),
                      emotion.arguments({}, {}, causal, window, of_emotion.data_as<float>())});
  const cuda::Joint f_joint = features.joint(of_features.data_as<float>()), e_joint = emotion.joint(of_emotion.data_as<float>());
  launches.run_heads({both.arguments(f_joint, e_joint, causal, window, last.data_as<float>())});
  stack[0] = give(launches.join(f, f_joint, both.joint(last.data_as<float>())));
}

const RegisterCuda emotion_attention_registered({{"attention_block_inference", attention_block_inference},
                                                 {"emotion_attention_inference", emotion_attention_inference}});

}  // namespace
}  // namespace emc
