// Launchers of the end of an attention block.
#include "attention_block.cuh"
#include "launch.h"

namespace emc::cuda {
namespace {

void prepare(BlockEpilogue* a) {
  a->lanes = lanes_for(a->width);
  for (BlockOperand* m : {&a->x, &a->update, &a->weight, &a->bias, &a->out, &a->grad_out, &a->grad_x, &a->grad_update, &a->grad_weight,
                          &a->grad_bias, &a->grad_update_sum})
    m->wide = wide(a->width, m->data, m->dtype);
}

}  // namespace

const char* emc_cuda_attention_block(const BlockEpilogue* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  BlockEpilogue a = *arguments;
  prepare(&a);
  return launch(&attention_block<float>, grid_for(blocks_for(a.rows, a.lanes), device), kThreads, 0, stream, a);
}
const char* emc_cuda_attention_block_backward(const BlockEpilogue* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  BlockEpilogue a = *arguments;
  prepare(&a);
  constexpr size_t kSums = kThreads * kVector * sizeof(float);  // of the warps of a block, for one result
  if (a.groups > 0) {
    const size_t bytes = 2 * sizeof(float) * static_cast<size_t>(a.rows_per_group) + 3 * kSums;
    if (const char* error = launch(&attention_block_backward<float>, grid_for(a.groups, device), kThreads, bytes, stream, a)) return error;
  }
  const int64_t chunks = (a.width + kColumnsAtOnce - 1) / kColumnsAtOnce;
  return launch(&attention_block_sums<float>, grid_for(3 * chunks, device), kThreads, kSums, stream, a);
}

}  // namespace emc::cuda
