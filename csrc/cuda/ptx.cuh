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

// To the nearest, ties to even.
__device__ __forceinline__ unsigned short float_to_bfloat(float x) {
  const unsigned bits = __float_as_uint(x), rounded = bits + 0x7fffu + (bits >> 16 & 1u), quiet = bits | 0x400000u;
  return static_cast<unsigned short>((x == x ? rounded : quiet) >> 16);
}

// 2^x, relative error 2^-22, 0 below the normal numbers.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers of 16 bits, `low` in the low half.
__device__ __forceinline__ unsigned pack_half(float low, float high) {
  unsigned bits;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#else
  bits = static_cast<unsigned>(float_to_half(low)) | static_cast<unsigned>(float_to_half(high)) << 16;
#endif
  return bits;
}
__device__ __forceinline__ unsigned pack_bfloat(float low, float high) {
  unsigned bits;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#else
  bits = static_cast<unsigned>(float_to_bfloat(low)) | static_cast<unsigned>(float_to_bfloat(high)) << 16;
#endif
  return bits;
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane l gives the address of row l % 8 of matrix l / 8, a multiple of 16 bytes,
// and gets of each matrix the elements 2 (l % 4) and the next of row l / 4; of column l / 4 where transposed. From 7.5 on.
__device__ __forceinline__ void load_matrices(unsigned (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// 4, 8 or 16 bytes from global into shared memory, zeros where not `there`, and then nothing is read; both are aligned to the size.
// From 8.0 on the thread goes on meanwhile: what it wrote is its own to see after wait_copies, and the block's after a barrier behind that.
// Below it is there at once, by way of registers. 16 bytes pass by the first-level cache, since the block that copies them keeps them.
template <class Whole>
__device__ __forceinline__ void copy_async(Whole* to, const Whole* from, bool there) {
  static_assert(sizeof(Whole) == 4 || sizeof(Whole) == 8 || sizeof(Whole) == 16, "what can be copied at once");
#if __CUDA_ARCH__ >= 800
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const auto source = __cvta_generic_to_global(from);
  const unsigned read = there ? static_cast<unsigned>(sizeof(Whole)) : 0u;
  if constexpr (sizeof(Whole) == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(at), "l"(source), "r"(read) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(at), "l"(source), "n"(static_cast<int>(sizeof(Whole))), "r"(read)
                 : "memory");
  }
#else
  Whole whole{};
  if (there) whole = __ldg(from);
  *to = whole;
#endif
}
// The copies since the last such call are a group.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}
// Until no more than the kLeft youngest groups are on their way.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
#endif
}

// c += a b, 16 x 16 times 16 x 8, by the tensor cores; the layouts are those that the PTX manual gives for mma.m16n8k16. 7.5 multiplies in
// two halves, whose operands stand in the same places.
__device__ __forceinline__ void multiply_16x8(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
__device__ __forceinline__ void multiply_bfloat_16x8(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {  // from 8.0 on
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Volta's own: each of the four quad pairs of a warp (lanes 4 q .. 4 q + 3 and 16 more) adds a b, 8 x 4 times 4 x 8, to its c; layouts of
// mma.m8n8k4. A lane has 4 elements of a row of a; of b 4 of a column, or with `rows` 4 of a row.
template <bool kRows>
__device__ __forceinline__ void multiply_8x8(float (&c)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  if constexpr (kRows) {
    asm volatile(
        "mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "
        "{%0, %1, %2, %3, %4, %5, %6, %7};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
        : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "
        "{%0, %1, %2, %3, %4, %5, %6, %7};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
        : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
  }
}

}  // namespace emc::cuda

#endif
