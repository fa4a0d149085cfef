// CPU kernels of reparameterize. A row is read once; its noise never leaves the registers.
#include "philox.h"
#include "reparameterize_kernels.h"

namespace emc::EMC_ISA {
namespace {

// A row in vectors with the noise of each, given or made: body(first element, how many are left, noise).
template <class T, class Body>
EMC_INLINE void for_noise(const ReparameterizeArgs& a, int64_t row, const NoiseRows& made, const Body& body) {
  const T* given = a.noise.data != nullptr ? row_pointer<const T>(a.noise, row) : nullptr;
  const int64_t width = a.mu.width;
  for_groups(width, [&](auto groups, int64_t group) __attribute__((always_inline)) {
    constexpr int N = decltype(groups)::kValue;
    F eps[N][4];
    if (given == nullptr) normals(made.now(), group, eps);
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < 4; ++k) {
        const int64_t i = (group + n) * kGroup + k * W, left = width - i;
        if (left <= 0) break;
        body(i, left, given == nullptr ? eps[n][k] : load_some(given + i * a.noise.stride, a.noise.stride, left));
      }
  });
}
// The rows that noise is made for.
NoiseRows noise_rows(const ReparameterizeArgs& a, int64_t begin, int64_t end) {
  return {a.philox, a.mu.width, begin, a.noise.data != nullptr ? begin : end};
}

template <class T>
void forward_rows(const ReparameterizeArgs& a, void* z, float* kl, int64_t begin, int64_t end) {
  NoiseRows noise = noise_rows(a, begin, end);
  const bool past = count(a.mu) * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
  for (int64_t row = begin; row < end; ++row, noise.next()) {
    const T *mu = row_pointer<const T>(a.mu, row), *logvar = row_pointer<const T>(a.logvar, row);
    T* out = static_cast<T*>(z) + row * a.mu.width;
    F total = {};
    for_noise<T>(a, row, noise, [&](int64_t i, int64_t left, F eps) __attribute__((always_inline)) {
      prefetch(mu + i), prefetch(logvar + i);
      const F m = load_some(mu + i * a.mu.stride, a.mu.stride, left), v = load_some(logvar + i * a.logvar.stride, a.logvar.stride, left);
      const Deviation deviation(v);
      store_some(out + i, fma(deviation.value, eps, m), left, past);
      total += fma(m, m, deviation.variance_minus_one - v);  // lanes past the end hold zeros and add exactly nothing
    });
    kl[row] = 0.5f * sum(total);
  }
  finish_past(past);
}

template <class T>
void backward_rows(const ReparameterizeArgs& a, const Rows& grad_z, const Rows& grad_kl, void* grad_mu, void* grad_logvar, int64_t begin,
                   int64_t end) {
  NoiseRows noise = noise_rows(a, begin, end);
  const bool past = 2 * count(a.mu) * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
  for (int64_t row = begin; row < end; ++row, noise.next()) {
    const T *mu = row_pointer<const T>(a.mu, row), *logvar = row_pointer<const T>(a.logvar, row), *gz = row_pointer<const T>(grad_z, row);
    const F gk = splat(*row_pointer<const float>(grad_kl, row));
    T *out_mu = static_cast<T*>(grad_mu) + row * a.mu.width, *out_logvar = static_cast<T*>(grad_logvar) + row * a.mu.width;
    for_noise<T>(a, row, noise, [&](int64_t i, int64_t left, F eps) __attribute__((always_inline)) {
      prefetch(mu + i), prefetch(logvar + i), prefetch(gz + i);
      const F m = load_some(mu + i * a.mu.stride, a.mu.stride, left), v = load_some(logvar + i * a.logvar.stride, a.logvar.stride, left);
      const F g = load_some(gz + i * grad_z.stride, grad_z.stride, left);
      const Deviation deviation(v);
      store_some(out_mu + i, fma(gk, m, g), left, past);
      store_some(out_logvar + i, 0.5f * fma(gk, deviation.variance_minus_one, g * eps * deviation.value), left, past);
    });
  }
  finish_past(past);
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
