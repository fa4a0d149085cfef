// Matrix product on the vector units: tiles of kTileRows x two vectors, b packed [32 columns][inner][32], or in pairs along the inner
// dimension (terms.h).
#include "matrix_product.h"

#include "terms.h"

namespace emc::EMC_ISA {
namespace {

constexpr int kTileRows = W == 16 ? 8 : W == 8 ? 6 : 4;
constexpr int kTileColumns = 2 * W;
// Terms that are summed in one register before the sum is added to the others: fewer where each product is rounded by itself.
constexpr int64_t kTerms = W == 4 ? 32 : kProductInner;

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t padded_columns(const ProductArgs& a) { return padded(a.columns, kProductColumns); }
int64_t packed_floats(const ProductArgs& a) { return padded_columns(a) * a.inner; }
int64_t height_of(const ProductArgs& a) { return product_is_deep(a) ? kProductDeepRows : kProductRows; }
int64_t workspace_of(const ProductArgs& a) {
  return height_of(a) * padded_columns(a) + kProductRows * kProductInner + (product_is_deep(a) ? padded_columns(a) * kProductInner : 0);
}

int64_t workspace(const ProductArgs& a) {
  int64_t most = 0;
  for (const ProductArgs* p = &a; p != nullptr; p = p->beside) most = most > workspace_of(*p) ? most : workspace_of(*p);
  return most;
}

// 32 columns of b, `count` of the inner dimension from `k` on.
template <class Terms>
inline void pack_columns(const ProductArgs& a, int64_t column, int64_t k, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += W) {
    alignas(64) float block[W * kProductColumns];
    const int64_t valid = least(W, count - i);
    gather(a.b, k + i, column, W, kProductColumns, valid, a.columns - column, block, kProductColumns);
    const int64_t elements = (valid + Terms::kTerms - 1) / Terms::kTerms;
    if constexpr (Terms::kTerms == 2)
      for (int64_t e = 0; e < elements; ++e)
        for (int64_t c = 0; c < kProductColumns; c += W) {
          const float* from = block + 2 * e * kProductColumns + c;
          store(block + e * kProductColumns + c, Terms::of(load(from), load(from + kProductColumns)));
        }
    std::memcpy(to + i / Terms::kTerms * kProductColumns, block, static_cast<size_t>(elements * kProductColumns) * sizeof(float));
  }
}

template <class Terms>
void pack_as(const ProductArgs& a, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task)
    pack_columns<Terms>(a, task * kProductColumns, 0, a.inner, a.packed + task * kProductColumns * a.inner);
}

// sums[r][0 .. 2 vectors] += x[r][0 .. inner] times b; `inner` counts elements.
template <class Terms, int R>
inline void multiply_tile(const float* x, int64_t x_stride, const float* b, int64_t inner, float* sums, int64_t stride) {
  F tile[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) tile[r][0] = F{}, tile[r][1] = F{};
  for (int64_t k = 0; k < inner; ++k, b += kProductColumns) {
    const F first = load(b), second = load(b + W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F value = splat(x[r * x_stride + k]);
      tile[r][0] = Terms::multiply_add(value, first, tile[r][0]);
      tile[r][1] = Terms::multiply_add(value, second, tile[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) store(sums + r * stride + v * W, load(sums + r * stride + v * W) + tile[r][v]);
}

// sums [rows][padded columns] += up to 32 rows from `row` on times `inner` of the inner dimension from `k` on; b's blocks of 32 columns lie
// `b_step` floats apart.
template <class Terms>
inline void multiply(const ProductArgs& a, int64_t row, int64_t rows, int64_t k, int64_t inner, const float* b, int64_t b_step, float* copy,
                     float* sums) {
  const int64_t stride = padded_columns(a);
  const float* x = a.a.data + row * a.a.row_stride + k;
  int64_t x_stride = a.a.row_stride;
  if (a.a.column_stride != 1) {
    gather(a.a, row, k, kProductRows, padded(inner, W), rows, inner, copy, kProductInner);
    x = copy, x_stride = kProductInner;
  }
  if constexpr (Terms::kTerms == 2) {
    for (int64_t r = 0; r < rows; ++r) Terms::along(x + r * x_stride, inner, copy + r * kProductInner);
    x = copy, x_stride = kProductInner;
  }
  const int64_t elements = (inner + Terms::kTerms - 1) / Terms::kTerms;
  for (int64_t column = 0; column < stride; column += kTileColumns)
    for (int64_t from = 0; from < elements; from += kTerms) {
      const int64_t terms = least(kTerms, elements - from);
      const float* block = b + column / kProductColumns * b_step + column % kProductColumns + from * kProductColumns;
      const auto tile = [&](auto height, int64_t r) __attribute__((always_inline)) {
        multiply_tile<Terms, decltype(height)::kValue>(x + r * x_stride + from, x_stride, block, terms, sums + r * stride + column, stride);
      };
      int64_t r = 0;
      for (; r + kTileRows <= rows; r += kTileRows) tile(Number<kTileRows>(), r);
      for (; r + 2 <= rows; r += 2) tile(Number<2>(), r);
      if (r < rows) tile(Number<1>(), r);
    }
}

template <class Terms>
void run_as(const ProductArgs& a, int64_t begin, int64_t end, float* memory) {
  const bool deep = product_is_deep(a);
  const int64_t stride = padded_columns(a), height = height_of(a);
  float *sums = memory, *copy = sums + height * stride, *block_of_b = copy + kProductRows * kProductInner;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task * height, last = least(row + height, a.rows);
    for (int64_t i = 0; i < height * stride; i += W) store(sums + i, F{});
    for (int64_t k = 0; k < a.inner; k += kProductInner) {
      const int64_t inner = least(kProductInner, a.inner - k);
      const float* b = deep ? block_of_b : a.packed + k / Terms::kTerms * kProductColumns;  // k is even
      if (deep)
        for (int64_t column = 0; column < stride; column += kProductColumns)
          pack_columns<Terms>(a, column, k, inner, block_of_b + column * kProductInner);
      const int64_t b_step = (deep ? kProductInner : a.inner) * kProductColumns;
      for (int64_t r = row; r < last; r += kProductRows)
        multiply<Terms>(a, r, least(kProductRows, last - r), k, inner, b, b_step, copy, sums + (r - row) * stride);
    }
    finish_rows(a, row, last - row, sums, stride);
  }
}

// Whether bfloat16 is all that was asked for.
bool takes_pairs(const ProductArgs& a) { return kHasPairs && a.precision == Precision::kMedium; }

void pack(const ProductArgs& a, int64_t begin, int64_t end, float*) { (takes_pairs(a) ? pack_as<Pairs> : pack_as<Single>)(a, begin, end); }

void run_one(const ProductArgs& a, int64_t begin, int64_t end, float* memory) {
  if (product_is_few(a)) return run_few(a, memory);
  (takes_pairs(a) ? run_as<Pairs> : run_as<Single>)(a, begin, end, memory);
}

void run(const ProductArgs& a, int64_t begin, int64_t end, float* memory) {
  for (const ProductArgs* p = &a; p != nullptr; p = p->beside) run_one(*p, begin, end, memory);
}

}  // namespace

const MatrixProductKernels matrix_product_kernels = {packed_floats, workspace, pack, run, sum_rows};

}  // namespace emc::EMC_ISA
