// What the launchers of both fusion losses share.
#pragma once

#include "fusion_kl_rows.cuh"
#include "launch.h"

namespace emc::cuda {

inline void prepare(FusionKlCuda* a, int inputs) {
  a->lanes = lanes_for(a->kl.walk.width);
  a->wide_inputs = 0;
  for (int k = 0; k < inputs; ++k) a->wide_inputs |= static_cast<unsigned>(wide(a->kl.walk, a->kl.input[k], a->kl.dtype)) << k;
  a->wide_out = wide(a->kl.walk.width, a->kl.grad_input[0], a->kl.dtype);
}

using FusionKlKernel = void (*)(FusionKlCuda);

inline const char* run_forward(const FusionKlCuda& given, FusionKlKernel kernel, int inputs, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  FusionKlCuda a = given;
  prepare(&a, inputs);
  const unsigned grid = grid_for((a.tiles + kThreads / kWarp - 1) / (kThreads / kWarp), device);
  if (a.tiles > 0)
    if (const char* error = launch(kernel, grid, kThreads, 0, stream, a)) return error;
  if (a.loss == nullptr) return nullptr;
  return launch(&finish<double>, 1, kThreads, kThreads * (sizeof(double) + sizeof(int64_t)), stream, a);
}

inline const char* run_backward(const FusionKlCuda& given, FusionKlKernel kernel, int inputs, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  FusionKlCuda a = given;
  prepare(&a, inputs);
  if (a.counts != nullptr)
    if (const char* error = launch(&count_rows<int64_t>, FusionKlCuda::kCounts / (kThreads / kWarp), kThreads, 0, stream, a)) return error;
  return launch(kernel, grid_for(blocks_for(a.kl.walk.rows, a.lanes), device), kThreads, 0, stream, a);
}

}  // namespace emc::cuda
