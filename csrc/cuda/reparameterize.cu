// Launchers of reparameterize.
#include "launch.h"
#include "reparameterize.cuh"

namespace emc::cuda {
namespace {

const char* run(const Reparameterize& given, void (*kernel)(Reparameterize), const void* out, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  Reparameterize a = given;
  a.lanes = lanes_for(a.walk.width);
  a.wide_mu = wide(a.walk, a.mu, a.dtype);
  a.wide_logvar = wide(a.walk, a.logvar, a.dtype);
  a.wide_noise = wide(a.walk, a.noise, a.dtype);
  a.wide_grad = wide(a.walk, a.grad_z, a.dtype);
  a.wide_out = wide(a.walk.width, out, a.dtype);
  return launch(kernel, grid_for(blocks_for(a.walk.rows, a.lanes), device), kThreads, 0, stream, a);
}

}  // namespace

const char* emc_cuda_reparameterize(const Reparameterize* a, int device, void* stream) {
  return run(*a, EMC_KERNEL_OF(a->dtype, reparameterize), a->z, device, stream);
}
const char* emc_cuda_reparameterize_backward(const Reparameterize* a, int device, void* stream) {
  return run(*a, EMC_KERNEL_OF(a->dtype, reparameterize_backward), a->grad_mu, device, stream);
}

}  // namespace emc::cuda
