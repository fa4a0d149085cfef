// Attention blocks of a few frames at inference, and so EA: two launches for a block, three for the three blocks of EA.
//
// A block of threads has one head of one entry of the batch: its part of the projections, attention, and its columns of the output
// projection, whose parts the next launch adds up in the order of the heads. That launch is the block's end; or it is the heads of a block
// that goes on from there and makes the rows it needs itself, which costs less than a launch for them.
#pragma once

#include "attention_tiles.cuh"
#include "emotion_attention_arguments.h"

namespace emc::cuda {

constexpr int kFewWarps = 4, kFewThreads = kFewWarps * kWarp;

template <class T>
struct FewTiles {
  static constexpr int kRows = sizeof(T) == 2 ? kFewHalves : kFewFloats, kRowTiles = kRows / kTile;
  static constexpr int kPad = 16 / static_cast<int>(sizeof(T));  // 16 bytes, so that rows begin in different banks
  static constexpr int kInner = 128 / static_cast<int>(sizeof(T)), kPitch = kInner + kPad;  // of the width, at a time
  static constexpr int kHead = kFewHeadWidth, kHeadPitch = kHead + kPad;
  static constexpr int kOutputs = 128;  // rows of the output projection at a time; they take the place of what the projections needed
  static constexpr int kUnits = (3 * kRowTiles + kFewWarps - 1) / kFewWarps;  // tiles of query, key and value that a warp may have
  static constexpr int kScratch = SameType<T, Half>::value ? 0 : Scalar<T>::kScratch;
  static constexpr int kElements = (2 * kRows + 3 * kHead) * kPitch + 3 * kRows * kHeadPitch;
  static constexpr int kBytes = kElements * static_cast<int>(sizeof(T)) + 4 * (4 * kRows + kFewWarps * kScratch);
  static_assert(kOutputs * kHeadPitch <= (2 * kRows + 3 * kHead) * kPitch, "the output projection fits");
  static_assert(kBytes <= 64 * 1024, "what a block of 7.5 can have");
};

// y + bias + the sum over heads of their parts.
template <class T>
__device__ __forceinline__ void add_heads(const Joint& joint, int b, int t, int length, int heads, int width, int i, bool wide,
                                          float (&y)[kVector]) {
  float x[kVector];
  if (joint.bias != nullptr) {
    load(static_cast<const T*>(joint.bias) + i, 1, width - i, wide, x);
#pragma unroll
    for (int k = 0; k < kVector; ++k) y[k] += x[k];
  }
  float sum[kVector] = {};
  const float* part = joint.partial + (static_cast<int64_t>(b) * heads * length + t) * width + i;
  const int64_t step = static_cast<int64_t>(length) * width;
  if (wide) {  // by itself, so that the loads of several heads are on their way at once
#pragma unroll 4
    for (int h = 0; h < heads; ++h, part += step) {
      load(part, 1, width - i, true, x);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum[k] += x[k];
    }
  } else {
#pragma unroll 1
    for (int h = 0; h < heads; ++h, part += step) {
      load(part, 1, width - i, false, x);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum[k] += x[k];
    }
  }
#pragma unroll
  for (int k = 0; k < kVector; ++k) y[k] += sum[k];
}
// Elements i .. i + 3 of row t of an entry of the batch, before the LayerNorm of its joint where there is one.
template <class T>
__device__ __forceinline__ void few_row(const FewRows& rows, int b, int t, int length, int heads, int width, int i, bool wide,
                                        float (&y)[kVector]) {
  load(static_cast<const T*>(rows.data) + (static_cast<int64_t>(b) * length + t) * width + i, 1, width - i, wide, y);
  if (rows.joint.partial != nullptr) add_heads<T>(rows.joint, b, t, length, heads, width, i, wide, y);
}
template <class T>
__device__ __forceinline__ void normalise(const Joint& joint, int width, int i, bool wide, float mean, float inverse, float (&y)[kVector]) {
  float weight[kVector], shift[kVector] = {};
  load(static_cast<const T*>(joint.weight) + i, 1, width - i, wide, weight);
  if (joint.shift != nullptr) load(static_cast<const T*>(joint.shift) + i, 1, width - i, wide, shift);
#pragma unroll
  for (int k = 0; k < kVector; ++k) y[k] = fmaf((y[k] - mean) * inverse, weight[k], shift[k]);
}

// Mean and inverse deviation of a row that `make(i, y)` gives four elements of, by `lanes` lanes of which this one is number `sub`; all
// lanes of the warp come.
template <class Make>
__device__ __forceinline__ void few_statistics(int width, int lanes, int sub, float eps, const Make& make, float* mean, float* inverse) {
  float total = 0.0f, squares = 0.0f, y[kVector];
  for (int i = sub * kVector; i < width; i += lanes * kVector) {
    make(i, y);
    total += (y[0] + y[1]) + (y[2] + y[3]);  // zeros beyond the width
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(kFullMask, total, distance);
  *mean = total / static_cast<float>(width);
  for (int i = sub * kVector; i < width; i += lanes * kVector) {
    make(i, y);
#pragma unroll
    for (int k = 0; k < kVector; ++k)
      if (i + k < width) squares = fmaf(y[k] - *mean, y[k] - *mean, squares);
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) squares += __shfl_xor_sync(kFullMask, squares, distance);
  *inverse = 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

// Which block, entry and head a block of threads has.
struct FewPlace {
  int b, h, warp;
  __device__ __forceinline__ explicit FewPlace(const FewHeads& a) : warp(static_cast<int>(threadIdx.x) / kWarp) {
    const int head = static_cast<int>(blockIdx.x) % (a.batch * a.heads);
    b = head / a.heads, h = head % a.heads;
  }
};

// Statistics of the rows of an entry, a warp to a row, where they have yet to be made.
template <class T>
__device__ __forceinline__ void row_statistics(const FewHeads& a, const FewPlace& at, const FewRows& rows, int length, float* statistics) {
  if (rows.joint.partial == nullptr) return;
#pragma unroll 1
  for (int t = at.warp; t < length; t += kFewWarps) {
    float mean, inverse;
    const auto make = [&](int i, float (&y)[kVector]) { few_row<T>(rows, at.b, t, length, a.heads, a.width, i, a.wide, y); };
    few_statistics(a.width, kWarp, lane_index(), rows.joint.eps, make, &mean, &inverse);
    if (lane_index() == 0) statistics[2 * t] = mean, statistics[2 * t + 1] = inverse;
  }
}

template <class T>
__device__ __forceinline__ void put(T* to, const float (&y)[kVector]) {
  Vector<T> v;
#pragma unroll
  for (int k = 0; k < kVector; ++k) v.set(k, y[k]);
  v.store(to, kVector, true);
}

// Columns from .. from + kInner of the rows of an entry into a tile; zeros beyond what there is, and for rows that are masked. What needs
// no sum is on its way then, to be waited for.
template <class T>
__device__ __forceinline__ void stage_rows(const FewHeads& a, const FewPlace& at, const FewRows& rows, int length, const unsigned* seen,
                                           const float* statistics, int from, T* tile) {
  using Tiles = FewTiles<T>;
  constexpr int kParts = Tiles::kInner / kVector;
  const auto is_there = [&](int t, int i) { return t < length && i < a.width && (seen == nullptr || bit(seen[t / 32], t % 32)); };
  if (a.wide && rows.joint.partial == nullptr) {
    const T* const first = static_cast<const T*>(rows.data) + static_cast<int64_t>(at.b) * length * a.width;
    for (int place = static_cast<int>(threadIdx.x); place < Tiles::kRows * kParts; place += kFewThreads) {
      const int t = place / kParts, column = place % kParts * kVector, i = from + column;
      fetch_some<kVector>(tile + t * Tiles::kPitch + column, first + static_cast<int64_t>(t) * a.width + i, is_there(t, i));
    }
    return;
  }
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < Tiles::kRows * kParts; place += kFewThreads) {
    const int t = place / kParts, column = place % kParts * kVector, i = from + column;
    float y[kVector] = {};
    if (is_there(t, i)) {
      few_row<T>(rows, at.b, t, length, a.heads, a.width, i, a.wide, y);
      if (rows.joint.partial != nullptr) normalise<T>(rows.joint, a.width, i, a.wide, statistics[2 * t], statistics[2 * t + 1], y);
    }
    put(tile + t * Tiles::kPitch + column, y);
  }
}

// rows x columns of a dense matrix of a.width columns, from (row, column) on, into a tile of whole vectors; zeros from `valid_columns` on,
// and beyond the matrix. Where it is `wide` they are on their way then, to be waited for.
template <class T, int kColumns, int kPitch>
__device__ __forceinline__ void stage_weights(const FewHeads& a, const void* weights, int row, int rows, int valid_rows, int column,
                                              int valid_columns, bool wide, T* tile) {
  constexpr int kParts = kColumns / kVector;
  const T* const first = static_cast<const T*>(weights) + static_cast<int64_t>(row) * a.width + column;
  if (wide) {
    for (int place = static_cast<int>(threadIdx.x); place < rows * kParts; place += kFewThreads) {
      const int r = place / kParts, c = place % kParts * kVector;
      fetch_some<kVector>(tile + r * kPitch + c, first + static_cast<int64_t>(r) * a.width + c, r < valid_rows && c < valid_columns);
    }
    return;
  }
#pragma unroll 1
  for (int place = static_cast<int>(threadIdx.x); place < rows * kParts; place += kFewThreads) {
    const int r = place / kParts, c = place % kParts * kVector;
    float y[kVector] = {};
    if (r < valid_rows && c < valid_columns) load(first + static_cast<int64_t>(r) * a.width + c, 1, valid_columns - c, false, y);
    put(tile + r * kPitch + c, y);
  }
}

// Which of the projections a warp's unit of work is, 3 where there is none for it; and which 16 rows of it.
struct FewUnit {
  int matrix, tile;
  __device__ __forceinline__ FewUnit(int unit, int query_tiles, int key_tiles) {
    const int beyond = unit - query_tiles;
    matrix = beyond < 0 ? 0 : beyond < key_tiles ? 1 : beyond < 2 * key_tiles ? 2 : 3;
    tile = beyond < 0 ? unit : beyond < key_tiles ? beyond : beyond - key_tiles;
  }
};

// Softmax of 16 queries' scores, in place, and its divisor.
template <class T, class Units, int kCount>
__device__ __forceinline__ void few_softmax(const FewHeads& a, const FewBlock& p, const unsigned (&seen)[2], int t, Sums (&scores)[kCount],
                                            float (&total)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float highest = -infinity();
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int end = t + Units::row(r) + p.keys - p.queries - p.least_lag + 1 - n / 2 * 32;  // column behind the last that may be seen
      const unsigned allowed = seen[n / 2] & bits_between(end - (p.lag_bound - p.least_lag), end);
      const unsigned there = allowed >> Units::column() >> n % 2 * kTile;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float& score = scores[n].at[r][c];
        score = bit(there, Units::step(c)) ? score * a.scale2 : -infinity();
        highest = fmaxf(highest, score);  // past a NaN
      }
    }
    highest = row_largest<Units>(highest);
    const float finite = highest == -infinity() ? 0.0f : highest;  // nothing is seen: every power is 0
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[n].at[r][c] = exp2_of<T>(scores[n].at[r][c] - finite);
      sum += scores[n].of_row(r);
    }
    total[r] = row_sum<Units>(sum);
  }
}

template <class T, class Units>
__device__ __forceinline__ void few_heads_with(const FewHeads& a, const FewBlock& p) {
  using Tiles = FewTiles<T>;
  constexpr int kRows = Tiles::kRows, kPitch = Tiles::kPitch, kHead = Tiles::kHead, kHeadPitch = Tiles::kHeadPitch;
  const FewPlace at(a);
  float* const statistics = shared_memory<float>();  // of x's rows, of the memory's
  float* const scratch = statistics + 4 * kRows + at.warp * Tiles::kScratch;
  T* const rows = reinterpret_cast<T*>(statistics + 4 * kRows + kFewWarps * Tiles::kScratch);
  T* const other_rows = rows + kRows * kPitch;
  T* const weights = other_rows + kRows * kPitch;
  T* const projected = weights + 3 * kHead * kPitch;  // query, then key, then value
  const unsigned seen[2] = {seen_keys(p, at.b, 0), seen_keys(p, at.b, 32)};
  const int query_tiles = (p.queries + kTile - 1) / kTile, key_tiles = (p.keys + kTile - 1) / kTile;

  row_statistics<T>(a, at, p.x, p.queries, statistics);
  row_statistics<T>(a, at, p.memory, p.keys, statistics + 2 * kRows);
  // Tiles of key and value that no warp has: zeros, since 0 times what stands there would not be 0.
  for (int place = static_cast<int>(threadIdx.x); place < 2 * kRows * kHeadPitch; place += kFewThreads)
    projected[kRows * kHeadPitch + place] = from_float<T>(0.0f);

  const bool same = p.memory.data == p.x.data && p.memory.joint.partial == p.x.joint.partial && p.key_mask == nullptr;
  const void* const matrices[3] = {p.w_q, p.w_k, p.w_v};
  Sums sums[Tiles::kUnits][2];
#pragma unroll
  for (int i = 0; i < Tiles::kUnits; ++i) sums[i][0].clear(), sums[i][1].clear();
#pragma unroll 1
  for (int from = 0; from < a.width; from += Tiles::kInner) {
    const int left = a.width - from < Tiles::kInner ? a.width - from : Tiles::kInner;
    __syncthreads();
    stage_rows(a, at, p.x, p.queries, nullptr, statistics, from, rows);
    if (!same) stage_rows(a, at, p.memory, p.keys, seen, statistics + 2 * kRows, from, other_rows);
#pragma unroll
    for (int m = 0; m < 3; ++m)
      stage_weights<T, Tiles::kInner, kPitch>(a, matrices[m], at.h * a.head_width, kHead, a.head_width, from, left, a.wide,
                                              weights + m * kHead * kPitch);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Tiles::kUnits; ++i) {
      const FewUnit unit(at.warp + i * kFewWarps, query_tiles, key_tiles);
      if (unit.matrix > 2) continue;
      Sums part[2];  // of a piece of the width: long sums then lose less
      Units::template products<Tiles::kInner, kPitch>((unit.matrix == 0 || same ? rows : other_rows) + unit.tile * kTile * kPitch,
                                                      weights + unit.matrix * kHead * kPitch, left, part);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[i][n].at[r][c] += part[n].at[r][c];
    }
  }
#pragma unroll
  for (int i = 0; i < Tiles::kUnits; ++i) {
    const FewUnit unit(at.warp + i * kFewWarps, query_tiles, key_tiles);
    if (unit.matrix > 2) continue;
    const void* const bias = unit.matrix == 0 ? p.b_q : unit.matrix == 1 ? p.b_k : p.b_v;
    T* const to = projected + (unit.matrix * kRows + unit.tile * kTile) * kHeadPitch;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
          const int column = n * kTile + Units::column() + Units::step(c);
          float x[2] = {sums[i][n].at[r][c], sums[i][n].at[r][c + 1]};
#pragma unroll
          for (int k = 0; k < 2; ++k)
            if (bias != nullptr && column + k < a.head_width)
              x[k] += to_float(static_cast<const T*>(bias)[at.h * a.head_width + column + k]);
          store_pair(to + Units::row(r) * kHeadPitch + column, x[0], x[1]);
        }
  }
  __syncthreads();

  const auto stage_outputs = [&](int from) {
    stage_weights<T, kHead, kHeadPitch>(a, p.w_o, from, Tiles::kOutputs, a.width - from, at.h * a.head_width, a.head_width, a.wide_heads,
                                        rows);
    commit_copies();
  };
  stage_outputs(0);  // on its way while the warps attend
  if (at.warp < query_tiles) {
    T* const queries = projected + at.warp * kTile * kHeadPitch;
    Sums scores[Tiles::kRowTiles], out[kHead / kTile];
    float total[2];
    Units::template products<kHead, kHeadPitch>(queries, projected + kRows * kHeadPitch, a.head_width, scores);
    few_softmax<T, Units>(a, p, seen, at.warp * kTile, scores, total);
#pragma unroll
    for (int d = 0; d < kHead / kTile; ++d) out[d].clear();
    Units::template accumulate<kHeadPitch>(scores, projected + 2 * kRows * kHeadPitch, scratch, a.head_width, out);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = 1.0f / total[r];
#pragma unroll
      for (int d = 0; d < kHead / kTile; ++d)
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
          float x[2];
#pragma unroll
          for (int k = 0; k < 2; ++k) x[k] = total[r] == 0.0f ? 0.0f : over<T>(out[d].at[r][c + k], total[r], inverse);
          store_pair(queries + Units::row(r) * kHeadPitch + d * kTile + Units::column() + Units::step(c), x[0], x[1]);
        }
    }
  }

  float* const partial = p.partial + (static_cast<int64_t>(at.b) * a.heads + at.h) * p.queries * a.width;
#pragma unroll 1
  for (int from = 0; from < a.width; from += Tiles::kOutputs) {
    if (from > 0) {
      __syncthreads();
      stage_outputs(from);
    }
    wait_copies<0>();
    __syncthreads();
#pragma unroll 1
    for (int unit = at.warp; unit < 2 * query_tiles; unit += kFewWarps) {
      constexpr int kHalf = Tiles::kOutputs / 2;
      const int tile = unit / 2, first = unit % 2 * kHalf;
      if (from + first >= a.width) continue;
      Sums part[kHalf / kTile];
      Units::template products<kHead, kHeadPitch>(projected + tile * kTile * kHeadPitch, rows + first * kHeadPitch, a.head_width, part);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int t = tile * kTile + Units::row(r);
        if (t >= p.queries) continue;
#pragma unroll
        for (int n = 0; n < kHalf / kTile; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int column = from + first + n * kTile + Units::column() + Units::step(c);
            if (column < a.width) partial[static_cast<int64_t>(t) * a.width + column] = part[n].at[r][c];
          }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kFewThreads, 1) few_heads(const __grid_constant__ FewHeads a) {
  const FewBlock& block = static_cast<int>(blockIdx.x) < a.batch * a.heads ? a.block[0] : a.block[1];
  with_units<T>([&](auto units) { few_heads_with<T, decltype(units)>(a, block); });
}

// A block's end, row by row.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) few_join(const __grid_constant__ FewJoin a) {
  const Lanes lanes(a.lanes);
  const int64_t rows = static_cast<int64_t>(a.batch) * a.length;
  for (int64_t row = lanes.row; __any_sync(kFullMask, row < rows); row += lanes.step) {
    const bool there = row < rows;
    const int b = there ? static_cast<int>(row / a.length) : 0, t = there ? static_cast<int>(row % a.length) : 0;
    float mean[2], inverse[2];
    const auto before = [&](int i, float (&y)[kVector]) { few_row<T>(a.x, b, t, a.length, a.heads, a.width, i, a.wide, y); };
    if (a.x.joint.partial != nullptr) few_statistics(a.width, a.lanes, lanes.sub, a.x.joint.eps, before, &mean[0], &inverse[0]);
    const auto after = [&](int i, float (&y)[kVector]) {
      before(i, y);
      if (a.x.joint.partial != nullptr) normalise<T>(a.x.joint, a.width, i, a.wide, mean[0], inverse[0], y);
      add_heads<T>(a.joint, b, t, a.length, a.heads, a.width, i, a.wide, y);
    };
    few_statistics(a.width, a.lanes, lanes.sub, a.joint.eps, after, &mean[1], &inverse[1]);
    for (int i = lanes.sub * kVector; there && i < a.width; i += a.lanes * kVector) {
      float y[kVector];
      after(i, y);
      normalise<T>(a.joint, a.width, i, a.wide, mean[1], inverse[1], y);
      store(static_cast<T*>(a.out) + row * a.width + i, a.width - i, a.wide, y);
    }
  }
}

}  // namespace emc::cuda
