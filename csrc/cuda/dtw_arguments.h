// Arguments and launcher of dynamic time warping. The launcher returns null, or the text of an error.
#pragma once

#include "../kernels.h"

namespace emc::cuda {

// Sequences x (n,t,c) and y (m,s,c), strides in elements; pair p is (pairs[2p], pairs[2p+1]). Null lengths: all frames. A pair that names
// no sequence, or one whose length is not in [1, frames], is NaN.
struct Dtw {
  const float* x;
  const float* y;
  int64_t x_stride[3], y_stride[3];
  int64_t x_count, y_count, x_frames, y_frames, channels, count;
  const int64_t* x_lengths;
  const int64_t* y_lengths;
  const int64_t* pairs;
  const double* bound;  // (pairs,) or null: a pair farther apart than this comes back as infinity
  double* out;          // (pairs,)
  void* workspace;      // of plan_dtw's size
  bool exact;           // squared differences, summed in float64; else |x|^2 + |y|^2 - 2 x.y and float32
  // The plan
  bool staged;  // frames pass through shared memory
  int warps, blocks;
  int64_t shared_bytes;
};

// Fills in the plan; the bytes of workspace that it needs.
int64_t plan_dtw(Dtw* arguments, int device);

extern "C" {
const char* emc_cuda_dtw(const Dtw* arguments, int device, void* stream);
}

}  // namespace emc::cuda
