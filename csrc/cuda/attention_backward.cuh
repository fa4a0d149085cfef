// Backward kernels of attention, without atomics: one over queries (row sums of P dP, then dQ), one over keys (dK, dV).
//
// Both make P again from the two statistics that forward keeps. Row sums of P dP instead of dO O, and two statistics instead of one
// log-sum-exp, cost a pass over the keys and keep the error of PyTorch (docs/decisions.md, 15).
#pragma once

#include "attention_tiles.cuh"

namespace emc::cuda {

// Columns of a tile that are worked on at a time, since a warp holds their scores and the slopes of these at once.
template <class Tiles>
constexpr int kPartOf = Tiles::kWidth < 128 ? 32 : 16;

// A query's statistics: harmless ones where it sees nothing, and then zeros stand for its row and its gradient.
struct QueryStatistics {
  float top = 0.0f, total = 1.0f;
  bool sees = false;
  __device__ __forceinline__ QueryStatistics(const Attention& a, int head, int query) {
    if (query >= a.queries) return;
    const float* const at = a.statistics + static_cast<int64_t>(head) * a.queries + query;
    const float sum = at[a.batch * a.heads * a.queries];
    sees = sum != 0.0f;
    if (sees) {
      top = at[0];
      total = sum;
    }
  }
};

template <class T, int kWidth, class Units>
__device__ __forceinline__ void differentiate_queries(const Attention& a) {
  using Tiles = AttentionTiles<T, kWidth>;
  constexpr int kColumns = Tiles::kColumns, kWords = (kColumns + 31) / 32, kPart = kPartOf<Tiles>, kCount = kPart / kTile;
  const AttentionBlock<Tiles> block(a, a.queries, 2, true);
  const int t = block.first + block.warp_row, last_query = block.first + block.rows - 1;
  T *const queries = block.left[0] + block.warp_row * Tiles::kPitch, *const grads = block.left[1] + block.warp_row * Tiles::kPitch;
  const auto sees = [&](int row) { return QueryStatistics(a, block.head, block.first + row).sees; };
  fetch<2>(a, block, a.query, a.grad_out, block.first, block.rows, block.left, sees);
  float top[2], total[2], inverse[2], delta[2] = {0.0f, 0.0f};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const QueryStatistics row(a, block.head, t + Units::row(r));
    top[r] = row.top;
    total[r] = row.total;
    inverse[r] = 1.0f / row.total;
  }
  Sums grad[kWidth / kTile];
#pragma unroll
  for (int d = 0; d < kWidth / kTile; ++d) grad[d].clear();
  const Range range = Range::of_keys(a, block.first, last_query < a.queries ? last_query : a.queries - 1, kColumns);
  // Twice over the keys: for the row sums of P dP, and with these for dQ.
  float subtracted[2] = {0.0f, 0.0f};
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    for_each_step_of_keys(a, block, range, [&](int s, const unsigned (&seen)[kWords], const StepTiles<Tiles>& tiles) {
#pragma unroll 1
      for (int part = 0; part < kColumns; part += kPart) {
        const T* const keys = tiles.right[0] + part * Tiles::kPitch;
        Sums scores[kCount], slopes[kCount];  // S, then dS; dP
        Units::template products<kWidth, Tiles::kPitch>(queries, keys, a.width, scores);
        Units::template products<kWidth, Tiles::kPitch>(grads, tiles.right[1] + part * Tiles::kPitch, a.width, slopes);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = Units::row(r), end = t + row + a.keys - a.queries - s - part - a.least_lag + 1;
          const unsigned there = (part < 32 ? seen[0] : seen[kWords - 1]) >> part % 32;
          const unsigned allowed = (there & bits_between(end - (a.lag_bound - a.least_lag), end)) >> Units::column();
          unsigned kept = kFullMask;
          if (a.dropout) kept = tiles.keep[(block.warp_row + row) * kWords + part / 32] >> part % 32 >> Units::column();
#pragma unroll
          for (int n = 0; n < kCount; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              const int column = n * kTile + Units::step(c);
              const bool attends = bit(allowed, column);
              const float score = scores[n].at[r][c] * a.scale2 - top[r], scaled = slopes[n].at[r][c] * a.dropout_scale;
              const float p = over<T>(exp2_of<T>(attends ? score : -infinity()), total[r], inverse[r]);
              const float ds = p * ((bit(kept, column) ? scaled : 0.0f) - subtracted[r]);
              scores[n].at[r][c] = attends ? ds : 0.0f;
            }
        }
        if (pass == 0) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kCount; ++n) sum += scores[n].of_row(r);
            delta[r] += sum;
          }
        } else {
          Units::template accumulate<Tiles::kPitch>(scores, keys, block.scratch, a.width, grad);
        }
      }
    });
    if (pass == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        subtracted[r] = delta[r] = row_sum<Units>(delta[r]);
        const int query = t + Units::row(r);
        if (query < a.queries && Units::column() == 0) a.delta[static_cast<int64_t>(block.head) * a.queries + query] = delta[r];
      }
    }
  }
#pragma unroll
  for (int d = 0; d < kWidth / kTile; ++d) grad[d].scale(a.scale);
  write_rows<Units>(a, block, grad, queries, a.grad_query, t, a.queries);
}

// Tiles are transposed: keys stand in the rows, queries in the columns.
template <class T, int kWidth, class Units>
__device__ __forceinline__ void differentiate_keys(const Attention& a) {
  using Tiles = AttentionTiles<T, kWidth>;
  constexpr int kColumns = Tiles::kColumns, kWords = (kColumns + 31) / 32, kPart = kPartOf<Tiles>, kCount = kPart / kTile;
  const AttentionBlock<Tiles> block(a, a.keys, 2, false);
  const int s = block.first + block.warp_row, last_key = block.first + block.rows - 1, keep_words = (block.rows + 31) / 32;
  T *const keys = block.left[0] + block.warp_row * Tiles::kPitch, *const values = block.left[1] + block.warp_row * Tiles::kPitch;
  constexpr int kSeen = (Tiles::kMaxRows + 31) / 32;
  unsigned seen[kSeen], any = 0;
#pragma unroll
  for (int w = 0; w < kSeen; ++w) any |= seen[w] = seen_keys(a, block.b, block.first + 32 * w);
  const auto live = [&](int row) { return bit(row < 32 ? seen[0] : seen[kSeen - 1], row & 31); };
  fetch<2>(a, block, a.key, a.value, block.first, block.rows, block.left, live);
  Sums grad_key[kWidth / kTile], grad_value[kWidth / kTile];
#pragma unroll
  for (int d = 0; d < kWidth / kTile; ++d) {
    grad_key[d].clear();
    grad_value[d].clear();
  }
  Range range = Range::of_queries(a, block.first, last_key < a.keys ? last_key : a.keys - 1, kColumns);
  if (any == 0) range.last = range.first;
  const auto look = [&](int t) { return __ballot_sync(kFullMask, QueryStatistics(a, block.head, t + lane_index()).sees); };
  const auto fill = [&](int t, const unsigned (&sees)[kWords], const StepTiles<Tiles>& tiles) {
    const auto query_sees = [&](int row) { return bit(row < 32 ? sees[0] : sees[kWords - 1], row & 31); };
    fetch<2>(a, block, a.query, a.grad_out, t, kColumns, tiles.right, query_sees);
    const int64_t first = static_cast<int64_t>(block.head) * a.queries + t;
    for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += static_cast<int>(blockDim.x)) {
      const float* const top = a.statistics + first + i;
      copy_async(tiles.numbers + i, top, query_sees(i));
      copy_async(tiles.numbers + kColumns + i, top + a.batch * a.heads * a.queries, query_sees(i));
      copy_async(tiles.numbers + 2 * kColumns + i, a.delta + first + i, query_sees(i));
    }
    if (a.dropout) make_keep(a, block, t, kColumns, block.first, keep_words, tiles.keep);
  };
  for_each_step(a, block, range, look, fill, [&](int t, const unsigned (&)[kWords], const StepTiles<Tiles>& tiles) {
#pragma unroll 1
    for (int part = 0; part < kColumns; part += kPart) {
      const T* const queries = tiles.right[0] + part * Tiles::kPitch;
      const T* const grads = tiles.right[1] + part * Tiles::kPitch;
      Sums scores[kCount], slopes[kCount];  // S, then P after dropout; dP, then dS
      Units::template products<kWidth, Tiles::kPitch>(keys, queries, a.width, scores);
      Units::template products<kWidth, Tiles::kPitch>(values, grads, a.width, slopes);
      unsigned allowed[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = Units::row(r), begin = s + row - (a.keys - a.queries) - t - part + a.least_lag;
        allowed[r] = live(block.warp_row + row) ? bits_between(begin, begin + (a.lag_bound - a.least_lag)) >> Units::column() : 0;
      }
      // Of sums with these columns: zero what dropout drops, times `factor` the rest.
      const auto drop = [&](Sums(&sums)[kCount], float factor) {
#pragma unroll
        for (int n = 0; n < kCount; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int column = part + n * kTile + Units::column() + Units::step(c);
            const unsigned kept = tiles.keep[column * keep_words + block.warp_row / 32] >> block.warp_row % 32;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const float scaled = sums[n].at[r][c] * factor;
              sums[n].at[r][c] = bit(kept, Units::row(r)) ? scaled : 0.0f;
            }
          }
      };
      if (a.dropout) drop(slopes, a.dropout_scale);
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int column = part + n * kTile + Units::column() + Units::step(c);
          const float top = tiles.numbers[column], sum = tiles.numbers[kColumns + column], delta = tiles.numbers[2 * kColumns + column];
          const float total = sum != 0.0f ? sum : 1.0f, inverse = 1.0f / total;  // of a query that sees nothing there are zeros
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const bool attends = bit(allowed[r], n * kTile + Units::step(c));
            const float score = scores[n].at[r][c] * a.scale2 - top;
            const float p = over<T>(exp2_of<T>(attends ? score : -infinity()), total, inverse), ds = p * (slopes[n].at[r][c] - delta);
            scores[n].at[r][c] = p;
            slopes[n].at[r][c] = attends ? ds : 0.0f;
          }
        }
      if (a.dropout) drop(scores, 1.0f);  // and scale dV: a scaled probability may exceed float16
      Units::template accumulate<Tiles::kPitch>(scores, grads, block.scratch, a.width, grad_value);
      Units::template accumulate<Tiles::kPitch>(slopes, queries, block.scratch, a.width, grad_key);
    }
  });
#pragma unroll
  for (int d = 0; d < kWidth / kTile; ++d) {
    grad_key[d].scale(a.scale);
    grad_value[d].scale(a.dropout_scale);
  }
  write_rows<Units>(a, block, grad_key, keys, a.grad_key, s, a.keys);
  write_rows<Units>(a, block, grad_value, values, a.grad_value, s, a.keys);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads, kBlocks<T, kWidth>.queries) attention_backward_queries(const Attention a) {
  with_units<T>([&](auto units) { differentiate_queries<T, kWidth, decltype(units)>(a); });
}
template <class T, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads, kBlocks<T, kWidth>.keys) attention_backward_keys(const Attention a) {
  with_units<T>([&](auto units) { differentiate_keys<T, kWidth, decltype(units)>(a); });
}

}  // namespace emc::cuda
