// Boxed operator dtw for CUDA. Schema and checks: emc_fast/ops/dtw.py.
#include "../../cuda/dtw_arguments.h"
#include "device.h"

namespace emc {
namespace {

void dtw(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), y = take_tensor(stack[1]), pairs = take_tensor(stack[2]);
  const Tensor x_lengths = take_optional_tensor(stack[3]), y_lengths = take_optional_tensor(stack[4]);
  const Tensor bound = take_optional_tensor(stack[5]);
  const bool exact = take_bool(stack[6]);

  if (x.dim() != 3 || y.dim() != 3 || dtype_of(x, "x") != DType::kFloat32 || dtype_of(y, "y") != DType::kFloat32 || !pairs.is_contiguous())
    throw std::runtime_error("emc_fast: dtw takes float32 (N,T,C) and (M,S,C), and contiguous pairs");
  const Tensor* const dense[] = {&x_lengths, &y_lengths, &bound};
  for (const Tensor* tensor : dense)
    if (*tensor && !tensor->is_contiguous()) throw std::runtime_error("emc_fast: dtw takes contiguous lengths and bounds");
  const OnDevice on(x);
  cuda::Dtw a{};
  a.count = pairs.size(0);
  Tensor out = on.empty(&a.count, 1, aoti_torch_dtype_float64());
  if (a.count > 0) {
    a.x = x.data_as<const float>();
    a.y = y.data_as<const float>();
    for (int64_t d = 0; d < 3; ++d) {
      a.x_stride[d] = x.stride(d);
      a.y_stride[d] = y.stride(d);
    }
    a.x_count = x.size(0);
    a.y_count = y.size(0);
    a.x_frames = x.size(1);
    a.y_frames = y.size(1);
    a.channels = x.size(2);
    a.x_lengths = x_lengths ? x_lengths.data_as<const int64_t>() : nullptr;
    a.y_lengths = y_lengths ? y_lengths.data_as<const int64_t>() : nullptr;
    a.pairs = pairs.data_as<const int64_t>();
    a.bound = bound ? bound.data_as<const double>() : nullptr;
    a.out = out.data_as<double>();
    a.exact = exact;
    const int64_t doubles = (cuda::plan_dtw(&a, on.device()) + 7) / 8;
    const Tensor workspace = on.empty(&doubles, 1, aoti_torch_dtype_float64());
    a.workspace = workspace.data();
    check_launch(cuda::emc_cuda_dtw(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(out));
}

const RegisterCuda dtw_registered({{"dtw", dtw}});

}  // namespace
}  // namespace emc
