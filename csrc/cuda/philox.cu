// Launchers of the philox operators.
#include "launch.h"
#include "philox.cuh"

namespace emc::cuda {
namespace {

const char* fill(const PhiloxFill& given, void (*kernel)(PhiloxFill), int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  PhiloxFill a = given;
  a.lanes = lanes_for(a.width);
  a.wide_out = wide(a.width, a.out, a.dtype);
  return launch(kernel, grid_for(blocks_for(a.rows, a.lanes), device), kThreads, 0, stream, a);
}

}  // namespace

const char* emc_cuda_philox_normal(const PhiloxFill* arguments, int device, void* stream) {
  return fill(*arguments, EMC_KERNEL_OF(arguments->dtype, philox_fill, true), device, stream);
}
const char* emc_cuda_philox_uniform(const PhiloxFill* arguments, int device, void* stream) {
  return fill(*arguments, EMC_KERNEL_OF(arguments->dtype, philox_fill, false), device, stream);
}
const char* emc_cuda_dropout(const DropoutArguments* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  DropoutArguments a = *arguments;
  a.lanes = lanes_for(a.walk.width);
  a.wide_in = wide(a.walk, a.x, a.dtype);
  a.wide_out = wide(a.walk.width, a.out, a.dtype);
  return launch(EMC_KERNEL_OF(a.dtype, dropout), grid_for(blocks_for(a.walk.rows, a.lanes), device), kThreads, 0, stream, a);
}

}  // namespace emc::cuda
