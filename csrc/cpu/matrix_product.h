// What the copies of the matrix product share: reading matrices of any arrangement, and the end of a block of rows.
#pragma once

#include "matrix_product_kernels.h"
#include "simd.h"

namespace emc::EMC_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// rows x columns of m from (row, column) on as [rows][stride], zero beyond `valid_rows` and `valid_columns`; whole vectors.
inline void gather(const Matrix& m, int64_t row, int64_t column, int64_t rows, int64_t columns, int64_t valid_rows, int64_t valid_columns,
                   float* to, int64_t stride) {
  const float* from = m.data + row * m.row_stride + column * m.column_stride;
  if (m.row_stride == 1 && m.column_stride != 1) {  // lies the other way round: squares are read along it and transposed
    for (int64_t r = 0; r < rows; r += W)
      for (int64_t c = 0; c < columns; c += W) {
        F square[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          square[i] = c + i < valid_columns && r < valid_rows ? load_some(from + r + (c + i) * m.column_stride, 1, valid_rows - r) : F{};
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(to + (r + i) * stride + c, square[i]);
      }
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += W)
      store(to + r * stride + c, r < valid_rows && c < valid_columns
                                     ? load_some(from + r * m.row_stride + c * m.column_stride, m.column_stride, valid_columns - c)
                                     : F{});
}

// Rows `row` .. of `out` from sums [row][stride].
template <bool Bias, bool Add>
inline void finish_rows_of(const ProductArgs& a, int64_t row, int64_t rows, const float* sums, int64_t stride) {
  const int64_t columns = a.columns, whole = columns / W * W, left = columns - whole;
  float* out = a.out + row * columns;
  const float* add = Add ? a.add + row * columns : nullptr;
  for (int64_t r = 0; r < rows; ++r, out += columns, sums += stride) {
    for (int64_t c = 0; c < whole; c += W) {
      F x = load(sums + c);
      if (Bias) x += load(a.bias + c);
      if (Add) x += load(add + c);
      store(out + c, x);
    }
    if (left > 0) {
      F x = load(sums + whole);
      if (Bias) x += load_n(a.bias + whole, left);
      if (Add) x += load_n(add + whole, left);
      store_n(out + whole, x, left);
    }
    if (Add) add += columns;
  }
}
inline void finish_rows(const ProductArgs& a, int64_t row, int64_t rows, const float* sums, int64_t stride) {
  if (a.bias != nullptr) {
    (a.add != nullptr ? finish_rows_of<true, true> : finish_rows_of<true, false>)(a, row, rows, sums, stride);
  } else {
    (a.add != nullptr ? finish_rows_of<false, true> : finish_rows_of<false, false>)(a, row, rows, sums, stride);
  }
}

// Products of R rows from `row` on with W / R columns from `column` on, as many sums as a vector has lanes.
template <int R>
inline void multiply_few(const ProductArgs& a, int64_t row, int64_t column, float* sums, int64_t stride) {
  constexpr int kColumns = W / R;
  const float *x[R], *w[kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) x[r] = a.a.data + (row + r) * a.a.row_stride;
#pragma GCC unroll 16
  for (int c = 0; c < kColumns; ++c) w[c] = a.b.data + least(column + c, a.columns - 1) * a.b.column_stride;
  F tile[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) tile[i] = F{};
  const auto add = [&](int64_t k, int64_t count) __attribute__((always_inline)) {
    F value[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) value[r] = load_some(x[r] + k, 1, count);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const F weight = load_some(w[c] + k, 1, count);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) tile[r * kColumns + c] += value[r] * weight;
    }
  };
  int64_t k = 0;
  for (; k + W <= a.inner; k += W) add(k, W);
  if (k < a.inner) add(k, a.inner - k);
  alignas(64) float found[W];
  store(found, sum_each(tile));
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) std::memcpy(sums + (row + r) * stride + column, found + r * kColumns, kColumns * sizeof(float));
}

// All of a product of few rows; `sums` has room for kProductRows rows of the padded columns. A weight is fetched once, for W columns at a
// time, and serves all rows from the first-level cache.
inline void run_few(const ProductArgs& a, float* sums) {
  const int64_t stride = product_column_tasks(a) * kProductColumns;
  for (int64_t column = 0; column < a.columns; column += W) {
    int64_t row = 0;
    const auto rows = [&](auto count) __attribute__((always_inline)) {
      constexpr int kCount = decltype(count)::kValue;
      for (; row + kCount <= a.rows; row += kCount)
        for (int64_t c = column; c < column + W && c < a.columns; c += W / kCount) multiply_few<kCount>(a, row, c, sums, stride);
    };
    if constexpr (W >= 16) rows(Number<4>());
    if constexpr (W >= 8) rows(Number<2>());
    rows(Number<1>());
  }
  finish_rows(a, 0, a.rows, sums, stride);
}

// Sums over the rows of a dense matrix; of kProductInner rows at a time, which are then added up.
inline void sum_rows(const float* x, int64_t rows, int64_t columns, float* sums) {
  for (int64_t c = 0; c < columns; c += W) {
    F total = {};
    for (int64_t block = 0; block < rows; block += kProductInner) {
      F part[4] = {};
      const int64_t last = least(block + kProductInner, rows);
      for (int64_t r = block; r < last; ++r) part[r % 4] += load_some(x + r * columns + c, 1, columns - c);
      total += (part[0] + part[1]) + (part[2] + part[3]);
    }
    store_some(sums + c, total, columns - c);
  }
}

}  // namespace
}  // namespace emc::EMC_ISA
