// Dynamic time warping on the CPU. The recurrence D[t,s] = d[t,s] + min(D[t-1,s], D[t,s-1], D[t-1,s-1]) is serial along a row and along a
// column, but pairs of sequences are independent: each lane of a vector is a pair of its own, so that no cell is wasted, and no shuffle
// needed.
//
// Rows are swept a few at a time, and two columns at once: their distances are a small product that reuses every operand, and the
// recurrence passes from row to row in registers. Only the last row of a tile goes through memory.
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

// What one call works on, cut from the workspace. `extra` is 1 where a squared norm stands behind the channels.
template <class Cost>
struct Lanes {
  F* x;       // (kRows, channels + extra)
  F* y;       // (frames, channels + extra)
  Cost* row;  // (frames,): the last row done
};
template <class Cost, bool kProduct>
int64_t workspace_bytes(const DtwProblem& p) {
  const int64_t width = p.channels + kProduct;
  return 64 + Cost::kRows * width * static_cast<int64_t>(sizeof(F)) +
         p.y_frames * (width * static_cast<int64_t>(sizeof(F)) + static_cast<int64_t>(sizeof(Cost)));
}

// The recurrence in a tile, from column to column: what stands left of each row, and above the first row of the column before.
template <class Cost>
struct Front {
  Cost left[Cost::kRows], corner, low;
};

// kColumns columns of a tile from column s on. Distances first: an entry of x is used for all columns, one of y for all rows.
template <class Cost, bool kProduct, int kColumns>
EMC_INLINE void columns(const Lanes<Cost>& lanes, int64_t channels, int64_t s, Front<Cost>& front) {
  constexpr int kRows = Cost::kRows;
  const int64_t width = channels + kProduct;
  const F* const x = lanes.x;
  const F* const y = lanes.y + s * width;
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
    Cost above = lanes.row[s + k], diagonal = front.corner;
    front.corner = above;
    for (int r = 0; r < kRows; ++r) {
      const Cost best = least(least(front.left[r], diagonal), above);
      diagonal = front.left[r];
      front.left[r] = above = add(best, d[k][r]);
    }
    lanes.row[s + k] = above;
    front.low = least(front.low, above);
  }
}

// One tile: kRows rows of x against all frames of y. edge[k] is the cost left of the first column, of the row above (k = 0) and of the
// tile's. kChannels = 0 takes the number from the problem. Returns the least cost of the last row.
template <class Cost, bool kProduct, int kChannels>
Cost tile(const Lanes<Cost>& lanes, int64_t channels_given, int64_t frames, const Cost* edge) {
  const int64_t channels = kChannels > 0 ? kChannels : channels_given;
  Front<Cost> front;
  front.corner = edge[0];
  front.low = constant(__builtin_inff(), Cost{});
  for (int r = 0; r < Cost::kRows; ++r) front.left[r] = edge[r + 1];
  int64_t s = 0;
  for (; s + 2 <= frames; s += 2) columns<Cost, kProduct, 2>(lanes, channels, s, front);
  if (s < frames) columns<Cost, kProduct, 1>(lanes, channels, s, front);
  return front.low;
}
template <class Cost, bool kProduct>
Cost any_tile(const Lanes<Cost>& lanes, int64_t channels, int64_t frames, const Cost* edge) {
  switch (channels) {  // the field's groups: valence and arousal, expressions, action units
    case 2:
      return tile<Cost, kProduct, 2>(lanes, channels, frames, edge);
    case 8:
      return tile<Cost, kProduct, 8>(lanes, channels, frames, edge);
    case 15:
      return tile<Cost, kProduct, 15>(lanes, channels, frames, edge);
    default:
      return tile<Cost, kProduct, 0>(lanes, channels, frames, edge);
  }
}

template <class Cost, bool kProduct>
void sweep(const DtwProblem& p, int64_t begin, int64_t end, void* workspace) {
  constexpr int kRows = Cost::kRows;
  const int64_t width = p.channels + kProduct;
  auto* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
  Lanes<Cost> lanes;
  lanes.x = reinterpret_cast<F*>(base);
  lanes.y = lanes.x + kRows * width;
  lanes.row = reinterpret_cast<Cost*>(lanes.y + p.y_frames * width);

  int64_t x_length[W], y_length[W], rows = 0, frames = 0;
  const float* x[W];
  double bound[W];
  for (int lane = 0; lane < W; ++lane) {
    const int64_t pair = begin + lane < end ? begin + lane : end - 1;  // a spare lane repeats the last pair
    const int64_t n = p.pairs[2 * pair], m = p.pairs[2 * pair + 1];
    x[lane] = p.x + n * p.x_stride[0];
    x_length[lane] = p.x_lengths != nullptr ? p.x_lengths[n] : p.x_frames;
    y_length[lane] = p.y_lengths != nullptr ? p.y_lengths[m] : p.y_frames;
    rows = rows > x_length[lane] ? rows : x_length[lane];
    frames = frames > y_length[lane] ? frames : y_length[lane];
    bound[lane] = p.bound != nullptr ? p.bound[pair] * p.bound[pair] * (1.0 + 0x1p-50) : __builtin_inf();
  }
  for (int lane = 0; lane < W; ++lane) {
    const int64_t pair = begin + lane < end ? begin + lane : end - 1;
    const float* const y = p.y + p.pairs[2 * pair + 1] * p.y_stride[0];
    float* const to = reinterpret_cast<float*>(lanes.y) + lane;
    for (int64_t s = 0; s < frames; ++s) {
      float norm = 0.f;
      for (int64_t c = 0; c < p.channels; ++c) {
        const float v = s < y_length[lane] ? y[s * p.y_stride[1] + c * p.y_stride[2]] : 0.f;  // past a lane's end: anything finite
        to[(s * width + c) * W] = v;
        norm += v * v;
      }
      if (kProduct) to[(s * width + p.channels) * W] = norm;
    }
  }
  for (int64_t s = 0; s < frames; ++s) lanes.row[s] = constant(__builtin_inff(), Cost{});

  // Lanes end together: a shorter x is preceded by rows at infinite distance, and its path starts in the last of these.
  rows = (rows + kRows - 1) / kRows * kRows;
  bool all_beyond = false;
  for (int64_t first = 0; first < rows && !all_beyond; first += kRows) {
    Cost edge[kRows + 1];
    for (int k = 0; k <= kRows; ++k) edge[k] = constant(__builtin_inff(), Cost{});
    for (int lane = 0; lane < W; ++lane) {
      const int64_t blank = rows - x_length[lane];
      if (first <= blank && blank <= first + kRows) set(edge[blank - first], lane, 0.0);
      for (int r = 0; r < kRows; ++r) {
        const int64_t t = first + r - blank;
        float* const to = reinterpret_cast<float*>(lanes.x + r * width) + lane;
        float norm = 0.f;
        for (int64_t c = 0; c < p.channels; ++c) {
          const float v = t >= 0 ? x[lane][t * p.x_stride[1] + c * p.x_stride[2]] : kProduct ? 0.f : __builtin_inff();
          to[c * W] = kProduct ? -2.f * v : v;
          norm += v * v;
        }
        if (kProduct) to[p.channels * W] = t >= 0 ? norm : __builtin_inff();
      }
    }
    // blank == first + kRows belongs to the next tile's row above as well, which finds it again as its edge[0].
    const Cost low = any_tile<Cost, kProduct>(lanes, p.channels, frames, edge);
    all_beyond = true;
    for (int lane = 0; lane < W; ++lane) all_beyond = all_beyond && get(low, lane) > bound[lane];
  }
  for (int64_t pair = begin; pair < end; ++pair) {
    const int lane = static_cast<int>(pair - begin);
    const double cost = get(lanes.row[y_length[lane] - 1], lane);
    // An estimate may fall below zero by a rounding.
    p.out[pair] = all_beyond || cost > bound[lane] ? __builtin_inf() : __builtin_sqrt(cost > 0.0 ? cost : 0.0);
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
