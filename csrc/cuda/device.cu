#include "device.h"
#include "launch.h"

namespace emc::cuda {

const char* emc_cuda_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return text_of(error);
}
const char* emc_cuda_fill(void* data, int byte, size_t bytes, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  const cudaError_t error = cudaMemsetAsync(data, byte, bytes, static_cast<cudaStream_t>(stream));
  return text_of(error);
}

}  // namespace emc::cuda
