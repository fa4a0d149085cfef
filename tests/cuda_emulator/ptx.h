// Bodies for the wrappers of csrc/cuda/ptx.cuh.
#pragma once

namespace emc::cuda {

inline float half_to_float(unsigned short bits) {
  _Float16 h;
  std::memcpy(&h, &bits, sizeof h);
  return static_cast<float>(h);
}
inline unsigned short float_to_half(float x) {
  const auto h = static_cast<_Float16>(x);
  unsigned short bits;
  std::memcpy(&bits, &h, sizeof bits);
  return bits;
}

}  // namespace emc::cuda
