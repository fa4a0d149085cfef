// Host side of a launch, for the .cu files alone.
#pragma once

#include <cuda_runtime.h>

#include "base.cuh"

namespace emc::cuda {

inline const char* text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

template <class T>
struct AsDeclared {
  using type = T;
};
// Launches; null, or the text of an error.
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                   typename AsDeclared<Parameters>::type... arguments) {
#ifdef EMC_EMULATOR
  (void)stream;
  emu::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
  return nullptr;
#else
  if (shared_bytes > 48 * 1024) {  // more than a block gets unasked; every device from 7.0 on has 64 KiB
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return text_of(error);
  }
  void* pointers[] = {&arguments...};
  return text_of(
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes, static_cast<cudaStream_t>(stream)));
#endif
}

// The library has a CUDA runtime of its own beside torch's. Both follow the driver's current context, but ours may not have seen the
// device.
inline const char* use_device(int device) {
  int current = -1;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device) error = cudaSetDevice(device);
  return text_of(error);
}

// Blocks for so much work: no more than fill the device, since kernels go over their rows in strides of the grid.
inline unsigned grid_for(int64_t blocks, int device, int per_multiprocessor = 8) {
  static int known[64];  // multiprocessors; a race writes the same number twice
  int count = device < 64 ? known[device] : 0;
  if (count == 0) {
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) count = 1;
    if (device < 64) known[device] = count;
  }
  const int64_t most = static_cast<int64_t>(count) * per_multiprocessor;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

// Lanes to a row, a power of two.
inline int lanes_for(int64_t width) {
  int lanes = 1;
  while (lanes < kWarp && lanes * kVector < width) lanes *= 2;
  return lanes;
}
inline int64_t blocks_for(int64_t rows, int lanes) {
  const int64_t rows_per_block = kThreads / lanes;
  return (rows + rows_per_block - 1) / rows_per_block;
}

// Whether every row can be read, or written, in whole vectors.
inline bool aligned(const void* data, DType dtype) { return reinterpret_cast<uintptr_t>(data) % (dtype == DType::kFloat32 ? 16 : 8) == 0; }
inline bool wide(const Walk& walk, const Operand& operand, DType dtype) {
  bool yes = operand.data != nullptr && operand.stride == 1 && walk.width % kVector == 0 && aligned(operand.data, dtype);
  for (int d = 0; d < walk.outer; ++d) yes = yes && operand.outer[d] % kVector == 0;
  return yes;
}
inline bool wide(int64_t width, const void* dense, DType dtype) { return width % kVector == 0 && aligned(dense, dtype); }

// The kernel of a dtype: EMC_KERNEL_OF(dtype, dropout) is dropout<float>, dropout<Half> or dropout<BFloat16>. Further template arguments
// follow the name.
#define EMC_KERNEL_OF(dtype, name, ...)                                   \
  ((dtype) == DType::kFloat32   ? &name<float __VA_OPT__(, ) __VA_ARGS__> \
   : (dtype) == DType::kFloat16 ? &name<Half __VA_OPT__(, ) __VA_ARGS__>  \
                                : &name<BFloat16 __VA_OPT__(, ) __VA_ARGS__>)

}  // namespace emc::cuda
