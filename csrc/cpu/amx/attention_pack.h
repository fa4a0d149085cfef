// Packing of attention's operands into tiles, for both directions.
//
// Keys and values are cut into steps of kInner keys that the mask leaves. "Rows" are tiles whose rows are keys and whose inner dimension is
// the width (the product with queries); "columns" are tiles whose rows are elements of the width and whose inner dimension is the keys.
#pragma once

#include "../attention_dropout.h"
#include "tiles.h"

namespace emc::EMC_ISA {
namespace {

constexpr int kLanes = 2 * kTile;  // queries that are worked on together

// The vector kernels take what would leave half of each tile empty, and so few keys that packing does not pay.
inline bool is_for_tiles(const AttentionArgs& a, const KeyRange& keys) { return a.width > kTile && keys.count >= 24; }

// The pieces of the operands: of inputs (keys and values), and of what is made in float32 on the way (queries times scale, probabilities,
// gradients of scores). An input of a half type is cut exactly, and what is multiplied with it into two pieces, whose error is far below
// the rounding of such a result.
template <int Inputs, int Made>
struct Cut {
  static constexpr int kInputs = Inputs, kMade = Made;
  static constexpr int64_t kInputSet = kTileSet<Inputs>, kMadeSet = kTileSet<Made>;
};

// use(Cut<...>{}) for the dtype and the precision of a call.
template <class Use>
inline auto with_cut(const AttentionArgs& a, const Use& use) {
  if (a.dtype == DType::kFloat16) return use(Cut<2, 2>{});
  const int pieces = pieces_of(a.precision);
  if (pieces == 1) return use(Cut<1, 1>{});
  if (a.dtype == DType::kBFloat16) return use(Cut<1, 2>{});
  return pieces == 2 ? use(Cut<2, 2>{}) : use(Cut<3, 3>{});
}

// e^x for x <= 0, as accurate as P pieces hold it: the power of two is off by 2^-24, of two pieces by 2^-18.4, of one by 2^-13.5. Half the
// instructions of math.h's, whose error does not grow with x as this one's does, by 2^-24 x: beside e^x that is less than a rounding of the
// largest, 1. Exactly 0 below about -87.3 (no subnormals), exactly 1 for 0; NaN stays.
template <int P>
EMC_INLINE F exponential(F x) {
  constexpr int kDegree = P == 3 ? 6 : P == 2 ? 4 : 3;
  // Least largest relative error on [0, 1) with 2^0 = 1; highest power first.
  constexpr float k3[] = {2.1612919227e-4f, 1.2467844645e-3f, 9.6754515544e-3f, 5.5485282093e-2f, 2.4022930861e-1f, 6.9314706326e-1f};
  constexpr float k2[] = {1.3426687568e-2f, 5.2242469043e-2f, 2.4128021300e-1f, 6.9304484129e-1f};
  constexpr float k1[] = {7.7067069709e-2f, 2.2764496505e-1f, 6.9511681795e-1f};
  x *= 1.44269504088896341f;
  const F r = (F)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // from the whole number below
  F p = splat(P == 3 ? k3[0] : P == 2 ? k2[0] : k1[0]);
#pragma GCC unroll 6
  for (int i = 1; i < kDegree; ++i) p = p * r + (P == 3 ? k3[i] : P == 2 ? k2[i] : k1[i]);
  p = p * r + 1.f;
  return (F)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ), (__m512)p, (__m512)x);
}

// Numbers of tiles of a head: over the width as the inner dimension, and over the width as rows, two at a time.
struct HeadTiles {
  int64_t inner, rows;
  explicit HeadTiles(int64_t width) : inner(divide_up(width, kInner)), rows(width <= kTile ? 1 : 2 * divide_up(width, kInner)) {}
};

// Sixteen rows of any strides as float32 times `factor`, [row][padded width]; rows from `valid` on are zero, and so is what pads the width.
template <class T>
inline void load_rows_of(const AttentionOperand& x, const int64_t (&offset)[kTile], int64_t valid, int64_t width, float factor,
                         int64_t padded_width, float* rows) {
  const int64_t stride = x.stride[3];
  for (int64_t i = 0; i < kTile; ++i, rows += padded_width) {
    const T* p = static_cast<const T*>(x.data) + offset[i];
    for (int64_t d = 0; d < padded_width; d += W)
      store(rows + d, i < valid && d < width ? load_some(p + d * stride, stride, width - d) * factor : F{});
  }
}
inline void load_rows(const AttentionArgs& a, const AttentionOperand& x, const int64_t (&offset)[kTile], int64_t valid, float factor,
                      int64_t padded_width, float* rows) {
  EMC_FOR_DTYPE(a.dtype, load_rows_of, x, offset, valid, a.width, factor, padded_width, rows);
}

// [d][lane] of `row_tiles` tiles of the width to [lane][padded width].
inline void transpose_lanes(const float* sums, int64_t row_tiles, int64_t padded_width, float* rows) {
  for (int64_t d = 0; d < row_tiles * kTile && d < padded_width; d += kTile)
    for (int v = 0; v < 2; ++v) {
      F square[kTile];
      load_square(sums + d * kLanes + v * W, kLanes, square);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) store(rows + (v * kTile + i) * padded_width + d, square[i]);
    }
}

// The keys' rows of one step, [32][padded width]; zero beyond the last key.
inline void load_step(const AttentionArgs& a, const AttentionOperand& x, int64_t b, int64_t h, const KeyRange& keys, int64_t step,
                      int64_t padded_width, float* rows) {
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t from = step * kInner + half * kTile;
    int64_t offset[kTile] = {};
    const int64_t valid = least(greatest(keys.count - from, 0), kTile);
    for (int64_t i = 0; i < valid; ++i) offset[i] = offset_of(x, b, keys.index[from + i], h);
    load_rows(a, x, offset, valid, 1.f, padded_width, rows + half * kTile * padded_width);
  }
}

// The rows of one step to tile sets [half][chunk], the width inside.
template <int P>
inline void pack_step(const float* rows, int64_t padded_width, const HeadTiles& tiles, uint32_t* sets) {
  for (int64_t half = 0; half < 2; ++half)
    pack_inner<P>(rows + half * kTile * padded_width, padded_width, padded_width, sets + half * tiles.inner * kTileSet<P>);
}

inline void pack_step_positions(const KeyRange& keys, int32_t* position) {
  for (int64_t i = 0; i < round_up(keys.count, kInner); ++i) position[i] = i < keys.count ? keys.index[i] : kNowhere;
}

// Queries t0 .. t0 + valid times `factor`, [32][padded width]; zero beyond the last.
inline void load_queries(const AttentionArgs& a, const AttentionOperand& x, int64_t b, int64_t h, int64_t t0, int64_t valid, float factor,
                         int64_t padded_width, float* rows) {
  for (int64_t half = 0; half < 2; ++half) {
    int64_t offset[kTile] = {};
    const int64_t count = least(greatest(valid - half * kTile, 0), kTile);
    for (int64_t i = 0; i < count; ++i) offset[i] = offset_of(x, b, t0 + half * kTile + i, h);
    load_rows(a, x, offset, count, factor, padded_width, rows + half * kTile * padded_width);
  }
}

// [32 rows][32 lanes] of one step = operand with rows (one set per 16 rows and chunk of the width) times queries (one per 16 lanes and
// chunk): six calls of part<N>, to stand among other work, and `store`. Sets are [half][chunk].
template <class C>
struct WidthProduct {
  const uint32_t *rows, *lanes;
  int64_t chunks;

  template <int N>
  EMC_INLINE void part() const {
    const uint32_t *second_rows = rows + chunks * C::kInputSet, *second_lanes = lanes + chunks * C::kMadeSet;
    if (N == 0) zero_tiles();
    if (chunks == 1) {
      multiply_tiles<C::kInputs, C::kMade, N>(rows, second_rows, lanes, second_lanes);
    } else {
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t r = c * C::kInputSet, l = c * C::kMadeSet;
        multiply_tiles<C::kInputs, C::kMade, N, true>(rows + r, second_rows + r, lanes + l, second_lanes + l);
      }
    }
  }
  EMC_INLINE void store(float* out) const { store_tiles(out, kLanes); }
  EMC_INLINE void run(float* out) const { part<0>(), part<1>(), part<2>(), part<3>(), part<4>(), part<5>(), store(out); }
};

// -inf for the pairs of a step that are not seen.
EMC_INLINE void hide_step(const Lanes<2>& lanes, const int32_t* position, float* scores) {
  for (int64_t i = 0; i < kInner; i += kRows) {
    if (lanes.see_all(position + i)) continue;
    for (int64_t r = i; r < i + kRows; ++r)
      for (int v = 0; v < 2; ++v) {
        float* place = scores + r * kLanes + v * W;
        store(place, select(lanes.sees(v, position[r]), load(place), splat(-kInfinity)));
      }
  }
}

}  // namespace
}  // namespace emc::EMC_ISA
