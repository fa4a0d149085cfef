// Kernels of dynamic time warping: W pairs of sequences at once, one pair in each lane.
#pragma once

#include "../kernels.h"

namespace emc {

// Sequences x (n,t,c) and y (m,s,c), strides in elements; pair p is (pairs[2p], pairs[2p+1]). Null lengths: all frames. A pair that names
// no sequence, or one whose length is not in [1, frames], is NaN.
struct DtwProblem {
  const float* x;
  const float* y;
  int64_t x_stride[3], y_stride[3];
  int64_t x_count, y_count, x_frames, y_frames, channels;
  const int64_t* x_lengths;
  const int64_t* y_lengths;
  const int64_t* pairs;
  const double* bound;  // (pairs,) or null: a pair farther apart than this comes back as infinity
  double* out;          // (pairs,)
};

struct DtwKernels {
  int64_t lanes;                                        // pairs that are swept together
  int64_t (*workspace)(const DtwProblem&, bool exact);  // bytes, for one call below
  // Pairs [begin, end), at most `lanes` of them. `exact`: squared differences summed in float64; else |x|^2 + |y|^2 - 2 x.y and float32.
  void (*sweep)(const DtwProblem&, bool exact, int64_t begin, int64_t end, void* workspace);
};

EMC_KERNEL_TABLE(DtwKernels, dtw_kernels)

}  // namespace emc
