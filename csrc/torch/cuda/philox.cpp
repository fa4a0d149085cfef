// Boxed operators philox_normal, philox_uniform and dropout for CUDA. Schemas and checks: emc_fast/ops/philox.py.
#include "device.h"

namespace emc {
namespace {

template <bool kNormal>
void philox_fill(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor like = take_tensor(stack[0]), seed = take_tensor(stack[1]);
  const int64_t stream = take_int(stack[2]);
  const Tensor frame_offset = take_optional_tensor(stack[3]);

  const OnDevice on(like);
  Tensor out = on.empty_like(like);
  if (const int64_t numel = out.numel(); numel > 0) {
    cuda::PhiloxFill arguments{};
    arguments.noise = device_noise(like, seed, stream, frame_offset);
    arguments.dtype = dtype_of(like, "like");
    arguments.out = out.data();
    arguments.width = like.size(-1);
    arguments.rows = numel / arguments.width;
    check_launch((kNormal ? cuda::emc_cuda_philox_normal : cuda::emc_cuda_philox_uniform)(&arguments, on.device(), on.stream()));
  }
  stack[0] = give(std::move(out));
}

void dropout(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), seed = take_tensor(stack[1]);
  const double p = take_double(stack[2]);
  const int64_t stream = take_int(stack[3]);
  const Tensor frame_offset = take_optional_tensor(stack[4]);

  const OnDevice on(x);
  Tensor out = on.empty_like(x);
  if (out.numel() > 0) {
    cuda::DropoutArguments arguments{};
    arguments.walk = walk_over({{&x, &arguments.x}}, x.dim() - 1, x.sizes(), x.size(-1));
    arguments.noise = device_noise(x, seed, stream, frame_offset);
    arguments.dtype = dtype_of(x, "x");
    arguments.out = out.data();
    arguments.keep_from = keep_from(p);
    arguments.scale = p < 1.0 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f;
    check_launch(cuda::emc_cuda_dropout(&arguments, on.device(), on.stream()));
  }
  stack[0] = give(std::move(out));
}

const RegisterCuda philox_registered({{"philox_normal", philox_fill<true>}, {"philox_uniform", philox_fill<false>}, {"dropout", dropout}});

}  // namespace
}  // namespace emc
