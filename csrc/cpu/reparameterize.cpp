// CPU kernels of reparameterize. A row is read once; its noise never leaves the registers.
#include "philox.h"
#include "reparameterize_kernels.h"

namespace emc::EMC_ISA {
namespace {

// The noise of 4 W elements of a row, given or made.
template <class T>
EMC_INLINE void noise_group(const ReparameterizeArgs& a, const T* given, const NoiseRow& start, int64_t group, F eps[4]) {
  if (given == nullptr) {
    normals(start, group, eps);
    return;
  }
  for (int k = 0; k < 4; ++k) {
    const int64_t i = group * kGroup + k * W, left = a.noise.width - i;
    eps[k] = left > 0 ? load_some(given + i * a.noise.stride, a.noise.stride, left) : F{};
  }
}

template <class T>
void forward_rows(const ReparameterizeArgs& a, void* z, float* kl, int64_t begin, int64_t end) {
  const int64_t width = a.mu.width;
  for (int64_t row = begin; row < end; ++row) {
    const T *mu = row_pointer<const T>(a.mu, row), *logvar = row_pointer<const T>(a.logvar, row);
    const T* given = a.noise.data != nullptr ? row_pointer<const T>(a.noise, row) : nullptr;
    const NoiseRow start = given == nullptr ? noise_row(a.philox, row, width) : NoiseRow{};
    T* out = static_cast<T*>(z) + row * width;
    F total = {};
    for (int64_t group = 0; group * kGroup < width; ++group) {
      F eps[4];
      noise_group(a, given, start, group, eps);
      for (int k = 0; k < 4; ++k) {
        const int64_t i = group * kGroup + k * W, left = width - i;
        if (left <= 0) break;
        const F m = load_some(mu + i * a.mu.stride, a.mu.stride, left), v = load_some(logvar + i * a.logvar.stride, a.logvar.stride, left);
        store_some(out + i, fma(exp(0.5f * v), eps[k], m), left);
        total += fma(m, m, exp(v) - 1.f - v);  // lanes past the end hold zeros and add exactly nothing
      }
    }
    kl[row] = 0.5f * sum(total);
  }
}

template <class T>
void backward_rows(const ReparameterizeArgs& a, const Rows& grad_z, const Rows& grad_kl, void* grad_mu, void* grad_logvar, int64_t begin,
                   int64_t end) {
  const int64_t width = a.mu.width;
  for (int64_t row = begin; row < end; ++row) {
    const T *mu = row_pointer<const T>(a.mu, row), *logvar = row_pointer<const T>(a.logvar, row), *gz = row_pointer<const T>(grad_z, row);
    const F gk = splat(*row_pointer<const float>(grad_kl, row));
    const T* given = a.noise.data != nullptr ? row_pointer<const T>(a.noise, row) : nullptr;
    const NoiseRow start = given == nullptr ? noise_row(a.philox, row, width) : NoiseRow{};
    T *out_mu = static_cast<T*>(grad_mu) + row * width, *out_logvar = static_cast<T*>(grad_logvar) + row * width;
    for (int64_t group = 0; group * kGroup < width; ++group) {
      F eps[4];
      noise_group(a, given, start, group, eps);
      for (int k = 0; k < 4; ++k) {
        const int64_t i = group * kGroup + k * W, left = width - i;
        if (left <= 0) break;
        const F m = load_some(mu + i * a.mu.stride, a.mu.stride, left), v = load_some(logvar + i * a.logvar.stride, a.logvar.stride, left);
        const F g = load_some(gz + i * grad_z.stride, grad_z.stride, left);
        store_some(out_mu + i, fma(gk, m, g), left);
        store_some(out_logvar + i, 0.5f * fma(gk, exp(v) - 1.f, g * eps[k] * exp(0.5f * v)), left);
      }
    }
  }
}

void forward(const ReparameterizeArgs& a, void* z, float* kl, int64_t begin, int64_t end) {
  EMC_FOR_DTYPE(a.mu.dtype, forward_rows, a, z, kl, begin, end);
}
void backward(const ReparameterizeArgs& a, const Rows& grad_z, const Rows& grad_kl, void* grad_mu, void* grad_logvar, int64_t begin,
              int64_t end) {
  EMC_FOR_DTYPE(a.mu.dtype, backward_rows, a, grad_z, grad_kl, grad_mu, grad_logvar, begin, end);
}

}  // namespace

const ReparameterizeKernels reparameterize_kernels = {forward, backward};

}  // namespace emc::EMC_ISA
