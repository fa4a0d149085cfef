// Matrix product on matrix tiles: blocks of 32 x 32, both operands cut into pieces (tiles.h).
#include "../matrix_product.h"

#include "tiles.h"

namespace emc::EMC_ISA {
namespace {

constexpr int64_t kBlock = 2 * kTile;
constexpr int64_t kChunks = kProductInner / kInner;  // chunks whose products are summed in tiles
static_assert(kBlock == kProductRows && kBlock == kProductColumns);

int64_t chunks_of(const ProductArgs& a) { return (a.inner + kInner - 1) / kInner; }
// A block's two sets for a chunk of the inner dimension.
int64_t pair_of(const ProductArgs& a) { return 2 * pieces_of(a.precision) * kTileWords; }
template <int P>
constexpr int64_t kPair = 2 * kTileSet<P>;
int64_t packed_floats(const ProductArgs& a) { return product_column_tasks(a) * chunks_of(a) * pair_of(a); }

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
    return floats_of_sums(a) + kChunks * pair_of(a) + kBlock * kBlock +
           (product_is_deep(a) ? product_column_tasks(a) * kChunks * pair_of(a) : 0);
  }
  Memory(const ProductArgs& a, float* memory) {
    sums = memory, memory += floats_of_sums(a);
    sets_of_a = reinterpret_cast<uint32_t*>(memory), memory += kChunks * pair_of(a);
    product = memory, memory += kBlock * kBlock;
    sets_of_b = reinterpret_cast<uint32_t*>(memory);
  }
};
int64_t workspace(const ProductArgs& a) { return Memory::floats(a); }

// 32 columns of b and one chunk, as sets [half].
template <int P>
inline void pack_columns(const ProductArgs& a, int64_t column, int64_t chunk, uint32_t* sets) {
  const int64_t k = chunk * kInner, inner = a.inner - k, columns = a.columns - column;
  const float* from = a.b.data + k * a.b.row_stride + column * a.b.column_stride;
  const bool whole = inner >= kInner && columns >= kBlock;
  if (whole && a.b.column_stride == 1) {
    pack_outer<P>(from, a.b.row_stride, kBlock, sets);
  } else if (whole && a.b.row_stride == 1) {
    for (int64_t half = 0; half < 2; ++half)
      pack_inner_transposed<P>(from + half * kTile * a.b.column_stride, a.b.column_stride, kInner, sets + half * kTileSet<P>);
  } else {
    alignas(64) float rows[kInner * kBlock];
    gather(a.b, k, column, kInner, kBlock, inner, columns, rows, kBlock);
    pack_outer<P>(rows, kBlock, kBlock, sets);
  }
}

// 32 rows of a and one chunk, likewise.
template <int P>
inline void pack_rows(const ProductArgs& a, int64_t row, int64_t chunk, uint32_t* sets) {
  const int64_t k = chunk * kInner, inner = a.inner - k, rows = a.rows - row, stride = a.a.row_stride;
  const float* from = a.a.data + row * stride + k * a.a.column_stride;
  const bool whole = inner >= kInner && rows >= kBlock;
  if (whole && stride == 1) {
    pack_outer_transposed<P>(from, a.a.column_stride, kBlock, sets);
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
  for (int64_t half = 0; half < 2; ++half)
    pack_inner<P>((in_place ? from : copy) + half * kTile * step, step, kInner, sets + half * kTileSet<P>);
}

template <int P>
void pack_tasks(const ProductArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = chunks_of(a);
  for (int64_t task = begin; task < end; ++task)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      pack_columns<P>(a, task * kBlock, chunk, reinterpret_cast<uint32_t*>(a.packed) + (task * chunks + chunk) * kPair<P>);
}

// sums [32][padded columns] of a block of rows, of `count` chunks from `chunk` on; b's sets of 32 columns lie `b_step` words apart.
template <int P>
inline void multiply(const ProductArgs& a, int64_t chunk, int64_t count, const uint32_t* b, int64_t b_step, const Memory& memory,
                     float* sums) {
  const int64_t stride = product_column_tasks(a) * kBlock;
  for (int64_t column = 0; column < stride; column += kBlock, b += b_step) {
    zero_tiles();
    for (int64_t c = 0; c < count * kPair<P>; c += kPair<P>) {  // all products of a chunk while its pieces are near
      const uint32_t *first = memory.sets_of_a + c, *second = b + c;
      multiply_all_pieces<P, P>(first, first + kTileSet<P>, second, second + kTileSet<P>);
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

template <int P>
inline void pack_block(const ProductArgs& a, int64_t row, int64_t chunk, int64_t count, const Memory& memory) {
  for (int64_t c = 0; c < count; ++c) pack_rows<P>(a, row, chunk + c, memory.sets_of_a + c * kPair<P>);
}

// A block of rows of all products that share a.
template <int P>
void run_packed(const ProductArgs& a, int64_t row, const Memory& memory) {
  const int64_t chunks = chunks_of(a), rows = least(kBlock, a.rows - row);
  for (int64_t chunk = 0; chunk < chunks; chunk += kChunks) {
    const int64_t count = least(kChunks, chunks - chunk);
    pack_block<P>(a, row, chunk, count, memory);
    float* sums = memory.sums;
    for (const ProductArgs* p = &a; p != nullptr; p = p->beside) {
      multiply<P>(*p, chunk, count, reinterpret_cast<const uint32_t*>(p->packed) + chunk * kPair<P>, chunks * kPair<P>, memory, sums);
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
template <int P>
void run_deep(const ProductArgs& a, int64_t row, const Memory& memory) {
  const int64_t last = least(row + kProductDeepRows, a.rows), stride = product_column_tasks(a) * kBlock, chunks = chunks_of(a);
  for (int64_t chunk = 0; chunk < chunks; chunk += kChunks) {
    const int64_t count = least(kChunks, chunks - chunk);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t column = 0; column < stride; column += kBlock)
        pack_columns<P>(a, column, chunk + c, memory.sets_of_b + (column / kBlock * kChunks + c) * kPair<P>);
    for (int64_t r = row; r < last; r += kBlock) {
      pack_block<P>(a, r, chunk, count, memory);
      multiply<P>(a, chunk, count, memory.sets_of_b, kChunks * kPair<P>, memory, memory.sums + (r - row) * stride);
    }
  }
  finish_rows(a, row, last - row, memory.sums, stride);
}

template <int P>
void run_tasks(const ProductArgs& a, int64_t begin, int64_t end, float* floats) {
  const TileRegisters registers;
  const Memory memory(a, floats);
  if (a.inner == 0)
    for (int64_t i = 0; i < Memory::floats_of_sums(a); i += W) store(memory.sums + i, F{});
  for (int64_t task = begin; task < end; ++task) (product_is_deep(a) ? run_deep<P> : run_packed<P>)(a, task * product_task_rows(a), memory);
}

void pack(const ProductArgs& a, int64_t begin, int64_t end, float*) {
  const int pieces = pieces_of(a.precision);
  (pieces == 3 ? pack_tasks<3> : pieces == 2 ? pack_tasks<2> : pack_tasks<1>)(a, begin, end);
}

void run(const ProductArgs& a, int64_t begin, int64_t end, float* floats) {
  if (product_is_few(a)) {
    for (const ProductArgs* p = &a; p != nullptr; p = p->beside) run_few(*p, floats);
    return;
  }
  const int pieces = pieces_of(a.precision);
  (pieces == 3 ? run_tasks<3> : pieces == 2 ? run_tasks<2> : run_tasks<1>)(a, begin, end, floats);
}

}  // namespace

const MatrixProductKernels matrix_product_kernels = {packed_floats, workspace, pack, run, sum_rows};

}  // namespace emc::EMC_ISA
