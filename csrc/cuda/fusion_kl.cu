// Launchers of the fusion loss of diagonal Gaussians.
#include "fusion_kl.cuh"
#include "fusion_kl_launch.h"

namespace emc::cuda {

// Enough tiles to fill a device with warps, and few enough that adding them costs nothing beside the rest; whole turns of a warp, which
// takes several rows at once where they are narrow.
void set_tiles(FusionKlCuda* a) {
  const int64_t rows = a->kl.walk.rows, at_once = kWarp / lanes_for(a->kl.walk.width);
  const int64_t wanted = rows >= 8192 * 64 ? 64 : rows >= 8192 * 8 ? rows / 8192 : 8;
  a->rows_per_tile = (wanted + at_once - 1) / at_once * at_once;
  a->tiles = (rows + a->rows_per_tile - 1) / a->rows_per_tile;
}

const char* emc_cuda_fusion_kl(const FusionKlCuda* a, int device, void* stream) {
  const bool unit = a->kl.input[3].data == nullptr;
  return run_forward(*a, unit ? EMC_KERNEL_OF(a->kl.dtype, fusion_kl, 3) : EMC_KERNEL_OF(a->kl.dtype, fusion_kl, 6), unit ? 3 : 6, device,
                     stream);
}
const char* emc_cuda_fusion_kl_backward(const FusionKlCuda* a, int device, void* stream) {
  const bool unit = a->kl.input[3].data == nullptr;
  return run_backward(*a, unit ? EMC_KERNEL_OF(a->kl.dtype, fusion_kl_backward, 3) : EMC_KERNEL_OF(a->kl.dtype, fusion_kl_backward, 6),
                      unit ? 3 : 6, device, stream);
}

}  // namespace emc::cuda
