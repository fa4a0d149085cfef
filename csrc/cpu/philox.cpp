// CPU kernels of the philox operators. Noise is made in registers, a group of 4 W elements at a time.
#include "philox.h"

#include "philox_kernels.h"

namespace emc::EMC_ISA {
namespace {

template <class T, bool kNormal>
void fill(const Noise& noise, T* out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const NoiseRow start = noise_row(noise, row, width);
    T* y = out + row * width;
    for (int64_t group = 0; group * kGroup < width; ++group) {
      F x[4];
      if (kNormal) {
        normals(start, group, x);
      } else {
        uniforms(start, group, x);
      }
      for (int k = 0; k < 4; ++k) {
        const int64_t i = group * kGroup + k * W;
        if (i < width) store_some(y + i, x[k], width - i);
      }
    }
  }
}
template <class T>
void fill_normal(const Noise& noise, void* out, int64_t width, int64_t begin, int64_t end) {
  fill<T, true>(noise, static_cast<T*>(out), width, begin, end);
}
template <class T>
void fill_uniform(const Noise& noise, void* out, int64_t width, int64_t begin, int64_t end) {
  fill<T, false>(noise, static_cast<T*>(out), width, begin, end);
}
void normal(const Noise& noise, DType dtype, void* out, int64_t width, int64_t begin, int64_t end) {
  EMC_FOR_DTYPE(dtype, fill_normal, noise, out, width, begin, end);
}
void uniform_fill(const Noise& noise, DType dtype, void* out, int64_t width, int64_t begin, int64_t end) {
  EMC_FOR_DTYPE(dtype, fill_uniform, noise, out, width, begin, end);
}

template <class T>
void dropout_rows(const Noise& noise, double p, const Rows& x, void* out, int64_t begin, int64_t end) {
  const U bound = splat(keep_from(p));
  const float scale = p < 1.0 ? static_cast<float>(1.0 / (1.0 - p)) : 0.f;
  for (int64_t row = begin; row < end; ++row) {
    const NoiseRow start = noise_row(noise, row, x.width);
    const T* from = row_pointer<const T>(x, row);
    T* to = static_cast<T*>(out) + row * x.width;
    for (int64_t group = 0; group * kGroup < x.width; ++group) {
      U w[4];
      words(start, group, w);
      for (int k = 0; k < 4; ++k) {
        const int64_t i = group * kGroup + k * W, left = x.width - i;
        if (left <= 0) break;
        const F v = load_some(from + i * x.stride, x.stride, left);
        store_some(to + i, select((I)((w[k] >> 9) >= bound), v * scale, F{}), left);  // select: a NaN that is dropped is gone
      }
    }
  }
}
void dropout(const Noise& noise, double p, const Rows& x, void* out, int64_t begin, int64_t end) {
  EMC_FOR_DTYPE(x.dtype, dropout_rows, noise, p, x, out, begin, end);
}

}  // namespace

const PhiloxKernels philox_kernels = {normal, uniform_fill, dropout};

}  // namespace emc::EMC_ISA
