// Matrix product on matrix tiles: blocks of 32 x 32, both operands cut into pieces (tiles.h).
#include "../matrix_product.h"

#include "tiles.h"

namespace emc::EMC_ISA {
namespace {

constexpr int64_t kBlock = 2 * kTile;
constexpr int64_t kPair = 2 * kTileSet;              // a block's two sets for a chunk of the inner dimension
constexpr int64_t kChunks = kProductInner / kInner;  // chunks whose products are summed in tiles
static_assert(kBlock == kProductRows && kBlock == kProductColumns);

int64_t chunks_of(const ProductArgs& a) { return (a.inner + kInner - 1) / kInner; }
int64_t packed_floats(const ProductArgs& a) { return product_column_tasks(a) * chunks_of(a) * kPair; }

struct Memory {
  float* sums;          // [kProductDeepRows][padded columns], or [kBlock][padded columns] of each product that is computed together
  uint32_t* sets_of_a;  // [chunk][half], of one block of rows
  float* product;
  uint32_t* sets_of_b;  // [32 columns][chunk][half]; only where b is not packed beforehand

  static int64_t floats_of_sums(const ProductArgs& a) {
    if (product_is_deep(a)) return kProductDeepRows * product_column_tasks(a) * kBlock;
    int64_t floats = 0;
    for (const ProductArgs* p = &a; p != nullptr; p = p->beside) floats += kBlock * product_column_tasks(*p) * kBlock;
    return floats;
  }
  static int64_t floats(const ProductArgs& a) {
    return floats_of_sums(a) + kChunks * kPair + kBlock * kBlock + (product_is_deep(a) ? product_column_tasks(a) * kChunks * kPair : 0);
  }
  Memory(const ProductArgs& a, float* memory) {
    sums = memory, memory += floats_of_sums(a);
    sets_of_a = reinterpret_cast<uint32_t*>(memory), memory += kChunks * kPair;
    product = memory, memory += kBlock * kBlock;
    sets_of_b = reinterpret_cast<uint32_t*>(memory);
  }
};
int64_t workspace(const ProductArgs& a) { return Memory::floats(a); }

// 32 columns of b and one chunk, as sets [half].
inline void pack_columns(const ProductArgs& a, int64_t column, int64_t chunk, uint32_t* sets) {
  const int64_t k = chunk * kInner, inner = a.inner - k, columns = a.columns - column;
  const float* from = a.b.data + k * a.b.row_stride + column * a.b.column_stride;
  const bool whole = inner >= kInner && columns >= kBlock;
  if (whole && a.b.column_stride == 1) {
    pack_outer(from, a.b.row_stride, kBlock, sets);
  } else if (whole && a.b.row_stride == 1) {
    for (int64_t half = 0; half < 2; ++half)
      pack_inner_transposed(from + half * kTile * a.b.column_stride, a.b.column_stride, kInner, sets + half * kTileSet);
  } else {
    alignas(64) float rows[kInner * kBlock];
    gather(a.b, k, column, kInner, kBlock, inner, columns, rows, kBlock);
    pack_outer(rows, kBlock, kBlock, sets);
  }
}

// 32 rows of a and one chunk, likewise.
inline void pack_rows(const ProductArgs& a, int64_t row, int64_t chunk, uint32_t* sets) {
  const int64_t k = chunk * kInner, inner = a.inner - k, rows = a.rows - row, stride = a.a.row_stride;
  const float* from = a.a.data + row * stride + k * a.a.column_stride;
  const bool whole = inner >= kInner && rows >= kBlock;
  if (whole && stride == 1) {
    pack_outer_transposed(from, a.a.column_stride, kBlock, sets);
    return;
  }
  alignas(64) float copy[kBlock * kInner];
  const bool in_place = whole && a.a.column_stride == 1;
  if (in_place) {
    for (int64_t r = 0; r < kBlock; ++r)
      __builtin_prefetch(from + (kBlock + r) * stride), __builtin_prefetch(from + (kBlock + r) * stride + W);
  } else {
    gather(a.a, row, k, kBlock, kInner, rows, inner, copy, kInner);
  }
  const int64_t step = in_place ? stride : kInner;
  for (int64_t half = 0; half < 2; ++half) pack_inner((in_place ? from : copy) + half * kTile * step, step, kInner, sets + half * kTileSet);
}

void pack(const ProductArgs& a, int64_t begin, int64_t end, float*) {
  const int64_t chunks = chunks_of(a);
  for (int64_t task = begin; task < end; ++task)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      pack_columns(a, task * kBlock, chunk, reinterpret_cast<uint32_t*>(a.packed) + (task * chunks + chunk) * kPair);
}

// sums [32][padded columns] of a block of rows, of `count` chunks from `chunk` on; b's sets of 32 columns lie `b_step` words apart.
inline void multiply(const ProductArgs& a, int64_t chunk, int64_t count, const uint32_t* b, int64_t b_step, const Memory& memory,
                     float* sums) {
  const int64_t stride = product_column_tasks(a) * kBlock;
  for (int64_t column = 0; column < stride; column += kBlock, b += b_step) {
    zero_tiles();
    for (int64_t c = 0; c < count * kPair; c += kPair) {  // all six products of a chunk while its pieces are near
      const uint32_t *a0 = memory.sets_of_a + c, *a1 = a0 + kTileSet, *b0 = b + c, *b1 = b0 + kTileSet;
      multiply_tiles<0>(a0, a1, b0, b1), multiply_tiles<1>(a0, a1, b0, b1), multiply_tiles<2>(a0, a1, b0, b1);
      multiply_tiles<3>(a0, a1, b0, b1), multiply_tiles<4>(a0, a1, b0, b1), multiply_tiles<5>(a0, a1, b0, b1);
    }
    if (chunk == 0) {
      store_tiles(sums + column, stride);
      continue;
    }
    store_tiles(memory.product, kBlock);
    for (int64_t r = 0; r < kBlock; ++r)
      for (int64_t v = 0; v < kBlock; v += W) {
        float* place = sums + r * stride + column + v;
        store(place, load(place) + load(memory.product + r * kBlock + v));
      }
  }
}

inline void pack_block(const ProductArgs& a, int64_t row, int64_t chunk, int64_t count, const Memory& memory) {
  for (int64_t c = 0; c < count; ++c) pack_rows(a, row, chunk + c, memory.sets_of_a + c * kPair);
}

// A block of rows of all products that share a.
void run_packed(const ProductArgs& a, int64_t row, const Memory& memory) {
  const int64_t chunks = chunks_of(a), rows = least(kBlock, a.rows - row);
  for (int64_t chunk = 0; chunk < chunks; chunk += kChunks) {
    const int64_t count = least(kChunks, chunks - chunk);
    pack_block(a, row, chunk, count, memory);
    float* sums = memory.sums;
    for (const ProductArgs* p = &a; p != nullptr; p = p->beside) {
      multiply(*p, chunk, count, reinterpret_cast<const uint32_t*>(p->packed) + chunk * kPair, chunks * kPair, memory, sums);
      sums += kBlock * product_column_tasks(*p) * kBlock;
    }
  }
  const float* sums = memory.sums;
  for (const ProductArgs* p = &a; p != nullptr; p = p->beside) {
    const int64_t stride = product_column_tasks(*p) * kBlock;
    finish_rows(*p, row, rows, sums, stride);
    sums += kBlock * stride;
  }
}

// kProductDeepRows rows of a product over a long inner dimension.
void run_deep(const ProductArgs& a, int64_t row, const Memory& memory) {
  const int64_t last = least(row + kProductDeepRows, a.rows), stride = product_column_tasks(a) * kBlock, chunks = chunks_of(a);
  for (int64_t chunk = 0; chunk < chunks; chunk += kChunks) {
    const int64_t count = least(kChunks, chunks - chunk);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t column = 0; column < stride; column += kBlock)
        pack_columns(a, column, chunk + c, memory.sets_of_b + (column / kBlock * kChunks + c) * kPair);
    for (int64_t r = row; r < last; r += kBlock) {
      pack_block(a, r, chunk, count, memory);
      multiply(a, chunk, count, memory.sets_of_b, kChunks * kPair, memory, memory.sums + (r - row) * stride);
    }
  }
  finish_rows(a, row, last - row, memory.sums, stride);
}

void run(const ProductArgs& a, int64_t begin, int64_t end, float* floats) {
  if (product_is_few(a)) {
    for (const ProductArgs* p = &a; p != nullptr; p = p->beside) run_few(*p, floats);
    return;
  }
  const TileRegisters registers;
  const Memory memory(a, floats);
  if (a.inner == 0)
    for (int64_t i = 0; i < Memory::floats_of_sums(a); i += W) store(memory.sums + i, F{});
  for (int64_t task = begin; task < end; ++task) (product_is_deep(a) ? run_deep : run_packed)(a, task * product_task_rows(a), memory);
}

}  // namespace

const MatrixProductKernels matrix_product_kernels = {packed_floats, workspace, pack, run, sum_rows};

}  // namespace emc::EMC_ISA
