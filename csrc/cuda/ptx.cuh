// Wrappers of single instructions. All inline PTX stands here; the emulator has a body for each (tests/cuda_emulator/ptx.h).
#pragma once

#ifdef EMC_EMULATOR
#include "ptx.h"
#else

namespace emc::cuda {

__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ __forceinline__ unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

}  // namespace emc::cuda

#endif
