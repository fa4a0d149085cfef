// Arguments and launchers of the fusion losses. A launcher returns null, or the text of an error.
#pragma once

#include "../fusion_kl.h"

namespace emc::cuda {

// Rows are summed in tiles whose borders depend on the shape alone, and the tiles in a fixed order: the same bits on every device.
struct FusionKlCuda {
  static constexpr int kCounts = 1024;  // partial counts of the mask

  FusionKl kl;  // block_loss and divisor are not used
  bool mean;
  double* tile_loss;    // (tiles,): forward with a reduction
  int64_t* tile_count;  // (tiles,): rows that count
  float* loss;          // forward with a reduction: one number
  int64_t* counts;      // (kCounts,): backward of a mean under a mask
  int64_t rows_per_tile, tiles;
  int lanes;
  unsigned wide_inputs;  // one bit each
  bool wide_out;
};

// Tiles for so many rows; fills in rows_per_tile and tiles.
void set_tiles(FusionKlCuda* arguments);

extern "C" {
const char* emc_cuda_fusion_kl(const FusionKlCuda* arguments, int device, void* stream);
const char* emc_cuda_fusion_kl_backward(const FusionKlCuda* arguments, int device, void* stream);
const char* emc_cuda_fusion_kl_categorical(const FusionKlCuda* arguments, int device, void* stream);
const char* emc_cuda_fusion_kl_categorical_backward(const FusionKlCuda* arguments, int device, void* stream);
}

}  // namespace emc::cuda
