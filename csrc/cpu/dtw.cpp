// Dynamic time warping on the CPU. The recurrence D[t,s] = d[t,s] + min(D[t-1,s], D[t,s-1], D[t-1,s-1]) is serial along a row and along a
// column, but pairs of sequences are independent: each lane of a vector is a pair of its own, so that no cell is wasted, and no shuffle
// needed.
//
// y is cut into panels of columns that stay in the first-level cache while all rows pass over them. Within a panel rows are swept a few at
// a time, and two columns at once: their distances are a small product that reuses every operand, and the recurrence passes from row to row
// in registers. Only the last row of a tile, and the last column of a panel, go through memory.
#include "dtw_kernels.h"
#include "simd_double.h"

namespace emc::EMC_ISA {
namespace {

EMC_INLINE F least(F a, F b) {
#if defined(__AVX512F__)
  return (F)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (F)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

// Costs of W pairs, in float32 or float64. kRows rows make a tile: what the registers hold beside the distances of two columns.
struct Single {
  static constexpr int kRows = W >= 16 ? 8 : 4;
  F v;
};
struct Double {
  static constexpr int kRows = W >= 16 ? 4 : 2;
  D low, high;
};
EMC_INLINE Single least(Single a, Single b) { return {least(a.v, b.v)}; }
EMC_INLINE Double least(Double a, Double b) { return {min(a.low, b.low), min(a.high, b.high)}; }
EMC_INLINE Single add(Single a, F d) { return {a.v + d}; }
EMC_INLINE Double add(Double a, F d) {
  D low, high;
  widen(d, &low, &high);
  return {a.low + low, a.high + high};
}
EMC_INLINE void set(Single& a, int lane, double x) { a.v[lane] = static_cast<float>(x); }
EMC_INLINE void set(Double& a, int lane, double x) { lane < H ? a.low[lane] = x : a.high[lane - H] = x; }
EMC_INLINE double get(const Single& a, int lane) { return a.v[lane]; }
EMC_INLINE double get(const Double& a, int lane) { return lane < H ? a.low[lane] : a.high[lane - H]; }
EMC_INLINE Single constant(float x, Single) { return {splat(x)}; }
EMC_INLINE Double constant(double x, Double) { return {splat(x), splat(x)}; }

// What one call works on, cut from the workspace. A frame takes `channels` vectors, and one more for its squared norm with kProduct.
template <class Cost>
struct Lanes {
  F* x;        // (rows,)
  F* y;        // (kPanel,): the columns of a panel
  Cost* row;   // (kPanel,): the last row done
  Cost* left;  // (rows + 1,): the column left of the panel, from the row above the first
};
constexpr int64_t kPanelBytes = 16384;  // of y: a third to a half of a first-level cache; a tile of x wants to fit beside it

int64_t panel_of(int64_t width) {
  const int64_t columns = kPanelBytes / (width * static_cast<int64_t>(sizeof(F))) / 2 * 2;
  return columns > 2 ? columns : 2;
}
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class Cost, bool kProduct>
int64_t workspace_bytes(const DtwProblem& p) {
  const int64_t width = p.channels + kProduct, rows = round_up(p.x_frames, Cost::kRows), panel = panel_of(width);
  return 64 + (rows + panel) * width * static_cast<int64_t>(sizeof(F)) + (panel + rows + 1) * static_cast<int64_t>(sizeof(Cost));
}

// One frame of W sequences, and its squared norm behind the channels. Null for a lane whose sequence has no such frame: zeros.
template <bool kNorm>
EMC_INLINE void pack(const float* const* from, int64_t stride, int64_t channels, F* to) {
  F norm = {};
  for (int64_t first = 0; first < channels; first += W) {
    const int64_t some = channels - first < W ? channels - first : W;
    F v[W];
    for (int lane = 0; lane < W; ++lane) v[lane] = from[lane] != nullptr ? load_some(from[lane] + first * stride, stride, some) : F{};
    transpose(v);
    for (int64_t c = 0; c < some; ++c) {
      norm = fma(v[c], v[c], norm);
      to[first + c] = v[c];
    }
  }
  if (kNorm) to[channels] = norm;
}

// kColumns columns of a tile. Distances first: an entry of x is used for all columns, one of y for all rows. `corner` stands above the
// column before, `left` left of each row; both move on.
template <class Cost, bool kProduct, int kColumns>
EMC_INLINE void columns(const F* x, const F* y, Cost* row, int64_t channels, Cost* left, Cost& corner) {
  constexpr int kRows = Cost::kRows;
  const int64_t width = channels + kProduct;
  F d[kColumns][kRows];
  for (int k = 0; k < kColumns; ++k)
    for (int r = 0; r < kRows; ++r) d[k][r] = kProduct ? x[r * width + channels] + y[k * width + channels] : F{};
  for (int64_t c = 0; c < channels; ++c) {
    F v[kColumns];
    for (int k = 0; k < kColumns; ++k) v[k] = y[k * width + c];
    for (int r = 0; r < kRows; ++r) {
      const F u = x[r * width + c];
      for (int k = 0; k < kColumns; ++k) {
        const F gap = u - v[k];
        d[k][r] = kProduct ? d[k][r] + u * v[k] : d[k][r] + gap * gap;
      }
    }
  }
  for (int k = 0; k < kColumns; ++k) {
    Cost above = row[k], diagonal = corner;
    corner = above;
    for (int r = 0; r < kRows; ++r) {
      const Cost best = least(least(left[r], diagonal), above);
      diagonal = left[r];
      left[r] = above = add(best, d[k][r]);
    }
    row[k] = above;
  }
}

// All rows of x against `some` columns of y. kChannels = 0 takes the number of channels from the problem.
template <class Cost, bool kProduct, int kChannels>
void panel(const Lanes<Cost>& lanes, int64_t channels_given, int64_t rows, int64_t some) {
  constexpr int kRows = Cost::kRows;
  const int64_t channels = kChannels > 0 ? kChannels : channels_given, width = channels + kProduct;
  Cost above = lanes.left[0];  // left of the row above the tile, before this panel
  for (int64_t t = 0; t < rows; t += kRows) {
    Cost left[kRows], corner = above;
    for (int r = 0; r < kRows; ++r) left[r] = lanes.left[t + r + 1];
    above = left[kRows - 1];
    const F* const x = lanes.x + t * width;
    int64_t s = 0;
    for (; s + 2 <= some; s += 2) columns<Cost, kProduct, 2>(x, lanes.y + s * width, lanes.row + s, channels, left, corner);
    if (s < some) columns<Cost, kProduct, 1>(x, lanes.y + s * width, lanes.row + s, channels, left, corner);
    for (int r = 0; r < kRows; ++r) lanes.left[t + r + 1] = left[r];
  }
}
template <class Cost, bool kProduct>
void any_panel(const Lanes<Cost>& lanes, int64_t channels, int64_t rows, int64_t some) {
  switch (channels) {  // the field's groups: valence and arousal, expressions, action units
    case 2:
      return panel<Cost, kProduct, 2>(lanes, channels, rows, some);
    case 8:
      return panel<Cost, kProduct, 8>(lanes, channels, rows, some);
    case 15:
      return panel<Cost, kProduct, 15>(lanes, channels, rows, some);
    default:
      return panel<Cost, kProduct, 0>(lanes, channels, rows, some);
  }
}

template <class Cost, bool kProduct>
void sweep(const DtwProblem& p, int64_t begin, int64_t end, void* workspace) {
  constexpr int kRows = Cost::kRows;
  const int64_t width = p.channels + kProduct, panel = panel_of(width);
  const Cost infinite = constant(__builtin_inff(), Cost{});

  int64_t x_length[W], y_length[W], rows = 0, frames = 0;
  const float *x[W], *y[W], *at[W];
  double bound[W], cost[W];
  for (int lane = 0; lane < W; ++lane) {
    const int64_t pair = begin + lane < end ? begin + lane : end - 1;  // a spare lane repeats the last pair
    const int64_t n = p.pairs[2 * pair], m = p.pairs[2 * pair + 1];
    const bool named = n >= 0 && n < p.x_count && m >= 0 && m < p.y_count;
    x_length[lane] = !named ? 0 : p.x_lengths != nullptr ? p.x_lengths[n] : p.x_frames;
    y_length[lane] = !named ? 0 : p.y_lengths != nullptr ? p.y_lengths[m] : p.y_frames;
    if (x_length[lane] < 1 || x_length[lane] > p.x_frames || y_length[lane] < 1 || y_length[lane] > p.y_frames)
      x_length[lane] = y_length[lane] = 0;  // nothing of it is read
    x[lane] = p.x + (x_length[lane] > 0 ? n * p.x_stride[0] : 0);
    y[lane] = p.y + (x_length[lane] > 0 ? m * p.y_stride[0] : 0);
    rows = rows > x_length[lane] ? rows : x_length[lane];
    frames = frames > y_length[lane] ? frames : y_length[lane];
    bound[lane] = p.bound != nullptr ? p.bound[pair] * p.bound[pair] * (1.0 + 0x1p-50) : __builtin_inf();
    cost[lane] = __builtin_inf();
  }
  rows = round_up(rows, kRows);
  Lanes<Cost> lanes;
  lanes.x = reinterpret_cast<F*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
  lanes.y = lanes.x + rows * width;
  lanes.row = reinterpret_cast<Cost*>(lanes.y + panel * width);
  lanes.left = lanes.row + panel;

  // Lanes end in the same row: a shorter x is preceded by rows at infinite distance, and its path starts below the last of these.
  for (int64_t t = 0; t < rows; ++t) {
    I blank;
    for (int lane = 0; lane < W; ++lane) {
      const int64_t frame = t - (rows - x_length[lane]);
      at[lane] = frame >= 0 ? x[lane] + frame * p.x_stride[1] : nullptr;
      blank[lane] = frame >= 0 ? 0 : -1;
    }
    F* const to = lanes.x + t * width;
    pack<kProduct>(at, p.x_stride[2], p.channels, to);
    if (kProduct)
      for (int64_t c = 0; c < p.channels; ++c) to[c] *= -2.f;
    F& last = to[width - 1];
    last = select(blank, splat(__builtin_inff()), last);
  }
  for (int64_t t = 0; t <= rows; ++t) lanes.left[t] = infinite;
  for (int lane = 0; lane < W; ++lane) set(lanes.left[rows - x_length[lane]], lane, 0.0);

  bool settled = false;
  for (int64_t start = 0; start < frames && !settled; start += panel) {
    const int64_t some = frames - start < panel ? frames - start : panel;
    for (int64_t s = 0; s < some; ++s) {
      for (int lane = 0; lane < W; ++lane) at[lane] = start + s < y_length[lane] ? y[lane] + (start + s) * p.y_stride[1] : nullptr;
      pack<kProduct>(at, p.y_stride[2], p.channels, lanes.y + s * width);
      lanes.row[s] = infinite;
    }
    any_panel<Cost, kProduct>(lanes, p.channels, rows, some);
    lanes.left[0] = infinite;
    for (int lane = 0; lane < W; ++lane) {
      const int64_t last = y_length[lane] - 1 - start;
      if (last >= 0 && last < some) cost[lane] = get(lanes.row[last], lane);
    }
    if (p.bound == nullptr) continue;
    // Every path crosses every column: a pair is too far once a whole column is.
    Cost low = infinite;
    for (int64_t t = 1; t <= rows; ++t) low = least(low, lanes.left[t]);
    settled = true;
    for (int lane = 0; lane < W; ++lane) settled = settled && (start + some >= y_length[lane] || get(low, lane) > bound[lane]);
  }
  for (int64_t pair = begin; pair < end; ++pair) {
    const int lane = static_cast<int>(pair - begin);
    // An estimate may fall below zero by a rounding.
    const double found = cost[lane] > bound[lane] ? __builtin_inf() : __builtin_sqrt(cost[lane] > 0.0 ? cost[lane] : 0.0);
    p.out[pair] = x_length[lane] > 0 ? found : __builtin_nan("");
  }
}

int64_t workspace(const DtwProblem& p, bool exact) { return exact ? workspace_bytes<Double, false>(p) : workspace_bytes<Single, true>(p); }
void run(const DtwProblem& p, bool exact, int64_t begin, int64_t end, void* memory) {
  if (exact) {
    sweep<Double, false>(p, begin, end, memory);
  } else {
    sweep<Single, true>(p, begin, end, memory);
  }
}

}  // namespace

const DtwKernels dtw_kernels = {W, workspace, run};

}  // namespace emc::EMC_ISA
