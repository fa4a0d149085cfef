// Kernels of reparameterize: z = mu + exp(logvar / 2) eps and the divergence to N(0, I), in one pass each way.
#pragma once

#include "../kernels.h"

namespace emc {

// eps comes from `noise` where that has data, else it is made from `philox`, in the forward pass and again in the backward pass.
struct ReparameterizeArgs {
  Rows mu, logvar, noise;
  Noise philox;
};

struct ReparameterizeKernels {
  void (*forward)(const ReparameterizeArgs&, void* z, float* kl, int64_t begin, int64_t end);
  // grad_kl: one value per row, seen as rows of width 1; its dtype is float32.
  void (*backward)(const ReparameterizeArgs&, const Rows& grad_z, const Rows& grad_kl, void* grad_mu, void* grad_logvar, int64_t begin,
                   int64_t end);
};

EMC_KERNEL_TABLE(ReparameterizeKernels, reparameterize_kernels)

}  // namespace emc
