// Launcher of dynamic time warping.
#include "dtw.cuh"
#include "launch.h"

namespace emc::cuda {

int64_t plan_dtw(Dtw* a, int device) {
  constexpr int64_t kShared = 48 * 1024;  // what every device gives a block without being asked
  const int64_t bytes = (a->channels + (a->exact ? 0 : 1)) * (kWarp + kPitch) * static_cast<int64_t>(sizeof(float));
  a->staged = bytes <= kShared;
  a->warps = kDtwThreads / kWarp;
  while (a->staged && a->warps * bytes > kShared) a->warps /= 2;
  a->shared_bytes = a->staged ? a->warps * bytes : 0;
  a->blocks = static_cast<int>(grid_for((a->count + a->warps - 1) / a->warps, device));
  return static_cast<int64_t>(a->blocks) * a->warps * a->y_frames * static_cast<int64_t>(a->exact ? sizeof(double) : sizeof(float));
}

const char* emc_cuda_dtw(const Dtw* a, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  return launch(a->exact ? &dtw<double, false> : &dtw<float, true>, static_cast<unsigned>(a->blocks),
                static_cast<unsigned>(a->warps * kWarp), static_cast<size_t>(a->shared_bytes), stream, *a);
}

}  // namespace emc::cuda
