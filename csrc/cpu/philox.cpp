// CPU kernels of the philox operators. Noise is made in registers, a group of 4 W elements at a time.
#include "philox.h"

#include "philox_kernels.h"

namespace emc::EMC_ISA {
namespace {

template <class T, bool kNormal>
void fill(const Noise& noise, T* out, int64_t width, int64_t begin, int64_t end) {
  NoiseRows rows(noise, width, begin, end);
  for (int64_t row = begin; row < end; ++row, rows.next()) {
    T* y = out + row * width;
    for_groups(width, [&](auto groups, int64_t group) __attribute__((always_inline)) {
      constexpr int N = decltype(groups)::kValue;
      F x[N][4];
      if (kNormal) {
        normals(rows.now(), group, x);
      } else {
        uniforms(rows.now(), group, x);
      }
      for (int n = 0; n < N; ++n)
        for (int k = 0; k < 4; ++k) {
          const int64_t i = (group + n) * kGroup + k * W;
          if (i < width) store_some(y + i, x[n][k], width - i);
        }
    });
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
  NoiseRows rows(noise, x.width, begin, end);
  const bool past = count(x) * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
  for (int64_t row = begin; row < end; ++row, rows.next()) {
    const T* from = row_pointer<const T>(x, row);
    T* to = static_cast<T*>(out) + row * x.width;
    for_groups(x.width, [&](auto groups, int64_t group) __attribute__((always_inline)) {
      constexpr int N = decltype(groups)::kValue;
      U w[N][4];
      for (int k = 0; k < 4 * N; ++k) prefetch(from + group * kGroup + k * W);
      words(rows.now(), group, w);
      for (int n = 0; n < N; ++n)
        for (int k = 0; k < 4; ++k) {
          const int64_t i = (group + n) * kGroup + k * W, left = x.width - i;
          if (left <= 0) break;
          const F v = load_some(from + i * x.stride, x.stride, left);
          store_some(to + i, select((I)((w[n][k] >> 9) >= bound), v * scale, F{}), left, past);  // select: a NaN that is dropped is gone
        }
    });
  }
  finish_past(past);
}
void dropout(const Noise& noise, double p, const Rows& x, void* out, int64_t begin, int64_t end) {
  EMC_FOR_DTYPE(x.dtype, dropout_rows, noise, p, x, out, begin, end);
}

}  // namespace

const PhiloxKernels philox_kernels = {normal, uniform_fill, dropout};

}  // namespace emc::EMC_ISA
