// Arguments and launchers of reparameterize. A launcher returns null, or the text of an error.
#pragma once

#include "philox_arguments.h"

namespace emc::cuda {

// eps comes from `noise` where that has data, else it is made from `philox`, in the forward pass and again in the backward pass.
struct Reparameterize {
  Walk walk;
  DType dtype;
  Operand mu, logvar, noise;
  DeviceNoise philox;
  // Forward: dense
  void* z;
  float* kl;
  // Backward; grad_kl is float32 and has no last dimension
  Operand grad_z, grad_kl;
  void* grad_mu;
  void* grad_logvar;
  int lanes;
  bool wide_mu, wide_logvar, wide_noise, wide_grad, wide_out;
};

extern "C" {
const char* emc_cuda_reparameterize(const Reparameterize* arguments, int device, void* stream);
const char* emc_cuda_reparameterize_backward(const Reparameterize* arguments, int device, void* stream);
}

}  // namespace emc::cuda
