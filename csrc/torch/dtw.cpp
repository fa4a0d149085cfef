// Boxed operator dtw for the CPU. Schema and checks: emc_fast/ops/dtw.py.
#include <atomic>
#include <cstdlib>
#include <new>

#include "../cpu/dtw_kernels.h"
#include "boxed.h"

namespace emc {
namespace {

const int64_t* optional_int64(const Tensor& tensor) { return tensor ? tensor.data_as<const int64_t>() : nullptr; }

void dtw(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), y = take_tensor(stack[1]), pairs = take_tensor(stack[2]);
  const Tensor x_lengths = take_optional_tensor(stack[3]), y_lengths = take_optional_tensor(stack[4]);
  const Tensor bound = take_optional_tensor(stack[5]);
  const bool exact = take_bool(stack[6]);

  const Rows x_rows = rows_of(x, "x"), y_rows = rows_of(y, "y");
  if (x_rows.dtype != DType::kFloat32 || y_rows.dtype != DType::kFloat32 || x_rows.outer != 2 || y_rows.outer != 2 ||
      !pairs.is_contiguous())
    throw std::runtime_error("emc_fast: dtw takes float32 (N,T,C) and (M,S,C), and contiguous pairs");
  const int64_t count = pairs.size(0);
  Tensor out = empty_cpu(&count, 1, aoti_torch_dtype_float64());
  if (count > 0) {
    const DtwProblem problem{x.data_as<const float>(),
                             y.data_as<const float>(),
                             {x.stride(0), x.stride(1), x.stride(2)},
                             {y.stride(0), y.stride(1), y.stride(2)},
                             x.size(0),
                             y.size(0),
                             x.size(1),
                             y.size(1),
                             x.size(2),
                             optional_int64(x_lengths),
                             optional_int64(y_lengths),
                             pairs.data_as<const int64_t>(),
                             bound ? bound.data_as<const double>() : nullptr,
                             out.data_as<double>()};
    const DtwKernels& kernels = EMC_KERNELS(dtw_kernels);
    const int64_t lanes = kernels.lanes, groups = (count + lanes - 1) / lanes;
    std::atomic<bool> starved{false};
    parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      void* memory = std::malloc(static_cast<size_t>(kernels.workspace(problem, exact)));
      if (memory == nullptr) {
        starved = true;
        return;
      }
      for (int64_t group = begin; group < end; ++group) {
        const int64_t last = (group + 1) * lanes;
        kernels.sweep(problem, exact, group * lanes, last < count ? last : count, memory);
      }
      std::free(memory);
    });
    if (starved) throw std::bad_alloc();
  }
  stack[0] = give(std::move(out));
}

const Register cpu("CPU", {{"dtw", dtw}});

}  // namespace
}  // namespace emc
