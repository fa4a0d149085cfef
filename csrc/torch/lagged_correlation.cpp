// Boxed operator lagged_correlation for the CPU. Schema and checks: emc_fast/ops/lagged_correlation.py.
#include <atomic>
#include <cstdlib>
#include <new>

#include "../cpu/lagged_correlation_kernels.h"
#include "boxed.h"

namespace emc {
namespace {

void lagged_correlation(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), y = take_tensor(stack[1]);
  const int64_t max_lag = take_int(stack[2]);

  const Rows x_rows = rows_of(x, "x"), y_rows = rows_of(y, "y");
  if (x_rows.dtype != DType::kFloat32 || y_rows.dtype != DType::kFloat32 || x_rows.outer != 3 || y_rows.outer != 2)
    throw std::runtime_error("emc_fast: lagged_correlation takes float32 (N,K,T,C) and (N,T,C)");
  const int64_t draws = x.size(1), frames = x.size(2), channels = x.size(3), lags = 2 * max_lag + 1;
  const int64_t sizes[] = {x.size(0), draws, lags, channels};
  Tensor out = empty_cpu(sizes, 4, aoti_torch_dtype_float64());
  const auto *x_data = x.data_as<const float>(), *y_data = y.data_as<const float>();
  const int64_t x_stride[] = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}, y_stride[] = {y.stride(0), y.stride(1), y.stride(2)};
  auto* out_data = out.data_as<double>();
  const LagKernels& kernels = EMC_KERNELS(lag_kernels);
  std::atomic<bool> starved{false};
  parallel_for(sizes[0] * draws, 1, [&](int64_t begin, int64_t end) {
    void* memory = std::malloc(static_cast<size_t>(kernels.workspace(frames, max_lag)));
    if (memory == nullptr) {
      starved = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / draws, k = i % draws;
      kernels.correlate(LagProblem{x_data + n * x_stride[0] + k * x_stride[1],
                                   y_data + n * y_stride[0],
                                   {x_stride[2], x_stride[3]},
                                   {y_stride[1], y_stride[2]},
                                   frames,
                                   channels,
                                   max_lag,
                                   out_data + i * lags * channels},
                        memory);
    }
    std::free(memory);
  });
  if (starved) throw std::bad_alloc();
  stack[0] = give(std::move(out));
}

const Register cpu("CPU", {{"lagged_correlation", lagged_correlation}});

}  // namespace
}  // namespace emc
