// Boxed operators reparameterize and reparameterize_backward for the CPU. Schemas and checks: emc_fast/ops/reparameterize.py.
#include "../cpu/reparameterize_kernels.h"
#include "boxed.h"

namespace emc {
namespace {

ReparameterizeArgs arguments(const Tensor& mu, const Tensor& logvar, const Tensor& seed, int64_t stream, const Tensor& frame_offset,
                             const Tensor& noise) {
  ReparameterizeArgs args{};
  args.mu = rows_of(mu, "mu");
  args.logvar = rows_of(logvar, "logvar");
  if (noise) {
    args.noise = rows_of(noise, "noise");
  } else if (seed) {
    args.philox = noise_of(mu, seed, stream, frame_offset);
  } else {
    throw std::runtime_error("emc_fast: reparameterize needs a seed or noise");
  }
  return args;
}

// Rows worth a thread: about 4k elements, which take some microseconds.
int64_t grain(int64_t width) { return 4096 / (width > 0 ? width : 1) + 1; }

void reparameterize(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor mu = take_tensor(stack[0]), logvar = take_tensor(stack[1]);
  const Tensor seed = take_optional_tensor(stack[2]);
  const int64_t stream = take_int(stack[3]);
  const Tensor frame_offset = take_optional_tensor(stack[4]), noise = take_optional_tensor(stack[5]);

  Tensor z = empty_like(mu);
  Tensor kl = empty_cpu(mu.sizes(), mu.dim() - 1, aoti_torch_dtype_float32());
  if (const int64_t rows = kl.numel(); rows > 0) {
    const ReparameterizeArgs args = arguments(mu, logvar, seed, stream, frame_offset, noise);
    void* z_data = z.data();
    float* kl_data = kl.data_as<float>();
    const auto& kernels = EMC_KERNELS(reparameterize_kernels);
    parallel_for(rows, grain(args.mu.width), [&](int64_t begin, int64_t end) { kernels.forward(args, z_data, kl_data, begin, end); });
  }
  stack[0] = give(std::move(z));
  stack[1] = give(std::move(kl));
}

void reparameterize_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_z = take_tensor(stack[0]), grad_kl = take_tensor(stack[1]);
  const Tensor mu = take_tensor(stack[2]), logvar = take_tensor(stack[3]);
  const Tensor seed = take_optional_tensor(stack[4]);
  const int64_t stream = take_int(stack[5]);
  const Tensor frame_offset = take_optional_tensor(stack[6]), noise = take_optional_tensor(stack[7]);

  Tensor grad_mu = empty_like(mu), grad_logvar = empty_like(mu);
  if (const int64_t numel = grad_mu.numel(); numel > 0) {
    const ReparameterizeArgs args = arguments(mu, logvar, seed, stream, frame_offset, noise);
    const Rows gz = rows_of(grad_z, "grad_z");
    // One value per row: every dimension is a leading one.
    const Rows gk{grad_kl.data(), DType::kFloat32, 1, 1, grad_kl.dim(), grad_kl.sizes(), grad_kl.strides()};
    void *gm = grad_mu.data(), *gl = grad_logvar.data();
    const auto& kernels = EMC_KERNELS(reparameterize_kernels);
    parallel_for(numel / args.mu.width, grain(args.mu.width),
                 [&](int64_t begin, int64_t end) { kernels.backward(args, gz, gk, gm, gl, begin, end); });
  }
  stack[0] = give(std::move(grad_mu));
  stack[1] = give(std::move(grad_logvar));
}

const Register cpu("CPU", {{"reparameterize", reparameterize}, {"reparameterize_backward", reparameterize_backward}});

}  // namespace
}  // namespace emc
