// Forward kernel of attention, softmax(scale Q K^T) V: tiles of scores in registers, softmax by running maximum and sum in base 2.
//
// A warp has 16 queries and goes over the keys in steps; its block shares the keys in shared memory. A masked pair has the score -inf, so
// that a masked tile changes no bit; what stands in masked keys is zeros by then.
#pragma once

#include "attention_tiles.cuh"

namespace emc::cuda {

template <class T, int kWidth, class Units>
__device__ __forceinline__ void attend(const Attention& a) {
  using Tiles = AttentionTiles<T, kWidth>;
  constexpr int kColumns = Tiles::kColumns, kCount = kColumns / kTile, kWords = (kColumns + 31) / 32;
  const AttentionBlock<Tiles> block(a, a.queries, 1, true);
  const int t = block.first + block.warp_row, last_query = block.first + block.rows - 1;
  T* const queries = block.left[0] + block.warp_row * Tiles::kPitch;
  fetch<1>(a, block, a.query, a.query, block.first, block.rows, block.left, [&](int row) { return block.first + row < a.queries; });

  Sums out[kWidth / kTile];
#pragma unroll
  for (int d = 0; d < kWidth / kTile; ++d) out[d].clear();
  float top[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};
  const Range range = Range::of_keys(a, block.first, last_query < a.queries ? last_query : a.queries - 1, kColumns);
  for_each_step_of_keys(a, block, range, [&](int s, const unsigned (&seen)[kWords], const StepTiles<Tiles>& tiles) {
    Sums scores[kCount];
    Units::template products<kWidth, Tiles::kPitch>(queries, tiles.right[0], a.width, scores);
    unsigned allowed[2][kWords], every = kFullMask;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int end = t + Units::row(r) + a.keys - a.queries - s - a.least_lag + 1 - 32 * w;  // column behind the last that may be seen
        every &= allowed[r][w] = seen[w] & bits_between(end - (a.lag_bound - a.least_lag), end);
      }
#pragma unroll
    for (int n = 0; n < kCount; ++n) scores[n].scale(a.scale2);
    if (__any_sync(kFullMask, every != kFullMask)) {  // all lanes go the same way, as matrix instructions ask for
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const unsigned there = allowed[r][n / 2] >> Units::column() >> n % 2 * kTile;
#pragma unroll
          for (int c = 0; c < 4; ++c) scores[n].at[r][c] = bit(there, Units::step(c)) ? scores[n].at[r][c] : -infinity();
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = top[r];
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) highest = fmaxf(highest, scores[n].at[r][c]);  // past a NaN
      highest = row_largest<Units>(highest);
      const float finite = highest == -infinity() ? 0.0f : highest;  // nothing seen so far: every power is 0
      const float rescale = exp2_of<T>(top[r] - finite);
      top[r] = highest;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[n].at[r][c] = exp2_of<T>(scores[n].at[r][c] - finite);
        sum += scores[n].of_row(r);
      }
      total[r] = total[r] * rescale + sum;
#pragma unroll
      for (int d = 0; d < kWidth / kTile; ++d)
#pragma unroll
        for (int c = 0; c < 4; ++c) out[d].at[r][c] *= rescale;
      if (a.dropout) {  // after the sum: the softmax is that of all keys. Scaled is the result: a scaled probability may exceed float16
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
          const unsigned kept = tiles.keep[(block.warp_row + Units::row(r)) * kWords + n / 2] >> Units::column() >> n % 2 * kTile;
#pragma unroll
          for (int c = 0; c < 4; ++c) scores[n].at[r][c] = bit(kept, Units::step(c)) ? scores[n].at[r][c] : 0.0f;
        }
      }
    }
    Units::template accumulate<Tiles::kPitch>(scores, tiles.right[1], block.scratch, a.width, out);
  });

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] = row_sum<Units>(total[r]);
    const int query = t + Units::row(r);
    const int64_t at = static_cast<int64_t>(block.head) * a.queries + query;
    if (query < a.queries && Units::column() == 0) {
      a.statistics[at] = top[r];
      a.statistics[at + a.batch * a.heads * a.queries] = total[r];
    }
    const float inverse = 1.0f / total[r];
#pragma unroll
    for (int d = 0; d < kWidth / kTile; ++d)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float x = over<T>(out[d].at[r][c], total[r], inverse) * a.dropout_scale;
        out[d].at[r][c] = total[r] == 0.0f ? 0.0f : x;
      }
  }
  write_rows<Units>(a, block, out, queries, a.out, t, a.queries);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads, kBlocks<T, kWidth>.forward) attention(const Attention a) {
  with_units<T>([&](auto units) { attend<T, kWidth, decltype(units)>(a); });
}

}  // namespace emc::cuda
