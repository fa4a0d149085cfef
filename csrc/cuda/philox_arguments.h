// Arguments and launchers of the philox operators. A launcher returns null, or the text of an error.
#pragma once

#include "../kernels.h"

namespace emc::cuda {

// Noise whose numbers all stand in device memory, since nothing waits for them (csrc/kernels.h has the CPU's).
struct DeviceNoise {
  const int64_t* seeds;
  const int64_t* frame_offset;  // one number, or null for 0
  int64_t rows_per_seed;        // leading indices that share a seed
  int64_t frames;               // rows of one leading index
  uint32_t stream;
};

// `lanes` and what begins with wide_ are the launchers' business, here and in the other operators.
struct PhiloxFill {
  DeviceNoise noise;
  DType dtype;
  void* out;  // dense (rows, width)
  int64_t rows, width;
  int lanes;
  bool wide_out;
};
struct DropoutArguments {
  Walk walk;
  Operand x;
  DeviceNoise noise;
  DType dtype;
  void* out;
  uint32_t keep_from;  // an element is kept where (w >> 9) >= keep_from
  float scale;
  int lanes;
  bool wide_in, wide_out;
};

extern "C" {
const char* emc_cuda_philox_normal(const PhiloxFill* arguments, int device, void* stream);
const char* emc_cuda_philox_uniform(const PhiloxFill* arguments, int device, void* stream);
const char* emc_cuda_dropout(const DropoutArguments* arguments, int device, void* stream);
}

}  // namespace emc::cuda
