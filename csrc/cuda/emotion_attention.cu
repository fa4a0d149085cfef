// Launchers of attention blocks of a few frames.
#include "emotion_attention.cuh"
#include "launch.h"

namespace emc::cuda {
namespace {

bool aligned_rows(const FewRows& rows, DType dtype) {
  return aligned(rows.data, dtype) && aligned(rows.joint.bias, dtype) && aligned(rows.joint.weight, dtype) &&
         aligned(rows.joint.shift, dtype);
}

template <class T>
const char* run_heads(const FewHeads& a, int device, void* stream) {
  (void)device;
  return launch(&few_heads<T>, static_cast<unsigned>(a.blocks * a.batch * a.heads), kFewThreads, FewTiles<T>::kBytes, stream, a);
}

}  // namespace

const char* emc_cuda_few_heads(const FewHeads* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  FewHeads a = *arguments;
  a.wide = a.width % kVector == 0;
  for (int i = 0; i < a.blocks; ++i) {
    const FewBlock& p = a.block[i];
    a.wide = a.wide && aligned_rows(p.x, a.dtype) && aligned_rows(p.memory, a.dtype);
    for (const void* w : {p.w_q, p.w_k, p.w_v, p.w_o}) a.wide = a.wide && aligned(w, a.dtype);
  }
  a.wide_heads = a.wide && a.head_width % kVector == 0;
  return a.dtype == DType::kFloat32   ? run_heads<float>(a, device, stream)
         : a.dtype == DType::kFloat16 ? run_heads<Half>(a, device, stream)
                                      : run_heads<BFloat16>(a, device, stream);
}

const char* emc_cuda_few_join(const FewJoin* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  FewJoin a = *arguments;
  a.lanes = lanes_for(a.width);
  a.wide = a.width % kVector == 0 && aligned_rows(a.x, a.dtype) && aligned_rows({a.out, a.joint}, a.dtype);
  const int64_t rows = static_cast<int64_t>(a.batch) * a.length;
  return launch(EMC_KERNEL_OF(a.dtype, few_join), grid_for(blocks_for(rows, a.lanes), device), kThreads, 0, stream, a);
}

}  // namespace emc::cuda
