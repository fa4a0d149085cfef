// Device and stream of a call, from torch.
#include "device.h"

#include <dlfcn.h>

namespace emc {
namespace {

// Only CUDA builds of torch have this function, in a library that the process has loaded by the time that there is a CUDA tensor; so it is
// looked up and not linked, and one library serves every build of torch.
using StreamFunction = AOTITorchError (*)(int32_t, void**);
StreamFunction stream_function() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* function = library != nullptr ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  if (function == nullptr) throw std::runtime_error("emc_fast: this torch is a CPU build and has no CUDA streams");
  return reinterpret_cast<StreamFunction>(function);
}

}  // namespace

OnDevice::OnDevice(const Tensor& tensor) : type_(tensor.device_type()), index_(tensor.device_index()) {
  static const StreamFunction current_stream = stream_function();
  check(aoti_torch_create_device_guard(index_, &guard_), "a device guard");
  if (current_stream(index_, &stream_) != 0) {
    aoti_torch_delete_device_guard(guard_);
    throw std::runtime_error("emc_fast: torch refused the current stream");
  }
}
OnDevice::~OnDevice() { aoti_torch_delete_device_guard(guard_); }

Tensor OnDevice::empty(const int64_t* sizes, int64_t ndim, int32_t torch_dtype) const {
  Tensor tensor = empty_dense(sizes, ndim, torch_dtype, type_, index_);
  if (poison_memory() && tensor.numel() > 0) {
    const size_t bytes = static_cast<size_t>(tensor.numel()) * aoti_torch_dtype_element_size(torch_dtype);
    check_launch(cuda::emc_cuda_fill(tensor.data(), 0xff, bytes, index_, stream_));
  }
  return tensor;
}

RegisterCuda::RegisterCuda(std::initializer_list<std::pair<const char*, BoxedFunction>> functions) {
  const Register registered("CUDA", functions);
}

}  // namespace emc
