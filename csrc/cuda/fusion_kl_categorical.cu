// Launchers of the fusion loss of categorical distributions.
#include "fusion_kl_categorical.cuh"
#include "fusion_kl_launch.h"

namespace emc::cuda {

const char* emc_cuda_fusion_kl_categorical(const FusionKlCuda* a, int device, void* stream) {
  return run_forward(*a, EMC_KERNEL_OF(a->kl.dtype, fusion_kl_categorical), 3, device, stream);
}
const char* emc_cuda_fusion_kl_categorical_backward(const FusionKlCuda* a, int device, void* stream) {
  return run_backward(*a, EMC_KERNEL_OF(a->kl.dtype, fusion_kl_categorical_backward), 3, device, stream);
}

}  // namespace emc::cuda
