// Boxed operators fusion_kl and fusion_kl_categorical with their backward passes, for the CPU. Schemas and checks:
// emc_fast/ops/fusion_kl*.py.
#include "../cpu/fusion_kl_kernels.h"
#include "boxed.h"

namespace emc {
namespace {

enum Reduction : int64_t { kMean = 0, kSum = 1, kNone = 2 };  // as in emc_fast/ops/fusion_kl.py

void same_outer(const Tensor& tensor, int64_t dims, const int64_t* sizes, const char* name) {
  bool same = tensor.dim() == dims;
  for (int64_t d = 0; same && d < dims; ++d) same = tensor.size(d) == sizes[d];
  if (!same) throw std::runtime_error(std::string("emc_fast: ") + name + " must have the leading dimensions of the distributions");
}

// The arguments as the kernels see them. What was given stays alive here.
class Problem {
 public:
  FusionKl args{};

  // inputs: `count` of them, those without a tensor at the end are left out (unit variance)
  Problem(const Tensor* inputs, int count, const Tensor& mask, const Tensor* grad, int64_t reduction) : reduction_(reduction) {
    const Tensor& first = inputs[0];
    const int64_t dims = first.dim();
    if (dims < 1) throw std::runtime_error("emc_fast: the distributions need at least one dimension");
    const int64_t* sizes = first.sizes();
    args.dtype = dtype_of(first, "the distributions");
    args.width = sizes[dims - 1];
    args.rows = 1;
    for (int64_t d = 0; d < dims - 1; ++d) args.rows *= sizes[d];

    std::vector<std::pair<const Tensor*, FusionKl::Operand*>> walked;
    for (int k = 0; k < count; ++k) {
      if (!inputs[k]) continue;
      if (dtype_of(inputs[k], "the distributions") != args.dtype || inputs[k].dim() != dims || inputs[k].size(-1) != args.width)
        throw std::runtime_error("emc_fast: the distributions must have one shape and dtype");
      walked.emplace_back(&inputs[k], &args.input[k]);
      args.input[k].stride = inputs[k].stride(-1);
      same_outer_of_input(inputs[k], dims, sizes);
    }
    if (mask) {
      if (mask.torch_dtype() != aoti_torch_dtype_bool()) throw std::runtime_error("emc_fast: mask must be bool");
      same_outer(mask, dims - 1, sizes, "mask");
      walked.emplace_back(&mask, &args.mask);
    }
    if (grad != nullptr) {
      if (grad->torch_dtype() != aoti_torch_dtype_float32()) throw std::runtime_error("emc_fast: grad must be float32");
      same_outer(*grad, reduction == kNone ? dims - 1 : 0, sizes, "grad");
      args.grad.data = grad->data();
      if (reduction == kNone) walked.emplace_back(grad, &args.grad);
    }
    merge(walked, dims - 1, sizes);
    args.scale = static_cast<float>(1.0 / static_cast<double>(denominator()));
  }

  int64_t blocks() const { return (args.rows + FusionKl::kRowsPerBlock - 1) / FusionKl::kRowsPerBlock; }
  // Blocks worth a thread: about 16k elements.
  int64_t grain() const { return 16384 / (FusionKl::kRowsPerBlock * (args.width > 0 ? args.width : 1)) + 1; }

  Tensor forward(const FusionKlKernels& kernels, const Tensor& first) {
    const bool rows = reduction_ == kNone;
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
    if (args.width > 0) parallel_for(blocks(), grain(), [&](int64_t begin, int64_t end) { kernels.backward(args, begin, end); });
    for (int k = 0; k < count; ++k) stack[k] = give(std::move(grads[static_cast<size_t>(k)]));
  }

 private:
  int64_t reduction_, counted_ = -1;

  static void same_outer_of_input(const Tensor& input, int64_t dims, const int64_t* sizes) {
    for (int64_t d = 0; d < dims - 1; ++d)
      if (input.size(d) != sizes[d]) throw std::runtime_error("emc_fast: the distributions must have one shape and dtype");
  }

  // Merges neighbouring dimensions that every operand steps through evenly: dense tensors are left with one.
  void merge(const std::vector<std::pair<const Tensor*, FusionKl::Operand*>>& walked, int64_t dims, const int64_t* sizes) {
    for (const auto& [tensor, operand] : walked) operand->data = tensor->data();
    int last = -1;
    for (int64_t d = 0; d < dims; ++d) {
      if (sizes[d] == 1) continue;
      bool even = last >= 0;
      for (const auto& [tensor, operand] : walked) even = even && operand->outer[last] == tensor->stride(d) * sizes[d];
      if (!even && ++last >= FusionKl::kMaxOuter)
        throw std::runtime_error("emc_fast: more than 16 leading dimensions that cannot be merged");
      args.sizes[last] = even ? args.sizes[last] * sizes[d] : sizes[d];
      for (const auto& [tensor, operand] : walked) operand->outer[last] = tensor->stride(d);
    }
    args.outer = last + 1;
  }

  // What the sum over rows is divided by.
  int64_t denominator() {
    if (reduction_ != kMean) return 1;
    if (counted_ < 0) counted_ = args.mask.data == nullptr ? args.rows : count_mask();
    return counted_ > 0 ? counted_ : 1;
  }
  int64_t count_mask() const {
    if (args.rows == 0) return 0;
    int64_t count = 0, at[FusionKl::kMaxOuter] = {};
    const auto* data = static_cast<const uint8_t*>(args.mask.data);
    const int inner = args.outer - 1;
    if (inner < 0) return *data != 0;
    for (;;) {
      int64_t offset = 0;
      for (int d = 0; d < inner; ++d) offset += at[d] * args.mask.outer[d];
      for (int64_t i = 0; i < args.sizes[inner]; ++i) count += data[offset + i * args.mask.outer[inner]] != 0;
      int d = inner - 1;
      while (d >= 0 && ++at[d] == args.sizes[d]) at[d--] = 0;
      if (d < 0) return count;
    }
  }
};

void fusion_kl(StableIValue* stack, uint64_t, uint64_t) {
  // Means first, then log-variances, as the kernels take them; the schema has them in pairs.
  const Tensor inputs[6] = {take_tensor(stack[0]),          take_tensor(stack[2]),          take_tensor(stack[4]),
                            take_optional_tensor(stack[1]), take_optional_tensor(stack[3]), take_optional_tensor(stack[5])};
  const Tensor mask = take_optional_tensor(stack[6]);
  Problem problem(inputs, 6, mask, nullptr, take_int(stack[7]));
  stack[0] = give(problem.forward(EMC_KERNELS(fusion_kl_kernels), inputs[0]));
}

void fusion_kl_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad = take_tensor(stack[0]);
  const Tensor inputs[6] = {take_tensor(stack[1]),          take_tensor(stack[3]),          take_tensor(stack[5]),
                            take_optional_tensor(stack[2]), take_optional_tensor(stack[4]), take_optional_tensor(stack[6])};
  const Tensor mask = take_optional_tensor(stack[7]);
  Problem problem(inputs, 6, mask, &grad, take_int(stack[8]));
  problem.backward(EMC_KERNELS(fusion_kl_kernels), inputs, 6, stack);
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
  if (stats.torch_dtype() != aoti_torch_dtype_float32() || !stats.is_contiguous() || stats.numel() != problem.args.rows * FusionKl::kStats)
    throw std::runtime_error("emc_fast: stats are not those of the forward pass");
  problem.args.stats = stats.data_as<float>();
  problem.backward(EMC_KERNELS(fusion_kl_categorical_kernels), inputs, 3, stack);
}

const Register cpu("CPU", {{"fusion_kl", fusion_kl},
                           {"fusion_kl_backward", fusion_kl_backward},
                           {"fusion_kl_categorical", fusion_kl_categorical},
                           {"fusion_kl_categorical_backward", fusion_kl_categorical_backward}});

}  // namespace
}  // namespace emc
