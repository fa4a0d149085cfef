// LayerNorm(x + Dropout(update)) and its gradients. A row is read once, worked on in the first-level cache, written once; backward makes
// the normalised row and the dropout mask again from x, update and the row's two statistics.
#include "attention_block_kernels.h"
#include "philox.h"

namespace emc::EMC_ISA {
namespace {

// Rows of float32 scratch, a whole number of vectors each.
struct Scratch {
  float *a, *b, *c, *d, *e, *f;
  Scratch(float* memory, int64_t width) {
    const int64_t step = block_scratch(width) / 6;
    a = memory, b = a + step, c = b + step, d = c + step, e = d + step, f = e + step;
  }
};

// Columns beyond the width are 0 in every scratch row, so loops run over whole vectors; only the variance has to leave them out.
template <class T>
inline void load_row_of(const void* data, int64_t row, int64_t width, float* to) {
  const T* p = static_cast<const T*>(data) + row * width;
  for (int64_t i = 0; i < width; i += W) store(to + i, load_some(p + i, 1, width - i));
}
template <class T>
inline void store_row_of(void* data, int64_t row, int64_t width, const float* from) {
  T* p = static_cast<T*>(data) + row * width;
  for (int64_t i = 0; i < width; i += W) store_some(p + i, load(from + i), width - i);
}
void load_row(const BlockMatrix& m, int64_t row, int64_t width, float* to) { EMC_FOR_DTYPE(m.dtype, load_row_of, m.data, row, width, to); }
void store_row(const BlockMatrix& m, int64_t row, int64_t width, const float* from) {
  EMC_FOR_DTYPE(m.dtype, store_row_of, m.data, row, width, from);
}

// factors[i] = 1 / (1 - p) where element i of the row is kept, else 0.
void dropout_factors(const BlockArgs& a, int64_t row, float* factors) {
  const NoiseRow start = noise_row(a.noise, row, a.width);
  const U bound = splat(keep_from(a.dropout_p));
  const F scale = splat(a.dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - a.dropout_p)) : 0.f);
  for (int64_t group = 0; group * kGroup < a.width; ++group) {
    U w[1][4];
    words(start, group, w);
    for (int k = 0; k < 4; ++k) store(factors + group * kGroup + k * W, select((I)((w[0][k] >> 9) >= bound), scale, F{}));
  }
}

// sum = x + dropout(update); either may be absent
inline void residual(const BlockArgs& a, int64_t row, float* sum, float* update, float* factors) {
  if (a.x.data != nullptr) {
    load_row(a.x, row, a.width, sum);
  } else {
    for (int64_t i = 0; i < a.width; i += W) store(sum + i, F{});
  }
  if (a.update.data == nullptr) return;
  load_row(a.update, row, a.width, update);
  if (a.dropout_p > 0.0) {
    dropout_factors(a, row, factors);
    for (int64_t i = 0; i < a.width; i += W) {
      const F factor = load(factors + i);
      // Selected, not multiplied: what is dropped may be NaN.
      store(sum + i, load(sum + i) + select((I)(factor > 0.f), load(update + i) * factor, F{}));
    }
  } else {
    for (int64_t i = 0; i < a.width; i += W) store(sum + i, load(sum + i) + load(update + i));
  }
}

void forward(const BlockArgs& a, int64_t begin, int64_t end, float* memory) {
  const Scratch s(memory, a.width);
  float *sum = s.a, *update = s.b, *factors = s.c, *weight = s.d, *bias = s.e;
  const int64_t width = a.width;
  const float n = static_cast<float>(width);
  load_row(a.weight, 0, width, weight);
  if (a.bias.data != nullptr) {
    load_row(a.bias, 0, width, bias);
  } else {
    for (int64_t i = 0; i < width; i += W) store(bias + i, F{});
  }
  for (int64_t row = begin; row < end; ++row) {
    residual(a, row, sum, update, factors);
    F total = {};
    for (int64_t i = 0; i < width; i += W) total += load(sum + i);
    const float mean = emc::EMC_ISA::sum(total) / n;
    F squares = {};
    for (int64_t i = 0; i < width; i += W) {
      F centred = load(sum + i) - mean;
      if (i + W > width) centred = select((I)(iota() < static_cast<uint32_t>(width - i)), centred, F{});
      store(sum + i, centred);
      squares += centred * centred;
    }
    const float variance = emc::EMC_ISA::sum(squares) / n;
    const float inverse = 1.f / __builtin_sqrtf(variance + static_cast<float>(a.eps));
    for (int64_t i = 0; i < width; i += W) store(sum + i, load(sum + i) * inverse * load(weight + i) + load(bias + i));
    store_row(a.out, row, width, sum);
    a.mean[row] = mean;
    a.inverse_deviation[row] = inverse;
  }
}

// With y the normalised row and g = grad_out * weight:  grad_sum = (g - mean(g) - y * mean(g * y)) / deviation.
void backward(const BlockArgs& a, int64_t begin, int64_t end, float* memory) {
  const Scratch s(memory, a.width);
  float *y = s.a, *update = s.b, *factors = s.c, *weight = s.d, *grad = s.e, *scaled = s.f;
  const int64_t width = a.width;
  const float n = static_cast<float>(width);
  load_row(a.weight, 0, width, weight);
  for (int64_t group = begin; group < end; ++group) {
    float* sums = a.partial + group * 3 * width;  // of grad_out * y, grad_out, grad_update
    for (int64_t i = 0; i < 3 * width; ++i) sums[i] = 0.f;
    const int64_t last = (group + 1) * kBlockGroup < a.rows ? (group + 1) * kBlockGroup : a.rows;
    for (int64_t row = group * kBlockGroup; row < last; ++row) {
      residual(a, row, y, update, factors);
      load_row(a.grad_out, row, width, grad);
      const float mean = a.mean[row], inverse = a.inverse_deviation[row];
      F total = {}, product = {};
      for (int64_t i = 0; i < width; i += W) {
        const F centred = (load(y + i) - mean) * inverse, go = load(grad + i), g = go * load(weight + i);
        store(y + i, centred);
        store(scaled + i, g);
        total += g;  // g is 0 beyond the width
        product += g * centred;
        const int64_t left = width - i;
        store_some(sums + i, load_some(sums + i, 1, left) + go * centred, left);
        store_some(sums + width + i, load_some(sums + width + i, 1, left) + go, left);
      }
      const float mean_g = emc::EMC_ISA::sum(total) / n, mean_product = emc::EMC_ISA::sum(product) / n;
      for (int64_t i = 0; i < width; i += W) {
        const F gx = (load(scaled + i) - mean_g - load(y + i) * mean_product) * inverse;
        F gu = gx;
        if (a.dropout_p > 0.0) gu = select((I)(load(factors + i) > 0.f), gx * load(factors + i), F{});
        store(y + i, gx);
        store(grad + i, gu);
        const int64_t left = width - i;
        store_some(sums + 2 * width + i, load_some(sums + 2 * width + i, 1, left) + gu, left);
      }
      if (a.grad_update.data != nullptr) store_row(a.grad_update, row, width, grad);
      if (a.grad_beside.data != nullptr) {
        load_row(a.grad_beside, row, width, grad);
        for (int64_t i = 0; i < width; i += W) store(y + i, load(y + i) + load(grad + i));
      }
      store_row(a.grad_x, row, width, y);
    }
  }
}

void reduce(const BlockArgs& a, float* memory) {
  const int64_t groups = (a.rows + kBlockGroup - 1) / kBlockGroup;
  const BlockMatrix* results[3] = {&a.grad_weight, &a.grad_bias, &a.grad_update_sum};
  for (int64_t which = 0; which < 3; ++which) {
    if (results[which]->data == nullptr) continue;
    for (int64_t i = 0; i < a.width; i += W) {
      F total = {};
      for (int64_t group = 0; group < groups; ++group) total += load_some(a.partial + (group * 3 + which) * a.width + i, 1, a.width - i);
      store(memory + i, total);
    }
    store_row(*results[which], 0, a.width, memory);
  }
}

void sum(const BlockArgs& a, int64_t begin, int64_t end, float* memory) {
  const Scratch s(memory, a.width);
  for (int64_t row = begin; row < end; ++row) {
    residual(a, row, s.a, s.b, s.c);
    store_row(a.out, row, a.width, s.a);
  }
}

}  // namespace

const AttentionBlockKernels attention_block_kernels = {forward, backward, reduce, sum};

}  // namespace emc::EMC_ISA
