// Packing and register tiles that attention's forward and backward kernels share.
//
// Keys and values are packed to float32 in panels of kRows keys, [panel][width][kRows]: both products that read them (scores over the
// width, outputs over the keys) then take their broadcast operands at constant offsets from one pointer. Queries are packed transposed,
// [width][lane]. Where terms come in pairs (terms.h), pairs along the width stand in the place of the width where it is summed over, and
// pairs of keys in the place of keys.
#pragma once

#include "attention_kernels.h"
#include "math.h"
#include "terms.h"

namespace emc::EMC_ISA {
namespace {

// Rows of a register tile: with two vectors of columns, the accumulators, the operands and a broadcast fill 16 registers (32 with AVX-512).
constexpr int kRows = W == 16 ? 8 : W == 8 ? 6 : 4;
constexpr int kMaxLanes = 2 * W;

constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -3.402823466e38f;  // running maximum of a row that has seen nothing: finite, so that -inf - kLowest is not NaN
constexpr int32_t kNowhere = 0x7fffffff;     // position of the places that pad the last panel: beyond every query's view

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t offset_of(const AttentionOperand& x, int64_t b, int64_t t, int64_t h) {
  return b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
}

// A row of any strides to float32; `out` has room for a whole number of vectors, zero beyond the width. The element type is looked up per
// row, not compiled in: a row costs far more than the branch, and the tiles below exist once instead of once per type.
template <class T>
inline void load_row_of(const AttentionOperand& x, int64_t offset, int64_t width, float* out) {
  const T* p = static_cast<const T*>(x.data) + offset;
  for (int64_t d = 0; d < width; d += W) store(out + d, load_some(p + d * x.stride[3], x.stride[3], width - d));
}
template <class T>
inline void store_row_of(const AttentionOperand& x, int64_t offset, int64_t width, const float* row) {
  T* p = static_cast<T*>(x.data) + offset;  // outputs are dense along the width
  for (int64_t d = 0; d < width; d += W) store_some(p + d, load(row + d), width - d);
}
void load_row(const AttentionArgs& a, const AttentionOperand& x, int64_t offset, float* out) {
  EMC_FOR_DTYPE(a.dtype, load_row_of, x, offset, a.width, out);
}
void store_row(const AttentionArgs& a, const AttentionOperand& x, int64_t offset, const float* row) {
  EMC_FOR_DTYPE(a.dtype, store_row_of, x, offset, a.width, row);
}

// Whether bfloat16 is all that was asked for; a float16 has more digits than that.
inline bool takes_pairs(const AttentionArgs& a) { return kHasPairs && a.precision == Precision::kMedium && a.dtype != DType::kFloat16; }

// --- which keys ---

// Query t sees the keys first_seen(t) <= s <= last_seen(t); the last query is aligned with the last key.
inline int64_t last_seen(const AttentionArgs& a, int64_t t) { return a.causal ? t + a.keys - a.queries : a.keys - 1; }
inline int64_t first_seen(const AttentionArgs& a, int64_t t) {
  return a.window > 0 ? greatest(t + a.keys - a.queries - a.window + 1, 0) : 0;
}

struct KeyRange {
  const int32_t* index;  // positions, ascending
  int64_t count;
};

// Place of the first position that is at least `position`.
inline int64_t lower_bound(const KeyRange& keys, int64_t position) {
  int64_t begin = 0, count = keys.count;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = keys.index[begin + half] < position;
    begin += below ? half + 1 : 0;
    count = below ? count - half - 1 : half;
  }
  return begin;
}

// What the mask leaves of the keys that queries begin .. end - 1 see.
inline KeyRange keys_of(const AttentionArgs& a, int64_t b, int64_t begin, int64_t end) {
  const KeyRange all{a.key_index + b * a.key_index_stride, a.key_count[a.key_index_stride > 0 ? b : 0]};
  const int64_t from = lower_bound(all, first_seen(a, begin)), to = lower_bound(all, last_seen(a, end - 1) + 1);
  return {all.index + from, greatest(to - from, 0)};
}

inline void pack_positions(const KeyRange& keys, int32_t* position) {
  for (int64_t i = 0; i < round_up(keys.count, kRows); ++i) position[i] = i < keys.count ? keys.index[i] : kNowhere;
}

// Row x[b, t, h] in float32: where it stands if that will do, else brought to `copy`.
EMC_INLINE const float* row_of(const AttentionArgs& a, const AttentionOperand& x, int64_t b, int64_t t, int64_t h, float* copy) {
  const int64_t offset = offset_of(x, b, t, h);
  if (a.dtype == DType::kFloat32 && x.stride[3] == 1) return static_cast<const float*>(x.data) + offset;
  load_row(a, x, offset, copy);
  return copy;
}
// That of a key by its place among `keys`; null beyond the last.
EMC_INLINE const float* key_row_of(const AttentionArgs& a, const AttentionOperand& x, int64_t b, int64_t h, const KeyRange& keys, int64_t i,
                                   float* copy) {
  return i < keys.count ? row_of(a, x, b, keys.index[i], h, copy) : nullptr;
}

// panels[panel][d][row] of rows row_at(i, copy), R to a panel; the last one is padded with zeros. row_at gives null for a row of zeros.
template <int R, class RowAt>
inline void pack_rows(int64_t count, int64_t width, const RowAt& row_at, float* panels) {
  const int64_t step = width * R;
  if constexpr (W % R == 0) {  // W / R panels are the columns of a square
    alignas(64) float copies[W][kAttentionMaxWidth];
    for (int64_t i = 0; i < count; i += W, panels += W / R * step) {
      const float* rows[W];
      for (int64_t r = 0; r < W; ++r) rows[r] = row_at(i + r, copies[r]);
      const int64_t whole = least(W / R, divide_up(count - i, R));
      for (int64_t d = 0; d < width; d += W) {
        F square[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) square[r] = rows[r] != nullptr ? load_some(rows[r] + d, 1, width - d) : F{};
        transpose(square);
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k)
          if (d + k < width)
#pragma GCC unroll 4
            for (int p = 0; p < W / R; ++p)
              if (p < whole)
                std::memcpy(panels + p * step + (d + k) * R, reinterpret_cast<const char*>(&square[k]) + p * R * sizeof(float),
                            R * sizeof(float));
      }
    }
  } else {
    alignas(64) float copy[kAttentionMaxWidth];
    for (int64_t i = 0; i < round_up(count, R); ++i) {
      float* column = panels + (i / R) * step + i % R;
      const float* row = row_at(i, copy);
      for (int64_t d = 0; d < width; ++d) column[d * R] = row != nullptr ? row[d] : 0.f;
    }
  }
}

// Elements that hold `count` terms.
template <class Terms>
inline int64_t elements(int64_t count) {
  return divide_up(count, Terms::kTerms);
}

// Rows of keys as panels, to be multiplied over the width.
template <class Terms>
inline void pack_over_width(const AttentionArgs& a, const AttentionOperand& x, int64_t b, int64_t h, const KeyRange& keys, float* panels) {
  const auto row_at = [&](int64_t i, float* copy) __attribute__((always_inline)) -> const float* {
    const float* row = key_row_of(a, x, b, h, keys, i, copy);
    if constexpr (Terms::kTerms == 2) {
      if (row != nullptr) Terms::along(row, a.width, copy), row = copy;
    }
    return row;
  };
  pack_rows<kRows>(keys.count, elements<Terms>(a.width), row_at, panels);
}
// The same to be multiplied over the keys.
template <class Terms>
inline void pack_over_keys(const AttentionArgs& a, const AttentionOperand& x, int64_t b, int64_t h, const KeyRange& keys, float* panels) {
  if constexpr (Terms::kTerms == 1) {
    pack_over_width<Terms>(a, x, b, h, keys, panels);
  } else {
    alignas(64) float other[kAttentionMaxWidth];
    const auto row_at = [&](int64_t i, float* copy) __attribute__((always_inline)) -> const float* {
      const float* first = key_row_of(a, x, b, h, keys, 2 * i, copy);
      const float* second = key_row_of(a, x, b, h, keys, 2 * i + 1, other);
      if (first == nullptr) return nullptr;
      for (int64_t d = 0; d < a.width; d += W) {
        const int64_t left = a.width - d;
        store(copy + d, Terms::of(load_some(first + d, 1, left), second != nullptr ? load_some(second + d, 1, left) : F{}));
      }
      return copy;
    };
    pack_rows<kRows / 2>(elements<Terms>(round_up(keys.count, kRows)), a.width, row_at, panels);
  }
}

// columns[d][lane] = each(rows[lane][d]) for V vectors of lanes; where a row is null, of zeros.
template <int V, class Each>
inline void turn_to_columns(const float* const (&rows)[V * W], int64_t width, float* columns, const Each& each) {
#pragma GCC unroll 1
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 1
    for (int64_t d = 0; d < width; d += W) {
      F square[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) square[r] = rows[v * W + r] != nullptr ? load_some(rows[v * W + r] + d, 1, width - d) : F{};
      transpose(square);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k)
        if (d + k < width) store(columns + ((d + k) * V + v) * W, each(square[k]));
    }
}
// The columns that are multiplied over the width: rows times scale; or pairs, which are scaled when they have been multiplied.
template <class Terms, int V>
inline void pack_columns(const float* (&rows)[V * W], float (*copies)[kAttentionMaxWidth], int64_t width, float scale, float* columns) {
  if constexpr (Terms::kTerms == 2) {
    for (int lane = 0; lane < V * W; ++lane)
      if (rows[lane] != nullptr) Terms::along(rows[lane], width, copies[lane]), rows[lane] = copies[lane];
    turn_to_columns<V>(rows, elements<Terms>(width), columns, [](F x) __attribute__((always_inline)) { return x; });
  } else {
    turn_to_columns<V>(rows, width, columns, [=](F x) __attribute__((always_inline)) { return x * scale; });
  }
}
// rows[lane][d] = columns[d][lane], whole vectors of rows that are kAttentionMaxWidth apart; what is beyond the width says nothing.
template <int V>
inline void turn_to_rows(const float* columns, int64_t width, float (*rows)[kAttentionMaxWidth]) {
#pragma GCC unroll 1
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 1
    for (int64_t d = 0; d < width; d += W) {
      F square[W];
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) square[k] = load(columns + (least(d + k, width - 1) * V + v) * W);
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) store(rows[v * W + r] + d, square[r]);
    }
}

// Forward: what query t of a head ends with. `row` holds its output times `sum`, the sum of exponentials beside `top`, the
// largest score or one near it.
inline void store_result(const AttentionArgs& a, int64_t b, int64_t h, int64_t t, float* row, float top, float sum) {
  const float inverse = sum == 0.f ? 0.f : 1.f / sum;  // saw nothing; a NaN is not 0 and goes through to the result
  for (int64_t d = 0; d < a.width; d += W) store(row + d, load(row + d) * inverse);
  store_row(a, a.out, offset_of(a.out, b, t, h), row);
  float* statistics = a.statistics + (b * a.heads + h) * a.queries + t;
  statistics[0] = top;
  statistics[a.batch * a.heads * a.queries] = sum;
}

// Backward: a chunk's sums [key][padded width] for the keys of `keys` become the gradients of a head's keys and values, or its part of
// them; keys that took no part get zeros.
inline void store_key_gradients(const AttentionArgs& a, int64_t chunk, int64_t b, int64_t h, const KeyRange& keys, const float* key_sums,
                                const float* value_sums, int64_t padded_width) {
  alignas(64) const float zeros[kAttentionMaxWidth] = {};
  const size_t bytes = static_cast<size_t>(a.width) * sizeof(float);
  float* partial = attention_chunks(a) == 1 ? nullptr : a.partial + ((chunk * a.batch + b) * a.heads + h) * 2 * a.keys * a.width;
  int64_t i = 0;
  for (int64_t s = 0; s < a.keys; ++s) {
    const bool seen = i < keys.count && keys.index[i] == s;
    const float *key = seen ? key_sums + i * padded_width : zeros, *value = seen ? value_sums + i * padded_width : zeros;
    i += seen;
    if (partial == nullptr) {
      store_row(a, a.grad_key, offset_of(a.grad_key, b, s, h), key);
      store_row(a, a.grad_value, offset_of(a.grad_value, b, s, h), value);
    } else {
      std::memcpy(partial + s * a.width, key, bytes);
      std::memcpy(partial + (a.keys + s) * a.width, value, bytes);
    }
  }
}

// --- queries t0 .. t0 + valid in the lanes of V vectors: what each may see, and its dropout ---
template <int V>
struct Lanes {
  static constexpr int kCount = V * W;
  I first[V], last[V];
  int32_t first_min, first_max, last_min, last_max;

  Lanes(const AttentionArgs& a, int64_t t0, int64_t valid) {
    int32_t low[kCount], high[kCount];
    for (int i = 0; i < kCount; ++i) {
      const int64_t t = t0 + least(i, valid - 1);  // lanes beyond the last query repeat it: they never widen what is computed
      low[i] = static_cast<int32_t>(first_seen(a, t));
      high[i] = static_cast<int32_t>(last_seen(a, t));
    }
    std::memcpy(first, low, sizeof low);
    std::memcpy(last, high, sizeof high);
    first_min = low[0], first_max = low[kCount - 1], last_min = high[0], last_max = high[kCount - 1];
  }

  bool see_all(const int32_t* position) const { return position[kRows - 1] <= last_min && position[0] >= first_max; }
  I sees(int v, int32_t position) const { return (last[v] >= position) & (first[v] <= position); }

  // -inf for the pairs of a score tile that are not seen.
  EMC_INLINE void hide(const int32_t* position, F (&tile)[kRows][V]) const {
    if (see_all(position)) return;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) tile[r][v] = select(sees(v, position[r]), tile[r][v], splat(-kInfinity));
  }
};

// tile[r][v] = sum over d of panel[d][r] * columns[d][v]: kRows keys against V vectors of queries. A single vector leaves registers for two
// sums side by side, of the even and the odd d: one alone would wait for its own result, and two lose less to rounding. `width` counts
// elements.
template <class Terms, int V>
EMC_INLINE void multiply_width(const float* panel, const float* columns, int64_t width, F (&tile)[kRows][V]) {
  constexpr int kSums = V == 1 ? 2 : 1;
  F sums[kSums][kRows][V];
#pragma GCC unroll 2
  for (int n = 0; n < kSums; ++n)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[n][r][v] = F{};
  const auto add = [&](int n, int64_t d) __attribute__((always_inline)) {
    F column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(columns + (d * V + v) * W);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F row = splat(panel[d * kRows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[n][r][v] = Terms::multiply_add(row, column[v], sums[n][r][v]);
    }
  };
  int64_t d = 0;
  for (; d + kSums <= width; d += kSums)
#pragma GCC unroll 2
    for (int n = 0; n < kSums; ++n) add(n, d + n);
  if (d < width) add(0, d);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tile[r][v] = kSums == 1 ? sums[0][r][v] : sums[0][r][v] + sums[kSums - 1][r][v];
}

// Scores of pairs are scaled here, those of single terms by their queries.
template <class Terms, int V>
EMC_INLINE void scale_pairs(float scale, F (&tile)[kRows][V]) {
  if constexpr (Terms::kTerms == 2)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) tile[r][v] *= scale;
}

// Neighbours of an even number of rows become pairs, in place: what is multiplied over the rows then. `width` is a whole number of vectors.
template <class Terms>
EMC_INLINE void pair_rows(float* rows, int64_t count, int64_t width) {
  if constexpr (Terms::kTerms == 2) {
    float* to = rows;
    for (int64_t i = 0; i < count / 2; ++i, rows += 2 * width, to += width)
      for (int64_t d = 0; d < width; d += W) store(to + d, Terms::of(load(rows + d), load(rows + width + d)));
  }
}

// sum[i][v] = sum[i][v] * decay[v] + sum over keys of panels[.][i][key] * columns[key][v], for R neighbouring elements of the width.
template <class Terms, int R, int V>
inline void multiply_keys(const float* panels, int64_t panel_count, int64_t width, const float* columns, const F (&decay)[V], float* sum) {
  constexpr int kElements = kRows / Terms::kTerms;
  F tile[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tile[i][v] = F{};
  for (int64_t panel = 0; panel < panel_count; ++panel, panels += width * kElements) {
#pragma GCC unroll 16
    for (int r = 0; r < kElements; ++r, columns += V * W) {
      F column[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) column[v] = load(columns + v * W);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const F row = splat(panels[i * kElements + r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) tile[i][v] = Terms::multiply_add(row, column[v], tile[i][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* place = sum + (i * V + v) * W;
      store(place, load(place) * decay[v] + tile[i][v]);  // a block's sum is formed apart: long sums then lose little to rounding
    }
}

// The same for the whole width in tiles as even as possible: 30 is 8 + 8 + 7 + 7, nothing is padded.
template <class Terms, int V>
inline void multiply_all_keys(const float* panels, int64_t panel_count, int64_t width, const float* columns, const F (&decay)[V],
                              float* sum) {
  const int64_t tiles = divide_up(width, kRows);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t from = tile * width / tiles, rows = (tile + 1) * width / tiles - from;
    const float* p = panels + from * (kRows / Terms::kTerms);
    float* s = sum + from * V * W;
    switch (rows) {
      case 1:
        multiply_keys<Terms, 1, V>(p, panel_count, width, columns, decay, s);
        break;
      case 2:
        multiply_keys<Terms, 2, V>(p, panel_count, width, columns, decay, s);
        break;
      case 3:
        multiply_keys<Terms, 3, V>(p, panel_count, width, columns, decay, s);
        break;
      case 4:
        multiply_keys<Terms, 4, V>(p, panel_count, width, columns, decay, s);
        break;
      case 5:
        multiply_keys<Terms, 5, V>(p, panel_count, width, columns, decay, s);
        break;
      case 6:
        multiply_keys<Terms, 6, V>(p, panel_count, width, columns, decay, s);
        break;
      case 7:
        multiply_keys<Terms, 7, V>(p, panel_count, width, columns, decay, s);
        break;
      default:
        multiply_keys<Terms, 8, V>(p, panel_count, width, columns, decay, s);
        break;
    }
  }
}

}  // namespace
}  // namespace emc::EMC_ISA
