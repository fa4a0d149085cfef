// The CUDA runtime as far as the boxed operators need it. Functions return null, or the text of an error.
#pragma once

#include <cstddef>

namespace emc::cuda {

extern "C" {
// Why no kernel can run in this process: no driver, or one that is older than the CUDA runtime in this library.
const char* emc_cuda_problem();
const char* emc_cuda_fill(void* data, int byte, size_t bytes, int device, void* stream);
}

}  // namespace emc::cuda
