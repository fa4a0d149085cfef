// Boxed operators fusion_kl and fusion_kl_categorical with their backward passes, for CUDA. Schemas and checks: emc_fast/ops/fusion_kl*.py.
#include "../../cuda/fusion_kl_arguments.h"
#include "../fusion_kl_problem.h"
#include "device.h"

namespace emc {
namespace {

using Launcher = const char* (*)(const cuda::FusionKlCuda*, int, void*);

Tensor forward(const OnDevice& on, const FusionKlProblem& problem, const Tensor& first, Launcher launcher) {
  const bool rows = problem.reduction == kNone;
  Tensor loss = on.empty(first.sizes(), rows ? first.dim() - 1 : 0, aoti_torch_dtype_float32());
  cuda::FusionKlCuda a{};
  a.kl = problem.args;
  a.mean = problem.reduction == kMean;
  cuda::set_tiles(&a);
  Tensor sums;
  if (rows) {
    a.kl.row_loss = loss.data_as<float>();
  } else {
    const int64_t size = 2 * a.tiles;
    sums = on.empty(&size, 1, aoti_torch_dtype_float64());
    a.tile_loss = sums.data_as<double>();
    a.tile_count = reinterpret_cast<int64_t*>(a.tile_loss + a.tiles);
    a.loss = loss.data_as<float>();
  }
  check_launch(launcher(&a, on.device(), on.stream()));
  return loss;
}

// Gradients like the inputs, in their order; an input that is missing gets an empty one.
void backward(const OnDevice& on, const FusionKlProblem& problem, const Tensor* inputs, int count, Launcher launcher, StableIValue* stack) {
  cuda::FusionKlCuda a{};
  a.kl = problem.args;
  a.mean = problem.reduction == kMean;
  std::vector<Tensor> grads;
  for (int k = 0; k < count; ++k) {
    const int64_t none = 0;
    grads.push_back(inputs[k] ? on.empty_like(inputs[k]) : on.empty(&none, 1, inputs[0].torch_dtype()));
    a.kl.grad_input[k] = grads.back().data();
  }
  if (a.kl.walk.rows > 0 && a.kl.walk.width > 0) {
    Tensor counts;
    if (a.mean && a.kl.mask.data != nullptr) {
      const int64_t size = cuda::FusionKlCuda::kCounts;
      counts = on.empty(&size, 1, aoti_torch_dtype_int64());
      a.counts = counts.data_as<int64_t>();
    }
    check_launch(launcher(&a, on.device(), on.stream()));
  }
  for (int k = 0; k < count; ++k) stack[k] = give(std::move(grads[static_cast<size_t>(k)]));
}

void fusion_kl(StableIValue* stack, uint64_t, uint64_t) {
  const GaussianInputs in(stack);
  const OnDevice on(in.input[0]);
  const FusionKlProblem problem(in.input, 6, in.mask, nullptr, in.reduction);
  stack[0] = give(forward(on, problem, in.input[0], cuda::emc_cuda_fusion_kl));
}

void fusion_kl_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad = take_tensor(stack[0]);
  const GaussianInputs in(stack + 1);
  const OnDevice on(in.input[0]);
  const FusionKlProblem problem(in.input, 6, in.mask, &grad, in.reduction);
  backward(on, problem, in.input, 6, cuda::emc_cuda_fusion_kl_backward, stack);
}

void fusion_kl_categorical(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor inputs[3] = {take_tensor(stack[0]), take_tensor(stack[1]), take_tensor(stack[2])};
  const Tensor mask = take_optional_tensor(stack[3]);
  const OnDevice on(inputs[0]);
  FusionKlProblem problem(inputs, 3, mask, nullptr, take_int(stack[4]));
  std::vector<int64_t> sizes(inputs[0].sizes(), inputs[0].sizes() + inputs[0].dim());
  sizes.back() = FusionKl::kStats;
  Tensor stats = on.empty(sizes.data(), inputs[0].dim(), aoti_torch_dtype_float32());
  problem.args.stats = stats.data_as<float>();
  Tensor loss = forward(on, problem, inputs[0], cuda::emc_cuda_fusion_kl_categorical);
  stack[0] = give(std::move(loss));
  stack[1] = give(std::move(stats));
}

void fusion_kl_categorical_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad = take_tensor(stack[0]);
  const Tensor inputs[3] = {take_tensor(stack[1]), take_tensor(stack[2]), take_tensor(stack[3])};
  const Tensor stats = take_tensor(stack[4]), mask = take_optional_tensor(stack[5]);
  const OnDevice on(inputs[0]);
  FusionKlProblem problem(inputs, 3, mask, &grad, take_int(stack[6]));
  check_stats(stats, problem.args);
  problem.args.stats = stats.data_as<float>();
  backward(on, problem, inputs, 3, cuda::emc_cuda_fusion_kl_categorical_backward, stack);
}

const RegisterCuda fusion_kl_registered({{"fusion_kl", fusion_kl},
                                         {"fusion_kl_backward", fusion_kl_backward},
                                         {"fusion_kl_categorical", fusion_kl_categorical},
                                         {"fusion_kl_categorical_backward", fusion_kl_categorical_backward}});

}  // namespace
}  // namespace emc
