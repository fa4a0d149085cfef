// Boxed operators philox_normal, philox_uniform and dropout for the CPU. Schemas and checks: emc_fast/ops/philox.py.
#include "../cpu/philox_kernels.h"
#include "boxed.h"

namespace emc {
namespace {

// Rows worth a thread: about 16k elements.
int64_t grain(int64_t width) { return 16384 / (width > 0 ? width : 1) + 1; }

template <bool kNormal>
void philox_fill(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor like = take_tensor(stack[0]), seed = take_tensor(stack[1]);
  const int64_t stream = take_int(stack[2]);
  const Tensor frame_offset = take_optional_tensor(stack[3]);

  Tensor out = empty_like(like);
  if (const int64_t numel = out.numel(); numel > 0) {
    const Noise noise = noise_of(like, seed, stream, frame_offset);
    const int64_t width = like.size(-1);
    const DType dtype = dtype_of(like, "like");
    void* data = out.data();
    const auto kernel = kNormal ? EMC_KERNELS(philox_kernels).normal : EMC_KERNELS(philox_kernels).uniform;
    parallel_for(numel / width, grain(width), [&](int64_t begin, int64_t end) { kernel(noise, dtype, data, width, begin, end); });
  }
  stack[0] = give(std::move(out));
}

void dropout(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x = take_tensor(stack[0]), seed = take_tensor(stack[1]);
  const double p = take_double(stack[2]);
  const int64_t stream = take_int(stack[3]);
  const Tensor frame_offset = take_optional_tensor(stack[4]);

  Tensor out = empty_like(x);
  if (const int64_t numel = out.numel(); numel > 0) {
    const Noise noise = noise_of(x, seed, stream, frame_offset);
    const Rows rows = rows_of(x, "x");
    void* data = out.data();
    const auto& kernels = EMC_KERNELS(philox_kernels);
    parallel_for(numel / rows.width, grain(rows.width),
                 [&](int64_t begin, int64_t end) { kernels.dropout(noise, p, rows, data, begin, end); });
  }
  stack[0] = give(std::move(out));
}

const Register cpu("CPU", {{"philox_normal", philox_fill<true>}, {"philox_uniform", philox_fill<false>}, {"dropout", dropout}});

}  // namespace
}  // namespace emc
