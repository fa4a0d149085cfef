// The fusion losses' arguments as the kernels see them, from torch's tensors; for the CPU and for CUDA.
#pragma once

#include "../fusion_kl.h"
#include "walk.h"

namespace emc {

enum Reduction : int64_t { kMean = 0, kSum = 1, kNone = 2 };  // as in emc_fast/ops/fusion_kl.py

// What was given stays alive with the caller.
struct FusionKlProblem {
  FusionKl args{};
  int64_t reduction;

  // inputs: `count` of them, those without a tensor at the end are left out (unit variance)
  FusionKlProblem(const Tensor* inputs, int count, const Tensor& mask, const Tensor* grad, int64_t reduction_) : reduction(reduction_) {
    const Tensor& first = inputs[0];
    const int64_t dims = first.dim();
    if (dims < 1) throw std::runtime_error("emc_fast: the distributions need at least one dimension");
    const int64_t* sizes = first.sizes();
    args.dtype = dtype_of(first, "the distributions");

    std::vector<std::pair<const Tensor*, Operand*>> walked;
    for (int k = 0; k < count; ++k) {
      if (!inputs[k]) continue;
      bool same = dtype_of(inputs[k], "the distributions") == args.dtype && inputs[k].dim() == dims;
      for (int64_t d = 0; same && d < dims; ++d) same = inputs[k].size(d) == sizes[d];
      if (!same) throw std::runtime_error("emc_fast: the distributions must have one shape and dtype");
      walked.emplace_back(&inputs[k], &args.input[k]);
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
    args.walk = walk_over(walked, dims - 1, sizes, sizes[dims - 1]);
  }

  // Blocks of rows whose sums are added in order.
  int64_t blocks() const { return (args.walk.rows + FusionKl::kRowsPerBlock - 1) / FusionKl::kRowsPerBlock; }

 private:
  static void same_outer(const Tensor& tensor, int64_t dims, const int64_t* sizes, const char* name) {
    bool same = tensor.dim() == dims;
    for (int64_t d = 0; same && d < dims; ++d) same = tensor.size(d) == sizes[d];
    if (!same) throw std::runtime_error(std::string("emc_fast: ") + name + " must have the leading dimensions of the distributions");
  }
};

// The six tensors of fusion_kl, means first, then log-variances, as the kernels take them; the schema has them in pairs.
struct GaussianInputs {
  Tensor input[6], mask;
  int64_t reduction;

  explicit GaussianInputs(const StableIValue* stack)
      : input{take_tensor(stack[0]),          take_tensor(stack[2]),          take_tensor(stack[4]),
              take_optional_tensor(stack[1]), take_optional_tensor(stack[3]), take_optional_tensor(stack[5])},
        mask(take_optional_tensor(stack[6])),
        reduction(take_int(stack[7])) {}
};

inline void check_stats(const Tensor& stats, const FusionKl& args) {
  if (stats.torch_dtype() != aoti_torch_dtype_float32() || !stats.is_contiguous() || stats.numel() != args.walk.rows * FusionKl::kStats)
    throw std::runtime_error("emc_fast: stats are not those of the forward pass");
}

}  // namespace emc
