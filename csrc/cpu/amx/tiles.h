// Matrix tiles (AMX) for float32 operands, at float32 accuracy or at less where less is asked for.
//
// The tile unit multiplies bfloat16 and adds in float32: sixteen times the products a cycle of the vector units. A float32 is the sum of
// three bfloat16, x = h + m + l, exactly (8 + 8 + 8 bits; each rounded to nearest, so that what is left has either sign). Of the nine
// products of two such sums the six largest, hh, hm, mh, mm, hl, lh, leave an error of 2^-26 of a product, below float32's own rounding.
// They are added smallest first: what the tile adds is rounded at the size that the sum has by then. An operand of two pieces is off by
// 2^-17, of one by 2^-8; float16 is two pieces exactly, bfloat16 one. Products of pieces that are as small as what is cut off are left out.
//
// An operand of a product is stored as tiles of 1 KiB, ready to be loaded, its pieces of 16 rows and 32 elements of the inner dimension.
// The unit takes the inner dimension in pairs; ours are (j, j + 16), which makes packing a shift and a blend of two vectors, and is free to
// choose, since a sum does not care which of its terms stand together.
#pragma once

#include "../simd.h"

namespace emc::EMC_ISA {
namespace {

static_assert(W == 16, "tiles are packed by AVX-512");

constexpr int kTile = 16;            // rows, and columns of float32
constexpr int kInner = 32;           // inner dimension of a tile
constexpr int64_t kTileWords = 256;  // 32-bit words of a tile: 1 KiB
template <int P>
constexpr int64_t kTileSet = P * kTileWords;  // of an operand of P pieces

// Pieces that a float32 is cut into.
constexpr int pieces_of(Precision precision) { return precision == Precision::kHighest ? 3 : precision == Precision::kHigh ? 2 : 1; }

// --- the tile unit: registers of 16 rows of 64 bytes, loads, stores and products ---
#ifndef EMC_EMULATED_TILES

// The tile registers of this thread: all of them 16 rows of 64 bytes. Released at the end: other users set up their own, and a released
// state is cheap to switch away from.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));  // the compiler's intrinsic reads, as the compiler sees it, eight bytes of it
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// By name: the compiler's own intrinsics do not say that a load reads memory, and packed operands then look like dead stores.
template <int N>
EMC_INLINE void load_tile(const uint32_t* p) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(int64_t{64}), "i"(N) : "memory");
}
template <int N>
EMC_INLINE void store_tile(float* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride * 4), "i"(N) : "memory");
}
template <int N>
EMC_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(N));
}
// Register C += A B.
template <int C, int A, int B>
EMC_INLINE void multiply_tile() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else  // for tests on processors without such a unit; it also wants to be told when it begins and ends

struct Tile {
  U row[kTile];
};
thread_local Tile tile_registers[8];
thread_local bool tiles_are_set_up = false;

class TileRegisters {
 public:
  TileRegisters() { set_up(true); }
  ~TileRegisters() { set_up(false); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  static void set_up(bool now) {
    if (tiles_are_set_up == now) __builtin_trap();
    tiles_are_set_up = now;
    std::memset(tile_registers, 0xff, sizeof tile_registers);  // NaN: what was not loaded shows
  }
};
inline Tile& tile(int n) {
  if (!tiles_are_set_up) __builtin_trap();
  return tile_registers[n];
}
template <int N>
inline void load_tile(const uint32_t* p) {
  std::memcpy(&tile(N), p, sizeof(Tile));
}
template <int N>
inline void store_tile(float* p, int64_t stride) {
  for (int i = 0; i < kTile; ++i) store(p + i * stride, (F)tile(N).row[i]);
}
template <int N>
inline void zero_tile() {
  tile(N) = Tile{};
}
// As the manual has it: the first and the second of all pairs are added up apart, each sum rounded, and what they come to is added to C.
template <int C, int A, int B>
inline void multiply_tile() {
  for (int i = 0; i < kTile; ++i) {
    F first = {}, second = {};
    for (int k = 0; k < kTile; ++k) {
      const U a = splat(tile(A).row[i][k]), b = tile(B).row[k];
      first = fma((F)(a << 16), (F)(b << 16), first);
      second = fma((F)(a & 0xffff0000u), (F)(b & 0xffff0000u), second);
    }
    tile(C).row[i] = (U)((F)tile(C).row[i] + (first + second));
  }
}

#endif

// Pairs of bfloat16 in the words of a vector, from the upper halves of two vectors.
EMC_INLINE U upper_halves(U first, U second) { return (U)_mm512_mask_mov_epi16((__m512i)(first >> 16), 0xaaaaaaaau, (__m512i)second); }
// The pieces of a vector, each in the upper half of its word; what stands below is not looked at.
template <int P>
struct Pieces {
  U piece[P];
};
template <int P>
EMC_INLINE Pieces<P> split(F x) {
  Pieces<P> cut;
#pragma GCC unroll 3
  for (int i = 0; i < P; ++i) {
    cut.piece[i] = i == 2 ? (U)x : (U)x + 0x8000u;  // to nearest; a third fits as it is
    x -= (F)(cut.piece[i] & 0xffff0000u);
  }
  return cut;
}
// Rounding carries a NaN whose last bits are set into a number. Of three pieces the last, which is not rounded, is then the NaN that is
// left; of fewer none might be, so what comes from memory is given a NaN that stays one. What tiles and vectors compute from those is safe.
template <int P>
EMC_INLINE F safe(F x) {
  return P == 3 ? x : select((I)(x == x), x, splat(__builtin_nanf("")));
}
// Row `row` of a set of tiles, of elements j (first) and j + 16 (second) of the inner dimension.
template <int P>
EMC_INLINE void store_pieces(uint32_t* set, int64_t row, const Pieces<P>& first, const Pieces<P>& second) {
#pragma GCC unroll 3
  for (int i = 0; i < P; ++i) {
    const U words = upper_halves(first.piece[i], second.piece[i]);
    std::memcpy(set + i * kTileWords + row * kTile, &words, sizeof words);
  }
}
template <int P>
EMC_INLINE void store_pieces(uint32_t* set, int64_t row, F first, F second) {
  store_pieces<P>(set, row, split<P>(first), split<P>(second));
}

// The pieces that are multiplied of operands of A and of B pieces, smallest first: of three lh, mh, mm, hm, hl, hh.
template <int A, int B>
struct Products;
template <>
struct Products<3, 3> {
  static constexpr int kCount = 6, kA[] = {2, 1, 1, 0, 0, 0}, kB[] = {0, 0, 1, 1, 2, 0};
};
template <>
struct Products<2, 2> {
  static constexpr int kCount = 3, kA[] = {1, 0, 0}, kB[] = {0, 1, 0};
};
template <>
struct Products<1, 2> {
  static constexpr int kCount = 2, kA[] = {0, 0}, kB[] = {1, 0};
};
template <>
struct Products<1, 1> {
  static constexpr int kCount = 1, kA[] = {0}, kB[] = {0};
};

// Tile registers 0..3 += piece of a * piece of b, for two row blocks of a and two column blocks of b; registers 4..7 hold the operands,
// which are loaded here where the product before did not leave them there. Product N of up to six; nothing where there are not so many.
// `a0` .. `b1` point to sets. The tile unit takes 64 cycles for one call; other work that stands between two calls is done meanwhile, if it
// is short enough for the processor to look past it (about a hundred vector instructions).
template <int A, int B, int N, bool Fresh = N == 0>
EMC_INLINE void multiply_tiles(const uint32_t* a0, const uint32_t* a1, const uint32_t* b0, const uint32_t* b1) {
  using P = Products<A, B>;
  if constexpr (N < P::kCount) {
    constexpr int before = N > 0 ? N - 1 : 0;
    constexpr int64_t piece_a = P::kA[N] * kTileWords, piece_b = P::kB[N] * kTileWords;
    if constexpr (Fresh || P::kA[N] != P::kA[before]) load_tile<4>(a0 + piece_a), load_tile<5>(a1 + piece_a);
    if constexpr (Fresh || P::kB[N] != P::kB[before]) load_tile<6>(b0 + piece_b), load_tile<7>(b1 + piece_b);
    multiply_tile<0, 4, 6>();
    multiply_tile<1, 4, 7>();
    multiply_tile<2, 5, 6>();
    multiply_tile<3, 5, 7>();
  }
}
template <int A, int B>
EMC_INLINE void multiply_all_pieces(const uint32_t* a0, const uint32_t* a1, const uint32_t* b0, const uint32_t* b1) {
  multiply_tiles<A, B, 0>(a0, a1, b0, b1), multiply_tiles<A, B, 1>(a0, a1, b0, b1), multiply_tiles<A, B, 2>(a0, a1, b0, b1);
  multiply_tiles<A, B, 3>(a0, a1, b0, b1), multiply_tiles<A, B, 4>(a0, a1, b0, b1), multiply_tiles<A, B, 5>(a0, a1, b0, b1);
}
EMC_INLINE void load_square(const float* rows, int64_t stride, F (&square)[kTile]) {
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) square[i] = load(rows + i * stride);
}

// 16 rows, `stride` floats apart, to sets whose rows they are: one set per kInner of the `inner` elements (a whole number of times).
template <int P>
inline void pack_inner(const float* rows, int64_t stride, int64_t inner, uint32_t* sets) {
  for (int64_t d = 0; d < inner; d += kInner, sets += kTileSet<P>)
    for (int64_t i = 0; i < kTile; ++i)
      store_pieces<P>(sets, i, safe<P>(load(rows + i * stride + d)), safe<P>(load(rows + i * stride + d + kTile)));
}
// 16 rows to sets whose columns they are, for the other side of a product with those of pack_inner.
template <int P>
inline void pack_inner_transposed(const float* rows, int64_t stride, int64_t inner, uint32_t* sets) {
  for (int64_t d = 0; d < inner; d += kInner, sets += kTileSet<P>) {
    F first[kTile], second[kTile];
    load_square(rows + d, stride, first), load_square(rows + d + kTile, stride, second);
    transpose(first), transpose(second);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) store_pieces<P>(sets, i, safe<P>(first[i]), safe<P>(second[i]));
  }
}
// 32 rows, which are the inner dimension here, to sets whose rows are the elements: one set per 16 of `outer` elements.
template <int P>
inline void pack_outer_transposed(const float* rows, int64_t stride, int64_t outer, uint32_t* sets) {
  for (int64_t n = 0; n < outer; n += kTile, sets += kTileSet<P>) {
    F first[kTile], second[kTile];
    load_square(rows + n, stride, first), load_square(rows + kTile * stride + n, stride, second);
    transpose(first), transpose(second);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) store_pieces<P>(sets, i, safe<P>(first[i]), safe<P>(second[i]));
  }
}
// 32 rows, which are the inner dimension here, to sets whose columns are the elements.
template <int P>
inline void pack_outer(const float* rows, int64_t stride, int64_t outer, uint32_t* sets) {
  for (int64_t n = 0; n < outer; n += kTile, sets += kTileSet<P>)
    for (int64_t i = 0; i < kTile; ++i)
      store_pieces<P>(sets, i, safe<P>(load(rows + i * stride + n)), safe<P>(load(rows + (i + kTile) * stride + n)));
}

EMC_INLINE void zero_tiles() {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
}
// Rows of 16 of the 2 x 2 blocks, `stride` floats apart: block (i, k) at out + i * 16 * stride + k * 16.
EMC_INLINE void store_tiles(float* out, int64_t stride) {
  store_tile<0>(out, stride), store_tile<1>(out + kTile, stride);
  store_tile<2>(out + kTile * stride, stride), store_tile<3>(out + kTile * stride + kTile, stride);
}

}  // namespace
}  // namespace emc::EMC_ISA
