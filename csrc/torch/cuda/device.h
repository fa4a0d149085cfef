// What boxed operators for CUDA need of torch: the device and stream of a call, outputs there, registration.
#pragma once

#include "../../cuda/device.h"
#include "../../cuda/philox_arguments.h"
#include "../boxed.h"
#include "../walk.h"

namespace emc {

// One call on the device of a tensor: makes that the current device while it lives, and knows the stream that torch is recording to.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  int device() const { return index_; }
  void* stream() const { return stream_; }
  // Dense, on the device; filled with NaN when tests ask for it.
  Tensor empty(const int64_t* sizes, int64_t ndim, int32_t torch_dtype) const;
  Tensor empty_like(const Tensor& other) const { return empty(other.sizes(), other.dim(), other.torch_dtype()); }

 private:
  int32_t type_, index_;
  void* stream_ = nullptr;
  DeviceGuardHandle guard_ = nullptr;
};

inline void check_launch(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("emc_fast: the launch of a CUDA kernel failed: ") + error);
}

// Which keys the queries of a launch see; its numbers of queries and keys are set.
template <class Arguments>
void set_seen(Arguments& a, const Tensor& key_mask, bool causal, int64_t window) {
  if (key_mask) {
    a.key_mask = key_mask.data_as<const unsigned char>();
    a.mask_stride[0] = key_mask.stride(0), a.mask_stride[1] = key_mask.stride(1);
  }
  a.least_lag = causal ? 0 : -a.queries;
  a.lag_bound = causal && window > 0 && window < a.keys ? static_cast<int>(window) : a.keys;
}

inline cuda::DeviceNoise device_noise(const Tensor& like, const Tensor& seed, int64_t stream, const Tensor& frame_offset) {
  const NoiseLayout layout = noise_layout(like, seed, frame_offset);
  return {seed.data_as<const int64_t>(), frame_offset ? frame_offset.data_as<const int64_t>() : nullptr, layout.rows_per_seed,
          layout.frames, static_cast<uint32_t>(stream)};
}

// Like Register for the key "CUDA".
struct RegisterCuda {
  RegisterCuda(std::initializer_list<std::pair<const char*, BoxedFunction>> functions);
};

}  // namespace emc
