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
int64_t packed_floats(const ProductArgs& a) { return product_column_tasks(a) * chunks_of(a) * pair_of(a); }

struct Memory {
  float* sums;          // [kProductDeepRows][padded columns]
  uint32_t* sets_of_a;  // [chunk][half], of one block of rows
  float *rows, *product;
  uint32_t* sets_of_b;  // [32 columns][chunk][half]; only where b is not packed beforehand

  static int64_t floats(const ProductArgs& a) {
    const int64_t blocks = product_column_tasks(a);
    return (product_is_deep(a) ? kProductDeepRows : kBlock) * blocks * kBlock + kChunks * pair_of(a) + kBlock * (kProductInner + kBlock) +
           (product_is_deep(a) ? blocks * kChunks * pair_of(a) : 0);
  }
  Memory(const ProductArgs& a, float* memory) {
    sums = memory, memory += (product_is_deep(a) ? kProductDeepRows : kBlock) * product_column_tasks(a) * kBlock;
    sets_of_a = reinterpret_cast<uint32_t*>(memory), memory += kChunks * pair_of(a);
    rows = memory, memory += kBlock * kProductInner;
    product = memory, memory += kBlock * kBlock;
    sets_of_b = reinterpret_cast<uint32_t*>(memory);
  }
};
int64_t workspace(const ProductArgs& a) { return Memory::floats(a); }

// 32 columns of b, `count` chunks from `chunk` on, as sets [chunk][half].
template <int P>
inline void pack_columns(const ProductArgs& a, int64_t column, int64_t chunk, int64_t count, uint32_t* sets) {
  for (int64_t c = chunk; c < chunk + count; ++c, sets += 2 * kTileSet<P>) {
    alignas(64) float rows[kInner * kBlock];
    gather(a.b, c * kInner, column, kInner, kBlock, a.inner - c * kInner, a.columns - column, rows, kBlock);
    pack_outer<P>(rows, kBlock, kBlock, sets);
  }
}

template <int P>
void pack_tasks(const ProductArgs& a, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task)
    pack_columns<P>(a, task * kBlock, 0, chunks_of(a), reinterpret_cast<uint32_t*>(a.packed) + task * chunks_of(a) * pair_of(a));
}

// sums [32][padded columns] of rows from `row` on, of `count` chunks from `chunk` on; b's sets of 32 columns lie `b_step` words apart.
template <int P>
inline void multiply(const ProductArgs& a, int64_t row, int64_t chunk, int64_t count, const uint32_t* b, int64_t b_step,
                     const Memory& memory, float* sums) {
  constexpr int64_t kPair = 2 * kTileSet<P>;
  const int64_t stride = product_column_tasks(a) * kBlock, rows = least(kBlock, a.rows - row), inner = count * kInner, k = chunk * kInner;
  const bool in_place = a.a.column_stride == 1 && rows == kBlock && k + inner <= a.inner;
  const float* from = in_place ? a.a.data + row * a.a.row_stride + k : memory.rows;
  const int64_t step = in_place ? a.a.row_stride : inner;
  if (!in_place) gather(a.a, row, k, kBlock, inner, rows, a.inner - k, memory.rows, inner);
  for (int64_t c = 0; c < count; ++c)
    for (int64_t half = 0; half < 2; ++half)
      pack_inner<P>(from + half * kTile * step + c * kInner, step, kInner, memory.sets_of_a + c * kPair + half * kTileSet<P>);
  for (int64_t column = 0; column < stride; column += kBlock, b += b_step) {
    zero_tiles();
    for (int64_t c = 0; c < count * kPair; c += kPair) {  // all products of a chunk while its pieces are near
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
void run_tasks(const ProductArgs& a, int64_t begin, int64_t end, float* floats) {
  constexpr int64_t kPair = 2 * kTileSet<P>;
  const TileRegisters registers;
  const Memory memory(a, floats);
  const bool deep = product_is_deep(a);
  const int64_t height = deep ? kProductDeepRows : kBlock, stride = product_column_tasks(a) * kBlock, chunks = chunks_of(a);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task * height, last = least(row + height, a.rows);
    if (chunks == 0)
      for (int64_t i = 0; i < height * stride; i += W) store(memory.sums + i, F{});
    for (int64_t chunk = 0; chunk < chunks; chunk += kChunks) {
      const int64_t count = least(kChunks, chunks - chunk);
      const uint32_t* b = deep ? memory.sets_of_b : reinterpret_cast<const uint32_t*>(a.packed) + chunk * kPair;
      if (deep)
        for (int64_t column = 0; column < stride; column += kBlock)
          pack_columns<P>(a, column, chunk, count, memory.sets_of_b + column / kBlock * kChunks * kPair);
      for (int64_t r = row; r < last; r += kBlock)
        multiply<P>(a, r, chunk, count, b, (deep ? kChunks : chunks) * kPair, memory, memory.sums + (r - row) * stride);
    }
    finish_rows(a, row, last - row, memory.sums, stride);
  }
}

void pack(const ProductArgs& a, int64_t begin, int64_t end, float*) {
  const int pieces = pieces_of(a.precision);
  (pieces == 3 ? pack_tasks<3> : pieces == 2 ? pack_tasks<2> : pack_tasks<1>)(a, begin, end);
}

void run(const ProductArgs& a, int64_t begin, int64_t end, float* floats) {
  if (product_is_few(a)) return run_few(a, floats);
  const int pieces = pieces_of(a.precision);
  (pieces == 3 ? run_tasks<3> : pieces == 2 ? run_tasks<2> : run_tasks<1>)(a, begin, end, floats);
}

}  // namespace

const MatrixProductKernels matrix_product_kernels = {packed_floats, workspace, pack, run, sum_rows};

}  // namespace emc::EMC_ISA
