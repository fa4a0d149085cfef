// Backward pass of fused attention on matrix tiles; see ../attention_backward.cpp, whose scheme this is. Scores are made again by the very
// products of forward, so that the exponentials are forward's to the bit.
#include "attention_pack.h"

namespace emc {
namespace v4 {
extern const AttentionBackwardKernels attention_backward_kernels;
}
namespace EMC_ISA {
namespace {

constexpr int64_t kStep = kInner * kLanes;  // pairs of a step

struct Packed {
  KeyRange keys;
  HeadTiles tiles;
  int64_t steps, padded_width;
  uint32_t *key_sets, *value_sets;  // [step][half][chunk], the width inside
  uint32_t* key_columns;            // [step][row tile], the keys inside
  float *key_sums, *value_sums;     // [key][padded width]
  float *exponentials, *grads;      // [key][lane], of one group of queries
  float* factors;                   // [key][lane], dropout; null without
  int32_t* positions;
};

int64_t workspace_floats(const AttentionArgs& a) {
  const HeadTiles tiles(a.width);
  return with_cut(a, [&](auto cut) {
    const int64_t a_step = (4 * tiles.inner + tiles.rows) * cut.kInputSet + 2 * kInner * tiles.inner * kInner + 3 * kStep + kInner;
    return greatest(v4::attention_backward_kernels.workspace(a), divide_up(a.keys, kInner) * a_step);
  });
}

template <class C>
Packed pack(const AttentionArgs& a, int64_t b, int64_t h, const KeyRange& keys, float* workspace) {
  const HeadTiles tiles(a.width);
  const int64_t steps = divide_up(keys.count, kInner), padded_width = tiles.inner * kInner;
  const auto take = [&](int64_t floats_of_a_step) {
    float* taken = workspace;
    workspace += steps * floats_of_a_step;
    return taken;
  };
  const auto take_sets = [&](int64_t sets) { return reinterpret_cast<uint32_t*>(take(sets * C::kInputSet)); };
  Packed p{keys, tiles, steps, padded_width, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  p.key_sets = take_sets(2 * tiles.inner), p.value_sets = take_sets(2 * tiles.inner), p.key_columns = take_sets(tiles.rows);
  p.key_sums = take(kInner * padded_width), p.value_sums = take(kInner * padded_width);
  p.exponentials = take(kStep), p.grads = take(kStep);
  p.factors = a.dropout_p > 0.0 ? take(kStep) : nullptr;
  p.positions = reinterpret_cast<int32_t*>(take(kInner));

  alignas(64) float rows[kLanes * kAttentionMaxWidth];
  for (int64_t step = 0; step < steps; ++step) {
    load_step(a, a.key, b, h, keys, step, padded_width, rows);
    pack_step<C::kInputs>(rows, padded_width, tiles, p.key_sets + step * 2 * tiles.inner * C::kInputSet);
    pack_outer_transposed<C::kInputs>(rows, padded_width, tiles.rows * kTile, p.key_columns + step * tiles.rows * C::kInputSet);
    load_step(a, a.value, b, h, keys, step, padded_width, rows);
    pack_step<C::kInputs>(rows, padded_width, tiles, p.value_sets + step * 2 * tiles.inner * C::kInputSet);
  }
  pack_step_positions(keys, p.positions);
  for (int64_t i = 0; i < steps * kInner * padded_width; i += W) store(p.key_sums + i, F{}), store(p.value_sums + i, F{});
  return p;
}

// One group of queries and the gradients of their outputs, packed both ways round.
template <int P>
struct Queries {
  alignas(64) uint32_t lanes[2 * kAttentionMaxWidth / kInner * kTileSet<P>];       // [half][chunk], the width inside; times scale
  alignas(64) uint32_t grad_lanes[2 * kAttentionMaxWidth / kInner * kTileSet<P>];  // likewise, divided by the query's sum of exponentials
  alignas(64) uint32_t rows[kAttentionMaxWidth / kTile * kTileSet<P>];             // [tile of the width], the lanes inside
  alignas(64) uint32_t grad_rows[kAttentionMaxWidth / kTile * kTileSet<P>];        // likewise
  F largest[2];                                                                    // score; +inf makes every exponential 0
  F total[2];                                                                      // sum of exponentials; 1 where there is none

  void pack(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, const HeadTiles& tiles, int64_t padded_width) {
    alignas(64) float query[kLanes * kAttentionMaxWidth], grad[kLanes * kAttentionMaxWidth], top[kLanes], totals[kLanes];
    load_queries(a, a.query, b, h, t0, valid, a.scale, padded_width, query);
    load_queries(a, a.grad_out, b, h, t0, valid, 1.f, padded_width, grad);
    const float* statistics = a.statistics + (b * a.heads + h) * a.queries + t0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const float sum = lane < valid ? statistics[a.batch * a.heads * a.queries + lane] : 0.f;
      const bool none = sum == 0.f;  // no query, or one that sees nothing: it takes no part, whatever its row and its gradient hold
      top[lane] = none ? kInfinity : statistics[lane], totals[lane] = none ? 1.f : sum;
      for (int64_t d = lane * padded_width; d < (lane + 1) * padded_width; d += W) {
        if (none) store(query + d, F{});
        // Exponentials then serve as probabilities: all that they are multiplied with is divided by their sum.
        store(grad + d, none ? F{} : load(grad + d) / sum);
      }
    }
    for (int v = 0; v < 2; ++v) largest[v] = load(top + v * W), total[v] = load(totals + v * W);
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t row = half * kTile * padded_width, set = half * tiles.inner * kTileSet<P>;
      pack_inner_transposed<P>(query + row, padded_width, padded_width, lanes + set);
      pack_inner_transposed<P>(grad + row, padded_width, padded_width, grad_lanes + set);
    }
    pack_outer<P>(query, padded_width, tiles.rows * kTile, rows);
    pack_outer<P>(grad, padded_width, tiles.rows * kTile, grad_rows);
  }
};

// Of rows r and r + 16 of a step: exponentials from scores, and the sum of their products with the gradients of the probabilities.
template <int P>
EMC_INLINE void differentiate_values(float* exponentials, float* grads, const float* factors, int r, const Queries<P>& q, F (&sum)[2][2]) {
#pragma GCC unroll 2
  for (int k = 0; k < 2; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t i = (r + k * kTile) * kLanes + v * W;
      const F e = exponential<P>(load(exponentials + i) - q.largest[v]);
      F grad = load(grads + i);
      if (factors != nullptr) grad *= load(factors + i), store(grads + i, grad);
      store(exponentials + i, e);
      sum[k][v] += e * grad;
    }
}

// sums += product, of tiles [rows][vectors].
EMC_INLINE void accumulate(const float* product, float* sums, int64_t stride, int64_t rows, int64_t vectors) {
#pragma GCC unroll 2
  for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int64_t v = 0; v < 2; ++v)
      if (v < vectors) {
        float* place = sums + r * stride + v * W;
        store(place, load(place) + load(product + r * kLanes + v * W));
      }
}

// The three products that follow, each over all steps before the next begins: what one of them reads and sums then stays in the first-level
// cache. kValue: grad_value += probabilities^T grad_out. kKey: grad_key += grads^T query, after gradients of the probabilities have
// become gradients of the scores. kQuery: grad_query^T += key^T grads.
enum class Sum { kValue, kKey, kQuery };

template <class C, Sum S>
class SumProduct {
 public:
  SumProduct(const Packed& packed, const Queries<C::kMade>& q, const F (&mean)[2], float* query_sums)
      : packed_(packed), q_(q), mean_{mean[0], mean[1]}, query_sums_(query_sums), last_(divide_up(packed.tiles.rows, 2) - 1) {}

  // The tile unit works on one step while the vector units pack the next.
  void run(int64_t begin, int64_t end) {
    if (begin >= end) return;
    for (int r = 0; r < kTile; ++r) pack(begin, r);
    for (int64_t step = begin; step < end; ++step) {
      for (int64_t pair = 0; pair < last_; ++pair) {
        part<0>(step, pair), part<1>(step, pair), part<2>(step, pair), part<3>(step, pair), part<4>(step, pair), part<5>(step, pair);
        replace(begin, step, pair);
      }
      const auto rows = [&](int from, int to) __attribute__((always_inline)) {
        if (step + 1 < end)
          for (int r = from; r < to; ++r) pack(step + 1, r);
      };
      part<0>(step, last_);
      rows(0, 3);
      part<1>(step, last_);
      rows(3, 6);
      part<2>(step, last_);
      rows(6, 9);
      part<3>(step, last_);
      rows(9, 12);
      part<4>(step, last_);
      rows(12, 14);
      part<5>(step, last_);
      rows(14, 16);
      replace(begin, step, last_);
    }
    add(end - 1, last_);
  }

 private:
  static constexpr int kMade = C::kMade;

  // Rows r and r + 16 of a step's probabilities or gradients.
  EMC_INLINE void pack(int64_t step, int r) {
    const float* exponentials = packed_.exponentials + step * kStep;
    float* grads = packed_.grads + step * kStep;
    Pieces<kMade> pieces[2][2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int64_t i = (r + k * kTile) * kLanes + v * W;
        F x;
        if constexpr (S == Sum::kValue) {
          x = load(exponentials + i);
          if (packed_.factors != nullptr) x *= load(packed_.factors + step * kStep + i);
        } else if constexpr (S == Sum::kKey) {
          x = load(exponentials + i) * (load(grads + i) - mean_[v]);
          store(grads + i, x);
        } else {
          x = load(grads + i);
        }
        pieces[k][v] = split<kMade>(x);
      }
    uint32_t* to = weights_[step % 2];
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      if constexpr (S == Sum::kQuery) {
        store_pieces<kMade>(to + n * C::kMadeSet, r, pieces[0][n], pieces[1][n]);
      } else {
        store_pieces<kMade>(to + n * C::kMadeSet, r, pieces[n][0], pieces[n][1]);
      }
    }
  }

  // Of one pair of tiles of the width.
  template <int N>
  EMC_INLINE void part(int64_t step, int64_t pair) const {
    const int64_t other = packed_.tiles.rows == 1 ? 0 : 1;  // of a head of one tile the second is not used
    const uint32_t* w = weights_[step % 2];
    if (N == 0) zero_tiles();
    if constexpr (S == Sum::kQuery) {
      const uint32_t* columns = packed_.key_columns + (step * packed_.tiles.rows + 2 * pair) * C::kInputSet;
      multiply_tiles<C::kInputs, kMade, N>(columns, columns + other * C::kInputSet, w, w + C::kMadeSet);
    } else {
      const uint32_t* rows = (S == Sum::kValue ? q_.grad_rows : q_.rows) + 2 * pair * C::kMadeSet;
      multiply_tiles<kMade, kMade, N>(w, w + C::kMadeSet, rows, rows + other * C::kMadeSet);
    }
  }

  EMC_INLINE void add(int64_t step, int64_t pair) const {
    const int64_t tiles = packed_.tiles.rows == 1 ? 1 : 2;
    if constexpr (S == Sum::kQuery) {
      accumulate(product_, query_sums_ + 2 * pair * kTile * kLanes, kLanes, tiles * kTile, 2);
    } else {
      float* sums = S == Sum::kValue ? packed_.value_sums : packed_.key_sums;
      accumulate(product_, sums + step * kInner * packed_.padded_width + 2 * pair * kTile, packed_.padded_width, kInner, tiles);
    }
  }
  // Adds the product that is there, stored a while ago, and stores this one.
  EMC_INLINE void replace(int64_t begin, int64_t step, int64_t pair) {
    if (pair > 0) {
      add(step, pair - 1);
    } else if (step > begin) {
      add(step - 1, last_);
    }
    store_tiles(product_, kLanes);
  }

  const Packed& packed_;
  const Queries<kMade>& q_;
  const F mean_[2];    // of probability times gradient
  float* query_sums_;  // [d][lane]
  const int64_t last_;
  alignas(64) uint32_t weights_[2][2 * C::kMadeSet];  // of two steps: [half of the keys], the lanes inside; for kQuery the other way round
  alignas(64) float product_[kLanes * kLanes];
};

// Queries t0 .. t0 + valid of one head: their grad_query, and their part of the sums for the keys. As in forward, the tile unit works on
// one step while the vector units work on another.
template <class C>
[[gnu::noinline]] void differentiate(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, const Packed& packed) {
  Queries<C::kMade> q;
  alignas(64) float sums[kAttentionMaxWidth * kLanes];  // [d][lane], of grad_query
  const int64_t padded_width = packed.padded_width, chunks = packed.tiles.inner;
  q.pack(a, b, h, t0, valid, packed.tiles, padded_width);
  for (int64_t i = 0; i < packed.tiles.rows * kTile * kLanes; i += W) store(sums + i, F{});

  const Lanes<2> lanes(a, t0, valid);
  const int64_t begin = lower_bound(packed.keys, lanes.first_min) / kInner;
  const int64_t end = divide_up(lower_bound(packed.keys, int64_t{lanes.last_max} + 1), kInner);
  if (packed.factors != nullptr)
    PairDropout<2>(a, b, h, t0).fill(packed.positions + begin * kInner, (end - begin) * kInner, packed.factors + begin * kStep);

  F mean[2] = {};
  const auto scores_of = [&](int64_t step) __attribute__((always_inline)) {
    return WidthProduct<C>{packed.key_sets + step * 2 * chunks * C::kInputSet, q.lanes, chunks};
  };
  const auto grads_of = [&](int64_t step) __attribute__((always_inline)) {
    return WidthProduct<C>{packed.value_sets + step * 2 * chunks * C::kInputSet, q.grad_lanes, chunks};
  };
  if (begin < end) {
    scores_of(begin).run(packed.exponentials + begin * kStep);
    grads_of(begin).run(packed.grads + begin * kStep);
  }
  for (int64_t step = begin; step < end; ++step) {
    const bool after = step + 1 < end;
    float *exponentials = packed.exponentials + step * kStep, *grads = packed.grads + step * kStep;
    const float* factors = packed.factors == nullptr ? nullptr : packed.factors + step * kStep;
    const WidthProduct<C> scores = scores_of(step + 1), next = grads_of(step + 1);
    F sum[2][2] = {};
    const auto row = [&](int r) __attribute__((always_inline)) { differentiate_values(exponentials, grads, factors, r, q, sum); };
    hide_step(lanes, packed.positions + step * kInner, exponentials);
    if (after) scores.template part<0>();
    row(0);
    if (after) scores.template part<1>();
    row(1);
    if (after) scores.template part<2>();
    row(2);
    if (after) scores.template part<3>();
    row(3);
    if (after) scores.template part<4>();
    row(4);
    if (after) scores.template part<5>();
    row(5);
    if (after) scores.store(exponentials + kStep), next.template part<0>();
    row(6);
    if (after) next.template part<1>();
    row(7);
    if (after) next.template part<2>();
    row(8);
    if (after) next.template part<3>();
    row(9);
    if (after) next.template part<4>();
    row(10);
    if (after) next.template part<5>();
    row(11);
    if (after) next.store(grads + kStep);
    row(12), row(13), row(14), row(15);
    for (int v = 0; v < 2; ++v) mean[v] += sum[0][v] + sum[1][v];
  }
  for (int v = 0; v < 2; ++v) mean[v] /= q.total[v];

  SumProduct<C, Sum::kValue>(packed, q, mean, sums).run(begin, end);
  SumProduct<C, Sum::kKey>(packed, q, mean, sums).run(begin, end);
  SumProduct<C, Sum::kQuery>(packed, q, mean, sums).run(begin, end);

  alignas(64) float rows[kLanes * kAttentionMaxWidth];
  transpose_lanes(sums, packed.tiles.rows, padded_width, rows);
  for (int lane = 0; lane < valid; ++lane) {
    float* row = rows + lane * padded_width;
    for (int64_t d = 0; d < a.width; d += W) store(row + d, load(row + d) * a.scale);
    store_row(a, a.grad_query, offset_of(a.grad_query, b, t0 + lane, h), row);
  }
}

void run(const AttentionArgs& a, int64_t task, float* workspace) {
  const int64_t chunks = attention_chunks(a), chunk = task % chunks, head = task / chunks, b = head / a.heads, h = head % a.heads;
  const int64_t begin = chunk * attention_chunk(a), end = least(begin + attention_chunk(a), a.queries);
  const KeyRange keys = keys_of(a, b, begin, end);
  if (!is_for_tiles(a, keys)) return v4::attention_backward_kernels.run(a, task, workspace);
  const TileRegisters registers;
  with_cut(a, [&](auto cut) {
    using C = decltype(cut);
    const Packed packed = pack<C>(a, b, h, keys, workspace);
    for (int64_t t = begin; t < end; t += kLanes) differentiate<C>(a, b, h, t, least(kLanes, end - t), packed);
    store_key_gradients(a, chunk, b, h, keys, packed.key_sums, packed.value_sums, packed.padded_width);
  });
}

void reduce(const AttentionArgs& a, int64_t head) { v4::attention_backward_kernels.reduce(a, head); }

}  // namespace

const AttentionBackwardKernels attention_backward_kernels = {workspace_floats, run, reduce};

}  // namespace EMC_ISA
}  // namespace emc
