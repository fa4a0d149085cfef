// out = a b (+ bias) (+ add) for matrices in any arrangement, float32: the products of the attention block, forward and backward.
#pragma once

#include "../kernels.h"

namespace emc {

// Element (row, column) stands at data + row * row_stride + column * column_stride, in elements.
struct Matrix {
  const float* data = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};

struct ProductArgs {
  int64_t rows = 0, inner = 0, columns = 0;
  Matrix a, b;                          // (rows, inner), (inner, columns)
  const float* bias = nullptr;          // (columns,)
  const float* add = nullptr;           // (rows, columns), dense; may be `out`
  float* out = nullptr;                 // (rows, columns), dense
  float* packed = nullptr;              // room for b, where product_is_packed
  const ProductArgs* beside = nullptr;  // another product of this a, whose rows are computed in the same tasks

  Precision precision = Precision::kHighest;  // how b is packed depends on it
};

// Rows of `out` that are computed together; one task of `run`.
constexpr int64_t kProductRows = 32;
// Columns of b that are packed together; one task of `pack`.
constexpr int64_t kProductColumns = 32;
// The inner dimension is cut into pieces of this length whose sums are added up: long sums then lose little to rounding.
constexpr int64_t kProductInner = 256;

// A product over a long inner dimension (the gradient of a weight) packs b piece by piece beside the rows that need it; packed beforehand,
// b would be larger than a cache. Its tasks are of more rows, so that the packing is shared.
constexpr int64_t kProductDeepRows = 128;
inline bool product_is_deep(const ProductArgs& a) { return a.inner > 2 * kProductInner; }

// A few rows times a matrix that lies column by column (a projection of a few frames): each sum runs along both as they lie, since packing
// b would take longer than the product.
constexpr int64_t kProductFewRows = 12;
inline bool product_is_few(const ProductArgs& a) {
  return a.rows <= kProductFewRows && a.a.column_stride == 1 && a.b.row_stride == 1 && !product_is_deep(a);
}
inline bool product_is_packed(const ProductArgs& a) { return !product_is_deep(a) && !product_is_few(a); }
// Whether two products may be computed beside each other.
inline bool products_share(const ProductArgs& a, const ProductArgs& b) {
  return a.a.data == b.a.data && a.a.row_stride == b.a.row_stride && a.a.column_stride == b.a.column_stride && a.rows == b.rows &&
         a.inner == b.inner && a.precision == b.precision && !product_is_deep(a) && product_is_few(a) == product_is_few(b);
}

inline int64_t product_task_rows(const ProductArgs& a) { return product_is_deep(a) ? kProductDeepRows : kProductRows; }
inline int64_t product_row_tasks(const ProductArgs& a) { return (a.rows + product_task_rows(a) - 1) / product_task_rows(a); }
inline int64_t product_column_tasks(const ProductArgs& a) { return (a.columns + kProductColumns - 1) / kProductColumns; }

struct MatrixProductKernels {
  int64_t (*packed_floats)(const ProductArgs&);
  int64_t (*workspace)(const ProductArgs&);  // floats that a thread needs for either kind of task
  void (*pack)(const ProductArgs&, int64_t begin, int64_t end, float* workspace);
  void (*run)(const ProductArgs&, int64_t begin, int64_t end, float* workspace);  // when all that is to be is packed
  void (*sum_rows)(const float* x, int64_t rows, int64_t columns, float* sums);   // of a dense matrix
};

EMC_KERNEL_TABLE_BF16(MatrixProductKernels, matrix_product_kernels)

}  // namespace emc
