// Boxed operator cross_covariance for the CPU. Schema and checks: emc_fast/ops/cross_covariance.py.
#include <atomic>
#include <cstdlib>
#include <new>

#include "../cpu/cross_covariance_kernels.h"
#include "boxed.h"

namespace emc {
namespace {

void cross_covariance(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), y = take_tensor(stack[1]);

  const Rows x_rows = rows_of(x, "x"), y_rows = rows_of(y, "y");
  if (x_rows.dtype != DType::kFloat32 || y_rows.dtype != DType::kFloat32 || x_rows.outer != 2 || y_rows.outer != 2)
    throw std::runtime_error("emc_fast: cross_covariance takes float32 (K,T,C) and (J,T,C)");
  const int64_t k = x.size(0), j = y.size(0), frames = x.size(1), channels = x.size(2);
  const int64_t sizes[] = {k, j, channels}, x_sizes[] = {k, 2, channels}, y_sizes[] = {j, 2, channels};
  Tensor covariance = empty_cpu(sizes, 3, aoti_torch_dtype_float64());
  Tensor x_moments = empty_cpu(x_sizes, 3, aoti_torch_dtype_float64());
  Tensor y_moments = empty_cpu(y_sizes, 3, aoti_torch_dtype_float64());
  const CovarianceProblem problem{x.data_as<const float>(),
                                  y.data_as<const float>(),
                                  {x.stride(0), x.stride(1), x.stride(2)},
                                  {y.stride(0), y.stride(1), y.stride(2)},
                                  k,
                                  j,
                                  frames,
                                  channels,
                                  covariance.data_as<double>(),
                                  x_moments.data_as<double>(),
                                  y_moments.data_as<double>()};
  const CovarianceKernels& kernels = EMC_KERNELS(covariance_kernels);
  std::atomic<bool> starved{false};
  parallel_for((channels + kernels.lanes - 1) / kernels.lanes, 1, [&](int64_t begin, int64_t end) {
    void* memory = std::malloc(static_cast<size_t>(kernels.workspace(problem)));
    if (memory == nullptr) {
      starved = true;
      return;
    }
    for (int64_t block = begin; block < end; ++block) kernels.run(problem, block * kernels.lanes, memory);
    std::free(memory);
  });
  if (starved) throw std::bad_alloc();
  stack[0] = give(std::move(covariance));
  stack[1] = give(std::move(x_moments));
  stack[2] = give(std::move(y_moments));
}

const Register cpu("CPU", {{"cross_covariance", cross_covariance}});

}  // namespace
}  // namespace emc
