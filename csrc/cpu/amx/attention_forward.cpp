// Forward pass of fused attention on matrix tiles; see ../attention_forward.cpp, whose scheme this is: scores transposed, queries in the
// lanes, an online softmax by blocks of keys. Both products run on tiles (tiles.h); what is left for the vectors is the
// exponential and the packing of the probabilities.
#include "attention_pack.h"

namespace emc {
namespace v4 {
extern const AttentionForwardKernels attention_forward_kernels;
}
namespace EMC_ISA {
namespace {

struct Packed {
  KeyRange keys;
  HeadTiles tiles;
  int64_t padded_width;
  uint32_t* key_sets;    // [step][half][chunk]
  uint32_t* value_sets;  // [step][row tile]
  int32_t* positions;
  float longest;  // largest length of a key, where a head fits the tiles (fits_registers); a NaN is passed over
};

// Whether the sums of a head fit tile registers beside the scores of half a step.
inline bool fits_registers(const HeadTiles& tiles) { return tiles.rows == 2; }

// Squared lengths of 16 rows of kInner.
inline F squared_lengths(const float* rows) {
  F squares[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) {
    const F first = load(rows + i * kInner), second = load(rows + i * kInner + W);
    squares[i] = fma(first, first, second * second);
  }
  return sum_each(squares);
}

int64_t workspace_floats(const AttentionArgs& a) {
  const HeadTiles tiles(a.width);
  const int64_t steps = divide_up(a.keys, kInner);
  return with_cut(a, [&](auto cut) {
    return greatest(v4::attention_forward_kernels.workspace(a), steps * ((2 * tiles.inner + tiles.rows) * cut.kInputSet + kInner));
  });
}

template <class C>
Packed pack(const AttentionArgs& a, int64_t b, int64_t h, const KeyRange& keys, float* workspace) {
  const HeadTiles tiles(a.width);
  const int64_t steps = divide_up(keys.count, kInner), padded_width = tiles.inner * kInner;
  uint32_t* key_sets = reinterpret_cast<uint32_t*>(workspace);
  uint32_t* value_sets = key_sets + steps * 2 * tiles.inner * C::kInputSet;
  Packed packed{keys, tiles, padded_width, key_sets, value_sets, reinterpret_cast<int32_t*>(value_sets + steps * tiles.rows * C::kInputSet),
                0.f};
  alignas(64) float rows[kLanes * kAttentionMaxWidth];
  F longest = {};
  for (int64_t step = 0; step < steps; ++step) {
    load_step(a, a.key, b, h, keys, step, padded_width, rows);
    pack_step<C::kInputs>(rows, padded_width, tiles, key_sets + step * 2 * tiles.inner * C::kInputSet);
    if (fits_registers(tiles))
      for (int half = 0; half < 2; ++half) longest = max(squared_lengths(rows + half * kTile * kInner), longest);
    load_step(a, a.value, b, h, keys, step, padded_width, rows);
    pack_outer_transposed<C::kInputs>(rows, padded_width, tiles.rows * kTile, value_sets + step * tiles.rows * C::kInputSet);
  }
  packed.longest = __builtin_sqrtf(max(longest));
  pack_step_positions(keys, packed.positions);
  return packed;
}

// sums[d][lane] = sums * decay + values (one set per row tile) times probabilities (one set per 16 lanes) of one step: six calls of
// part<N>, `store`, and some hundred instructions later, when what tiles have stored can be read without waiting, `add`. A head of more
// than 32 is done two row tiles a call.
template <class C>
struct ValueProduct {
  const uint32_t *values, *probabilities;
  int64_t row_tiles;
  const F (&decay)[2];
  float *sums, *product;

  template <int N>
  EMC_INLINE void part() const {
    if (row_tiles <= 2) {
      if (N == 0) zero_tiles();
      multiply<N>(values);
    } else if constexpr (2 * N * kTile < kAttentionMaxWidth) {
      if (2 * N >= row_tiles) return;
      zero_tiles();
      const uint32_t* v = values + 2 * N * C::kInputSet;
      multiply_all_pieces<C::kInputs, C::kMade>(v, v + C::kInputSet, probabilities, probabilities + C::kMadeSet);
      store_tiles(product, kLanes);
      accumulate(sums + 2 * N * kTile * kLanes, kLanes);
    }
  }
  EMC_INLINE void store() const {
    if (row_tiles <= 2) store_tiles(product, kLanes);
  }
  EMC_INLINE void add() const {
    if (row_tiles <= 2) accumulate(sums, row_tiles * kTile);
  }
  EMC_INLINE void run() const { part<0>(), part<1>(), part<2>(), part<3>(), part<4>(), part<5>(), store(), add(); }

 private:
  template <int N>
  EMC_INLINE void multiply(const uint32_t* v) const {  // of a head of one tile, the second block of rows is not used
    multiply_tiles<C::kInputs, C::kMade, N>(v, row_tiles == 1 ? v : v + C::kInputSet, probabilities, probabilities + C::kMadeSet);
  }
  EMC_INLINE void accumulate(float* to, int64_t rows) const {
#pragma GCC unroll 4
    for (int64_t i = 0; i < rows * kLanes; i += W) emc::EMC_ISA::store(to + i, load(to + i) * decay[i / W % 2] + load(product + i));
  }
};

// Largest score of each lane in a step.
EMC_INLINE void follow_largest(const float* scores, F (&largest)[2]) {
  F second[2] = {largest[0], largest[1]};
#pragma GCC unroll 4
  for (int r = 0; r < kInner; r += 2)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      largest[v] = max(load(scores + r * kLanes + v * W), largest[v]);  // a NaN score compares false here and shows in the sum
      second[v] = max(load(scores + (r + 1) * kLanes + v * W), second[v]);
    }
  for (int v = 0; v < 2; ++v) largest[v] = max(largest[v], second[v]);
}

// Row r of the exponentials of a step and the one 16 further on, packed; `sum` follows.
template <int P>
EMC_INLINE void exponentiate(const float* scores, int r, const F (&largest)[2], const float* factors, uint32_t* probabilities,
                             F (&sum)[2][2]) {
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const int64_t i = r * kLanes + v * W, k = i + kTile * kLanes;
    F first = exponential<P>(load(scores + i) - largest[v]), second = exponential<P>(load(scores + k) - largest[v]);
    sum[0][v] += first, sum[1][v] += second;
    if (factors != nullptr) first *= load(factors + i), second *= load(factors + k);  // after the sum: the softmax is that of all keys
    store_pieces<P>(probabilities + v * kTileSet<P>, r, first, second);
  }
}

// The products of a step with the sums of a head left in tile registers 0..3, [row tile][lanes], from step to step; 4 and 5 hold the scores
// of 16 keys, 6 and 7 operands. Twelve calls of four tile products, to stand among other work.
template <class C>
struct RegisterProducts {
  using Pieces = Products<C::kInputs, C::kMade>;

  // A third of the scores of one half of a step: J = 0..2, then `store_scores`.
  template <int J>
  static EMC_INLINE void scores(const uint32_t* keys, const uint32_t* queries) {
    if constexpr (J == 0) {
      zero_tile<4>();
      zero_tile<5>();
    }
    score<2 * J>(keys, queries), score<2 * J + 1>(keys, queries);
  }
  static EMC_INLINE void store_scores(float* out) { store_tile<4>(out, kLanes), store_tile<5>(out + kTile, kLanes); }

  // A sixth of the sums: N = 0..5.
  template <int N>
  static EMC_INLINE void values(const uint32_t* values, const uint32_t* probabilities) {
    if constexpr (N < Pieces::kCount) {
      constexpr int64_t piece_a = Pieces::kA[N] * kTileWords, piece_b = Pieces::kB[N] * kTileWords;
      load_tile<6>(values + piece_a), load_tile<7>(probabilities + piece_b);
      multiply_tile<0, 6, 7>();
      load_tile<7>(probabilities + C::kMadeSet + piece_b);
      multiply_tile<1, 6, 7>();
      load_tile<6>(values + C::kInputSet + piece_a);
      multiply_tile<3, 6, 7>();
      load_tile<7>(probabilities + piece_b);
      multiply_tile<2, 6, 7>();
    }
  }

 private:
  template <int N>
  static EMC_INLINE void score(const uint32_t* keys, const uint32_t* queries) {
    if constexpr (N < Pieces::kCount) {
      load_tile<6>(keys + Pieces::kA[N] * kTileWords), load_tile<7>(queries + Pieces::kB[N] * kTileWords);
      multiply_tile<4, 6, 7>();
      load_tile<7>(queries + C::kMadeSet + Pieces::kB[N] * kTileWords);
      multiply_tile<5, 6, 7>();
    }
  }
};

// Where no score can exceed the largest of the first step by more than this, that one serves for all: e^16 leaves room in float32, and what
// it loses of the exponential's last digit it loses of the sum as well.
constexpr float kSlack = 16.f;

// The steps from `begin` to `end` against `largest`, whose scores of the first step are there, without following a maximum: so sums
// need not decay and stay in registers. They are taken out from time to time, for long sums lose.
template <class C>
EMC_INLINE void attend_fixed(const Packed& packed, const uint32_t* queries, const Lanes<2>& lanes, const PairDropout<2>& dropout,
                             int64_t begin, int64_t end, float (&scores)[2][kInner * kLanes], uint32_t (&probabilities)[2][2 * C::kMadeSet],
                             float* factors, float* product, float* sums, const F (&largest)[2], F (&total)[2]) {
  using Registers = RegisterProducts<C>;
  constexpr int64_t kKept = 8;  // steps
  const auto take_out = [&]() __attribute__((always_inline)) {
    store_tiles(product, kLanes);
    for (int64_t i = 0; i < kLanes * kLanes; i += W) store(sums + i, load(sums + i) + load(product + i));
    zero_tiles();
  };
  zero_tiles();
  for (int64_t step = begin; step < end; ++step) {
    const bool after = step + 1 < end, before = step > begin;
    if (dropout.active()) dropout.fill(packed.positions + step * kInner, kInner, factors);
    F sum[2][2] = {};
    const auto row = [&](int r) __attribute__((always_inline)) {
      exponentiate<C::kMade>(scores[step % 2], r, largest, dropout.active() ? factors : nullptr, probabilities[step % 2], sum);
    };
    const uint32_t *keys = packed.key_sets + (step + 1) * 2 * C::kInputSet, *values = packed.value_sets + (step - 1) * 2 * C::kInputSet;
    const uint32_t* earlier = probabilities[(step + 1) % 2];
    float* next = scores[(step + 1) % 2];
#define EMC_SCORES(half, j) \
  if (after) Registers::template scores<j>(keys + half * C::kInputSet, queries)
#define EMC_VALUES(n) \
  if (before) Registers::template values<n>(values, earlier)
    EMC_SCORES(0, 0);
    row(0);
    EMC_SCORES(0, 1);
    row(1);
    EMC_SCORES(0, 2);
    row(2);
    if (after) Registers::store_scores(next);
    EMC_SCORES(1, 0);
    row(3);
    EMC_SCORES(1, 1);
    row(4);
    EMC_SCORES(1, 2);
    row(5);
    if (after) Registers::store_scores(next + kTile * kLanes);
    EMC_VALUES(0);
    row(6), row(7);
    EMC_VALUES(1);
    row(8), row(9);
    EMC_VALUES(2);
    row(10), row(11);
    EMC_VALUES(3);
    row(12);
    EMC_VALUES(4);
    row(13);
    EMC_VALUES(5);
    if (after) hide_step(lanes, packed.positions + (step + 1) * kInner, next);
    row(14), row(15);
#undef EMC_VALUES
#undef EMC_SCORES
    if (before && (step - begin) % kKept == 0) take_out();
    for (int v = 0; v < 2; ++v) total[v] += sum[0][v] + sum[1][v];
  }
  const uint32_t *values = packed.value_sets + (end - 1) * 2 * C::kInputSet, *last = probabilities[(end - 1) % 2];
  Registers::template values<0>(values, last), Registers::template values<1>(values, last), Registers::template values<2>(values, last);
  Registers::template values<3>(values, last), Registers::template values<4>(values, last), Registers::template values<5>(values, last);
  take_out();
}

// Whether no score of 32 queries, [lane][kInner] times the scale, exceeds `largest` by more than kSlack: a score is at most the product of
// the lengths. Not so where one is NaN.
inline bool stays_near(const float* queries, float longest, const F (&largest)[2]) {
  bool near = true;
  for (int v = 0; v < 2; ++v) {
    const F excess = sqrt(squared_lengths(queries + v * kTile * kInner)) * longest - largest[v];
    for (int lane = 0; lane < W; ++lane) near = near && excess[lane] <= kSlack;
  }
  return near;
}

// Queries t0 .. t0 + valid of one head. The tile unit and the vector units work side by side: among the exponentials of one step stand the
// products of the step after it with the queries, and of the step before it with the values.
template <class C>
[[gnu::noinline]] void attend(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, const Packed& packed) {
  alignas(64) float rows[kLanes * kAttentionMaxWidth];
  alignas(64) uint32_t queries[2 * kAttentionMaxWidth / kInner * C::kMadeSet];  // [half][chunk]
  alignas(64) float sums[kAttentionMaxWidth * kLanes];                          // [d][lane]
  alignas(64) float scores[2][kInner * kLanes];                                 // [key][lane] of two steps
  alignas(64) uint32_t probabilities[2][2 * C::kMadeSet];                       // [half] of two steps
  alignas(64) float factors[kInner * kLanes];                                   // [key][lane], dropout
  alignas(64) float product[kLanes * kLanes];                                   // of a step's probabilities and values
  const int64_t padded_width = packed.padded_width, chunks = packed.tiles.inner, row_tiles = packed.tiles.rows;

  load_queries(a, a.query, b, h, t0, valid, a.scale, padded_width, rows);
  for (int64_t half = 0; half < 2; ++half)
    pack_inner_transposed<C::kMade>(rows + half * kTile * padded_width, padded_width, padded_width, queries + half * chunks * C::kMadeSet);
  for (int64_t i = 0; i < row_tiles * kTile * kLanes; i += W) store(sums + i, F{});

  const Lanes<2> lanes(a, t0, valid);
  const PairDropout<2> dropout(a, b, h, t0);
  const int64_t begin = lower_bound(packed.keys, lanes.first_min) / kInner;
  const int64_t end = divide_up(lower_bound(packed.keys, int64_t{lanes.last_max} + 1), kInner);
  F largest[2] = {splat(kLowest), splat(kLowest)}, total[2] = {};  // of the steps up to the one at hand: scores, sum of exponentials
  F decay[3][2] = {};  // what the largest of this step, of the one before and of the one before that made of the sums
  F next_largest[2] = {largest[0], largest[1]}, next_decay[2] = {};
  const auto scores_of = [&](int64_t step) __attribute__((always_inline)) {
    return WidthProduct<C>{packed.key_sets + step * 2 * chunks * C::kInputSet, queries, chunks};
  };
  const auto values_of = [&](int64_t step, const F(&factor)[2]) __attribute__((always_inline)) {
    return ValueProduct<C>{packed.value_sets + step * row_tiles * C::kInputSet, probabilities[step % 2], row_tiles, factor, sums, product};
  };
  const auto follow = [&](int64_t step) __attribute__((always_inline)) {  // the scores of `step` are there
    hide_step(lanes, packed.positions + step * kInner, scores[step % 2]);
    follow_largest(scores[step % 2], next_largest);
    for (int v = 0; v < 2; ++v) next_decay[v] = exponential<C::kMade>(largest[v] - next_largest[v]);
  };

  if (begin < end) {
    scores_of(begin).run(scores[begin % 2]);
    follow(begin);
  }
  const bool fixed = begin < end && fits_registers(packed.tiles) && stays_near(rows, packed.longest, next_largest);
  if (fixed) {
    for (int v = 0; v < 2; ++v) largest[v] = next_largest[v];
    attend_fixed<C>(packed, queries, lanes, dropout, begin, end, scores, probabilities, factors, product, sums, largest, total);
  }
  for (int64_t step = fixed ? end : begin; step < end; ++step) {
    const bool after = step + 1 < end, before = step > begin, twice = step > begin + 1;
    for (int v = 0; v < 2; ++v)
      largest[v] = next_largest[v], decay[2][v] = decay[1][v], decay[1][v] = decay[0][v], decay[0][v] = next_decay[v];
    if (dropout.active()) dropout.fill(packed.positions + step * kInner, kInner, factors);
    F sum[2][2] = {};
    const auto row = [&](int r) __attribute__((always_inline)) {
      exponentiate<C::kMade>(scores[step % 2], r, largest, dropout.active() ? factors : nullptr, probabilities[step % 2], sum);
    };
    const auto values = values_of(step - 1, decay[1]);
    const auto next = scores_of(step + 1);
#define EMC_VALUES(n) \
  if (before) values.template part<n>()
#define EMC_NEXT(n) \
  if (after) next.template part<n>()
    EMC_NEXT(0);
    row(0);
    EMC_NEXT(1);
    row(1);
    EMC_NEXT(2);
    row(2);
    EMC_NEXT(3);
    row(3);
    EMC_NEXT(4);
    row(4);
    EMC_NEXT(5);
    row(5);
    if (twice) values_of(step - 2, decay[2]).add();
    if (after) next.store(scores[(step + 1) % 2]);
    EMC_VALUES(0);
    row(6), row(7);
    EMC_VALUES(1);
    row(8);
    EMC_VALUES(2);
    row(9);
    EMC_VALUES(3);
    row(10);
    EMC_VALUES(4);
    row(11), row(12);
    EMC_VALUES(5);
    row(13);
    if (after) follow(step + 1);
    row(14), row(15);
    if (before) values.store();
#undef EMC_VALUES
#undef EMC_NEXT
    for (int v = 0; v < 2; ++v) total[v] = total[v] * decay[0][v] + (sum[0][v] + sum[1][v]);
  }
  if (!fixed && begin + 1 < end) values_of(end - 2, decay[1]).add();
  if (!fixed && begin < end) values_of(end - 1, decay[0]).run();

  alignas(64) float top[kLanes], sum[kLanes];
  for (int v = 0; v < 2; ++v) store(top + v * W, largest[v]), store(sum + v * W, total[v]);
  transpose_lanes(sums, row_tiles, padded_width, rows);
  for (int lane = 0; lane < valid; ++lane) store_result(a, b, h, t0 + lane, rows + lane * padded_width, top[lane], sum[lane]);
}

void run(const AttentionArgs& a, int64_t task, float* workspace) {
  const int64_t chunks = attention_chunks(a), b = task / chunks / a.heads, h = task / chunks % a.heads;
  const int64_t begin = task % chunks * attention_chunk(a), end = least(begin + attention_chunk(a), a.queries);
  const KeyRange keys = keys_of(a, b, begin, end);
  if (!is_for_tiles(a, keys)) return v4::attention_forward_kernels.run(a, task, workspace);
  const TileRegisters registers;
  with_cut(a, [&](auto cut) {
    using C = decltype(cut);
    const Packed packed = pack<C>(a, b, h, keys, workspace);
    for (int64_t t = begin; t < end; t += kLanes) attend<C>(a, b, h, t, least(kLanes, end - t), packed);
  });
}

}  // namespace

const AttentionForwardKernels attention_forward_kernels = {workspace_floats, run};

}  // namespace EMC_ISA
}  // namespace emc
