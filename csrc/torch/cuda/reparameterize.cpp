// Boxed operators reparameterize and reparameterize_backward for CUDA. Schemas and checks: emc_fast/ops/reparameterize.py.
#include "../../cuda/reparameterize_arguments.h"
#include "device.h"

namespace emc {
namespace {

struct Inputs {
  Tensor mu, logvar, seed, frame_offset, noise;
  int64_t stream;

  explicit Inputs(const StableIValue* stack)
      : mu(take_tensor(stack[0])),
        logvar(take_tensor(stack[1])),
        seed(take_optional_tensor(stack[2])),
        frame_offset(take_optional_tensor(stack[4])),
        noise(take_optional_tensor(stack[5])),
        stream(take_int(stack[3])) {}

  // `also`: further tensors of the leading dimensions.
  void arguments(std::vector<std::pair<const Tensor*, Operand*>> also, cuda::Reparameterize& a) const {
    also.insert(also.end(), {{&mu, &a.mu}, {&logvar, &a.logvar}});
    if (noise) also.emplace_back(&noise, &a.noise);
    for (const auto& [tensor, operand] : also)
      if (tensor->dim() < mu.dim() - 1) throw std::runtime_error("emc_fast: reparameterize takes tensors of one shape");
    a.walk = walk_over(also, mu.dim() - 1, mu.sizes(), mu.size(-1));
    a.dtype = dtype_of(mu, "mu");
    if (noise) {
      if (dtype_of(noise, "noise") != a.dtype) throw std::runtime_error("emc_fast: noise must have the dtype of mu");
    } else if (seed) {
      a.philox = device_noise(mu, seed, stream, frame_offset);
    } else {
      throw std::runtime_error("emc_fast: reparameterize needs a seed or noise");
    }
  }
};

void reparameterize(StableIValue* stack, uint64_t, uint64_t) {
  const Inputs in(stack);
  const OnDevice on(in.mu);
  Tensor z = on.empty_like(in.mu);
  Tensor kl = on.empty(in.mu.sizes(), in.mu.dim() - 1, aoti_torch_dtype_float32());
  if (kl.numel() > 0) {
    cuda::Reparameterize a{};
    in.arguments({}, a);
    a.z = z.data();
    a.kl = kl.data_as<float>();
    check_launch(cuda::emc_cuda_reparameterize(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(z));
  stack[1] = give(std::move(kl));
}

void reparameterize_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_z = take_tensor(stack[0]), grad_kl = take_tensor(stack[1]);
  const Inputs in(stack + 2);
  const OnDevice on(in.mu);
  Tensor grad_mu = on.empty_like(in.mu), grad_logvar = on.empty_like(in.mu);
  if (grad_mu.numel() > 0) {
    cuda::Reparameterize a{};
    in.arguments({{&grad_z, &a.grad_z}, {&grad_kl, &a.grad_kl}}, a);
    if (dtype_of(grad_z, "grad_z") != a.dtype || dtype_of(grad_kl, "grad_kl") != DType::kFloat32)
      throw std::runtime_error("emc_fast: the gradients must have the dtypes of the outputs");
    a.grad_mu = grad_mu.data();
    a.grad_logvar = grad_logvar.data();
    check_launch(cuda::emc_cuda_reparameterize_backward(&a, on.device(), on.stream()));
  }
  stack[0] = give(std::move(grad_mu));
  stack[1] = give(std::move(grad_logvar));
}

const RegisterCuda reparameterize_registered({{"reparameterize", reparameterize}, {"reparameterize_backward", reparameterize_backward}});

}  // namespace
}  // namespace emc
