// Own prototypes of the functions of torch's stable C interface that the library calls (torch >= 2.10).
//
// With them the build needs neither torch nor its headers. tests/ops/test_build.py compiles this file together with torch's own headers,
// so that a prototype that differs from theirs is a compile error there.
#pragma once

#include <cstddef>
#include <cstdint>

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
class TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
struct DeviceGuardOpaque;
using DeviceGuardHandle = DeviceGuardOpaque*;
using AOTITorchError = int32_t;
using StableIValue = uint64_t;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void* ctx);

#define EMC_TORCH_API __attribute__((__visibility__("default")))

extern "C" {
// constants
EMC_TORCH_API int32_t aoti_torch_device_type_cpu();
EMC_TORCH_API int32_t aoti_torch_dtype_float32();
EMC_TORCH_API int32_t aoti_torch_dtype_float64();
EMC_TORCH_API int32_t aoti_torch_dtype_float16();
EMC_TORCH_API int32_t aoti_torch_dtype_bfloat16();
EMC_TORCH_API int32_t aoti_torch_dtype_int64();
EMC_TORCH_API int32_t aoti_torch_dtype_bool();
EMC_TORCH_API size_t aoti_torch_dtype_element_size(int32_t dtype);

// tensors
EMC_TORCH_API AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
EMC_TORCH_API AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** ret_data_ptr);
EMC_TORCH_API AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* ret_dim);
EMC_TORCH_API AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* ret_numel);
EMC_TORCH_API AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** ret_sizes);
EMC_TORCH_API AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** ret_strides);
EMC_TORCH_API AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* ret_dtype);
EMC_TORCH_API AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* ret_device_type);
EMC_TORCH_API AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* ret_device_index);
EMC_TORCH_API AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* ret_is_contiguous);
EMC_TORCH_API AOTITorchError aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes_ptr, const int64_t* strides_ptr, int32_t dtype,
                                                      int32_t device_type, int32_t device_index, AtenTensorHandle* ret_new_tensor);

// the current device of an accelerator
EMC_TORCH_API AOTITorchError aoti_torch_create_device_guard(int32_t device_index, DeviceGuardHandle* ret_guard);
EMC_TORCH_API AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard);

// registration and threads
EMC_TORCH_API AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* k, const char* file, uint32_t line,
                                                          TorchLibraryHandle* ret_new_torch_lib);
EMC_TORCH_API AOTITorchError torch_library_impl(TorchLibraryHandle self, const char* name, void (*fn)(StableIValue*, uint64_t, uint64_t),
                                                uint64_t extension_build_version);
EMC_TORCH_API AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc func, void* ctx);

// since 2.13: null before, where an optional is freed by plain delete
EMC_TORCH_API AOTITorchError torch_delete_stable_ivalue(StableIValue* value) __attribute__((weak));
}

namespace emc {
// The interface that we are written for; newer torch keeps it.
constexpr uint64_t kTorchInterface = (uint64_t{2} << 56) | (uint64_t{10} << 48);
}  // namespace emc
