// Boxed operators fusion_kl and fusion_kl_categorical with their backward passes, for the CPU. Schemas and checks:
// emc_fast/ops/fusion_kl*.py.
#include "../cpu/fusion_kl_kernels.h"
#include "boxed.h"
#include "fusion_kl_problem.h"

namespace emc {
namespace {

class Problem : public FusionKlProblem {
 public:
  Problem(const Tensor* inputs, int count, const Tensor& mask, const Tensor* grad, int64_t reduction_)
      : FusionKlProblem(inputs, count, mask, grad, reduction_) {
    args.divisor = static_cast<float>(denominator());
  }

  // Blocks worth a thread: about 16k elements.
  int64_t grain() const { return 16384 / (FusionKl::kRowsPerBlock * (args.walk.width > 0 ? args.walk.width : 1)) + 1; }

  Tensor forward(const FusionKlKernels& kernels, const Tensor& first) {
    const bool rows = reduction == kNone;
    Tensor loss = empty_cpu(first.sizes(), rows ? first.dim() - 1 : 0, aoti_torch_dtype_float32());
    std::vector<double> sums;
    if (rows) {
      args.row_loss = loss.data_as<float>();
    } else {
      sums.resize(static_cast<size_t>(blocks()));
      args.block_loss = sums.data();
    }
    parallel_for(blocks(), grain(), [&](int64_t begin, int64_t end) { kernels.forward(args, begin, end); });
    if (!rows) {
      double total = 0.0;
      for (const double sum : sums) total += sum;
      *loss.data_as<float>() = static_cast<float>(total / static_cast<double>(denominator()));
    }
    return loss;
  }

  // Gradients like the inputs, in their order; an input that is missing gets an empty one.
  void backward(const FusionKlKernels& kernels, const Tensor* inputs, int count, StableIValue* stack) {
    std::vector<Tensor> grads;
    for (int k = 0; k < count; ++k) {
      const int64_t none = 0;
      grads.push_back(inputs[k] ? empty_like(inputs[k]) : empty_cpu(&none, 1, inputs[0].torch_dtype()));
      args.grad_input[k] = grads.back().data();
    }
    if (args.walk.width > 0) parallel_for(blocks(), grain(), [&](int64_t begin, int64_t end) { kernels.backward(args, begin, end); });
    for (int k = 0; k < count; ++k) stack[k] = give(std::move(grads[static_cast<size_t>(k)]));
  }

 private:
  int64_t counted_ = -1;

  // What the sum over rows is divided by.
  int64_t denominator() {
    if (reduction != kMean) return 1;
    if (counted_ < 0) counted_ = args.mask.data == nullptr ? args.walk.rows : count_mask();
    return counted_ > 0 ? counted_ : 1;
  }
  int64_t count_mask() const {
    if (args.walk.rows == 0) return 0;
    int64_t count = 0, at[Walk::kMaxOuter] = {};
    const auto* data = static_cast<const uint8_t*>(args.mask.data);
    const int inner = args.walk.outer - 1;
    if (inner < 0) return *data != 0;
    for (;;) {
      int64_t offset = 0;
      for (int d = 0; d < inner; ++d) offset += at[d] * args.mask.outer[d];
      for (int64_t i = 0; i < args.walk.sizes[inner]; ++i) count += data[offset + i * args.mask.outer[inner]] != 0;
      int d = inner - 1;
      while (d >= 0 && ++at[d] == args.walk.sizes[d]) at[d--] = 0;
      if (d < 0) return count;
    }
  }
};

void fusion_kl(StableIValue* stack, uint64_t, uint64_t) {
  const GaussianInputs in(stack);
  Problem problem(in.input, 6, in.mask, nullptr, in.reduction);
  stack[0] = give(problem.forward(EMC_KERNELS(fusion_kl_kernels), in.input[0]));
}

void fusion_kl_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad = take_tensor(stack[0]);
  const GaussianInputs in(stack + 1);
  Problem problem(in.input, 6, in.mask, &grad, in.reduction);
  problem.backward(EMC_KERNELS(fusion_kl_kernels), in.input, 6, stack);
}

void fusion_kl_categorical(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor inputs[3] = {take_tensor(stack[0]), take_tensor(stack[1]), take_tensor(stack[2])};
  const Tensor mask = take_optional_tensor(stack[3]);
  Problem problem(inputs, 3, mask, nullptr, take_int(stack[4]));
  std::vector<int64_t> sizes(inputs[0].sizes(), inputs[0].sizes() + inputs[0].dim());
  sizes.back() = FusionKl::kStats;
  Tensor stats = empty_cpu(sizes.data(), inputs[0].dim(), aoti_torch_dtype_float32());
  problem.args.stats = stats.data_as<float>();
  if (mask) __builtin_memset(problem.args.stats, 0, static_cast<size_t>(stats.numel()) * sizeof(float));  // masked rows have none
  Tensor loss = problem.forward(EMC_KERNELS(fusion_kl_categorical_kernels), inputs[0]);
  stack[0] = give(std::move(loss));
  stack[1] = give(std::move(stats));
}

void fusion_kl_categorical_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad = take_tensor(stack[0]);
  const Tensor inputs[3] = {take_tensor(stack[1]), take_tensor(stack[2]), take_tensor(stack[3])};
  const Tensor stats = take_tensor(stack[4]), mask = take_optional_tensor(stack[5]);
  Problem problem(inputs, 3, mask, &grad, take_int(stack[6]));
  check_stats(stats, problem.args);
  problem.args.stats = stats.data_as<float>();
  problem.backward(EMC_KERNELS(fusion_kl_categorical_kernels), inputs, 3, stack);
}

const Register cpu("CPU", {{"fusion_kl", fusion_kl},
                           {"fusion_kl_backward", fusion_kl_backward},
                           {"fusion_kl_categorical", fusion_kl_categorical},
                           {"fusion_kl_categorical_backward", fusion_kl_categorical_backward}});

}  // namespace
}  // namespace emc
