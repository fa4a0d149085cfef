// Backward pass of fused attention. Probabilities are made again from each query's largest score and sum; then, with the sums over keys,
//   grad_value = P^T grad_out,               grad_p = grad_out V^T,             grad_score = P * (grad_p - sum(P * grad_p)),
//   grad_query = scale grad_score K,         grad_key = scale grad_score^T Q.
// The inner sum is that of the very products it is subtracted from, over a group of queries' whole rows, which a thread keeps: O(S) memory.
// (The usual rowsum(grad_out * out) needs no rows, but its own rounding errors then enter the gradients of all keys alike.)
// A task owns its queries' gradients; those of keys and values are summed over its queries in order, and over tasks by `reduce`, in order.
#include "attention_dropout.h"

namespace emc::EMC_ISA {
namespace {

// Keys per block of the products that follow the softmax's gradient.
constexpr int64_t kBlockPanels = 48 / kRows;

struct Packed {
  KeyRange keys;
  int64_t padded_width;  // of the sums' rows, a whole number of vectors
  float* key_panels;     // to be multiplied over the keys
  float* key_factors;    // to be multiplied over the width: the same, unless terms come in pairs
  float* value_factors;  // likewise
  float* key_sums;       // [key][padded width]
  float* value_sums;     // [key][padded width]
  float* exponentials;   // [key][lane], of one group of queries
  float* grads;          // [key][lane], likewise
  float* factors;        // [key][lane], dropout
  int32_t* positions;
};

int64_t rows_floats(int64_t keys) { return round_up(keys, kRows) * kMaxLanes; }

Packed place(const AttentionArgs& a, const KeyRange& keys, float* workspace) {
  const int64_t count = round_up(keys.count, kRows), padded_width = round_up(a.width, W);
  const auto take = [&workspace](int64_t floats) {
    float* taken = workspace;
    workspace += round_up(floats, 16);
    return taken;
  };
  Packed p{keys, padded_width, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  p.key_panels = take(count * a.width), p.value_factors = take(count * a.width);
  p.key_factors = takes_pairs(a) ? take(count * a.width) : p.key_panels;
  p.key_sums = take(count * padded_width), p.value_sums = take(count * padded_width);
  p.exponentials = take(rows_floats(keys.count)), p.grads = take(rows_floats(keys.count));
  p.factors = a.dropout_p > 0.0 ? take(rows_floats(keys.count)) : nullptr;
  p.positions = reinterpret_cast<int32_t*>(take(count));
  return p;
}

int64_t workspace_floats(const AttentionArgs& a) {
  const int64_t count = round_up(a.keys, kRows);
  return 3 * count * a.width + 2 * count * round_up(a.width, W) + 3 * rows_floats(a.keys) + count + 9 * 16;
}

// One group of queries, packed both ways round.
template <class Terms, int V>
struct Queries {
  static constexpr int kCount = V * W;
  alignas(64) float query_columns[kAttentionMaxWidth * kCount];  // [d][lane], times scale; or pairs along d
  alignas(64) float grad_columns[kAttentionMaxWidth * kCount];   // [d][lane], divided by the query's sum of exponentials; likewise
  alignas(64) float query_rows[kCount * kAttentionMaxWidth];     // [lane][padded width]; or pairs of lanes
  alignas(64) float grad_rows[kCount * kAttentionMaxWidth];      // [lane][padded width], divided likewise; likewise
  F largest[V];                                                  // score; +inf makes every exponential 0
  F total[V];                                                    // sum of exponentials; 1 where there is none

  void pack(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, int64_t padded_width) {
    alignas(64) float top[kCount], totals[kCount];
    const float *queries[kCount], *grads[kCount];
    const float* statistics = a.statistics + (b * a.heads + h) * a.queries + t0;
    for (int lane = 0; lane < kCount; ++lane) {
      float *query = query_rows + lane * padded_width, *grad = grad_rows + lane * padded_width;
      const float total = lane < valid ? statistics[a.batch * a.heads * a.queries + lane] : 0.f;
      if (total == 0.f) {  // no query, or one that sees nothing: it takes no part, whatever its row and its gradient hold
        top[lane] = kInfinity, totals[lane] = 1.f;
        for (int64_t d = 0; d < padded_width; d += W) store(query + d, F{}), store(grad + d, F{});
      } else {
        top[lane] = statistics[lane], totals[lane] = total;
        load_row(a, a.query, offset_of(a.query, b, t0 + lane, h), query);
        load_row(a, a.grad_out, offset_of(a.grad_out, b, t0 + lane, h), grad);
        // Exponentials then serve as probabilities: all that they are multiplied with is divided by their sum.
        for (int64_t d = 0; d < padded_width; d += W) store(grad + d, load(grad + d) / total);
      }
      queries[lane] = query, grads[lane] = grad;
    }
    alignas(64) float copies[kCount][kAttentionMaxWidth];
    pack_columns<Terms, V>(queries, copies, a.width, a.scale, query_columns);
    pack_columns<Terms, V>(grads, copies, a.width, 1.f, grad_columns);
    pair_rows<Terms>(query_rows, kCount, padded_width), pair_rows<Terms>(grad_rows, kCount, padded_width);
    for (int v = 0; v < V; ++v) largest[v] = load(top + v * W), total[v] = load(totals + v * W);
  }
};

// Exponentials of one panel and the gradients of its probabilities; the sum of their products is added to `total`.
template <class Terms, int V>
inline void differentiate_values(const Packed& packed, int64_t panel, const Queries<Terms, V>& q, int64_t width, float scale,
                                 const Lanes<V>& lanes, F (&total)[V]) {
  const int64_t place = panel * kRows * V * W;
  float *exponentials = packed.exponentials + place, *grads = packed.grads + place;
  F tile[kRows][V];
  multiply_width<Terms, V>(packed.key_factors + panel * width * kRows, q.query_columns, width, tile);
  scale_pairs<Terms>(scale, tile);
  lanes.hide(packed.positions + panel * kRows, tile);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(exponentials + (r * V + v) * W, exp_nonpositive(tile[r][v] - q.largest[v]));
  multiply_width<Terms, V>(packed.value_factors + panel * width * kRows, q.grad_columns, width, tile);
  F sum[V] = {};
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t i = (r * V + v) * W;
      const F grad = packed.factors == nullptr ? tile[r][v] : tile[r][v] * load(packed.factors + place + i);
      sum[v] += load(exponentials + i) * grad;
      store(grads + i, grad);
    }
  for (int v = 0; v < V; ++v) total[v] += sum[v];
}

// Of one panel: gradients of the probabilities into gradients of the scores, exponentials into probabilities after dropout.
template <int V>
inline void differentiate_softmax(const Packed& packed, int64_t panel, const F (&mean)[V]) {
  const int64_t place = panel * kRows * V * W;
  float *exponentials = packed.exponentials + place, *grads = packed.grads + place;
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t i = (r * V + v) * W;
      const F e = load(exponentials + i);
      store(grads + i, e * (load(grads + i) - mean[v]));
      if (packed.factors != nullptr) store(exponentials + i, e * load(packed.factors + place + i));
    }
}

// A panel's weights [key][lane] as they are multiplied over the lanes: as they stand, or in pairs along the lanes.
template <class Terms, int V>
struct Weights {
  static constexpr int kStep = Terms::kTerms == 1 ? V * W : W;
  alignas(64) float pairs[Terms::kTerms == 1 ? 1 : kRows * W];

  EMC_INLINE const float* of(const float* panel) {
    if constexpr (Terms::kTerms == 1) {
      return panel;
    } else {
      for (int r = 0; r < kRows; ++r) Terms::along(panel + r * V * W, V * W, pairs + r * W);
      return pairs;
    }
  }
};

// sums[r][c] += sum over lanes of weights[r][lane] * rows[lane][c]: kRows keys, C vectors of the width.
template <class Terms, int C, int V>
inline void multiply_lanes(const float* weights, const float* rows, int64_t padded_width, float* sums) {
  F tile[kRows][C];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) tile[r][c] = F{};
  for (int lane = 0; lane < V * W / Terms::kTerms; ++lane, rows += padded_width) {
    F column[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) column[c] = load(rows + c * W);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F weight = splat(weights[r * Weights<Terms, V>::kStep + lane]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) tile[r][c] = Terms::multiply_add(weight, column[c], tile[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      float* place = sums + r * padded_width + c * W;
      store(place, load(place) + tile[r][c]);
    }
}

template <class Terms, int V>
inline void multiply_all_lanes(const float* panel, const float* rows, int64_t padded_width, float* sums) {
  Weights<Terms, V> made;
  const float* weights = made.of(panel);
  int64_t d = 0;
  for (; d + 2 * W <= padded_width; d += 2 * W) multiply_lanes<Terms, 2, V>(weights, rows + d, padded_width, sums + d);
  if (d < padded_width) multiply_lanes<Terms, 1, V>(weights, rows + d, padded_width, sums + d);
}

// Queries t0 .. t0 + valid of one head: their grad_query, and their part of the sums for the keys.
template <class Terms, int V>
void differentiate(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, const Packed& packed) {
  constexpr int kCount = V * W;
  Queries<Terms, V> q;
  alignas(64) float sums[kAttentionMaxWidth * kCount];  // [d][lane], of grad_query
  const int64_t width = a.width, padded_width = packed.padded_width;
  q.pack(a, b, h, t0, valid, padded_width);
  for (int64_t i = 0; i < width * kCount; i += W) store(sums + i, F{});

  const Lanes<V> lanes(a, t0, valid);
  const int64_t begin = lower_bound(packed.keys, lanes.first_min) / kRows;
  const int64_t end = divide_up(lower_bound(packed.keys, int64_t{lanes.last_max} + 1), kRows);
  if (packed.factors != nullptr)
    PairDropout<V>(a, b, h, t0).fill(packed.positions + begin * kRows, (end - begin) * kRows, packed.factors + begin * kRows * kCount);
  F mean[V] = {}, one[V];
  for (int64_t block = begin; block < end; block += kBlockPanels) {
    F sum[V] = {};  // a block's sum is formed apart: long sums then lose little to rounding
    for (int64_t panel = block; panel < least(block + kBlockPanels, end); ++panel)
      differentiate_values<Terms, V>(packed, panel, q, elements<Terms>(width), a.scale, lanes, sum);
    for (int v = 0; v < V; ++v) mean[v] += sum[v];
  }
  for (int v = 0; v < V; ++v) mean[v] /= q.total[v], one[v] = splat(1.f);

  for (int64_t block = begin; block < end; block += kBlockPanels) {
    const int64_t last = least(block + kBlockPanels, end);
    for (int64_t panel = block; panel < last; ++panel) {
      const int64_t place = panel * kRows * kCount, key = panel * kRows * padded_width;
      differentiate_softmax<V>(packed, panel, mean);
      multiply_all_lanes<Terms, V>(packed.exponentials + place, q.grad_rows, padded_width, packed.value_sums + key);
      multiply_all_lanes<Terms, V>(packed.grads + place, q.query_rows, padded_width, packed.key_sums + key);
    }
    float* grads = packed.grads + block * kRows * kCount;
    pair_rows<Terms>(grads, (last - block) * kRows, kCount);
    multiply_all_keys<Terms, V>(packed.key_panels + block * width * (kRows / Terms::kTerms), last - block, width, grads, one, sums);
  }

  for (int64_t i = 0; i < width * kCount; i += W) store(sums + i, load(sums + i) * a.scale);
  alignas(64) float rows[kCount][kAttentionMaxWidth];
  turn_to_rows<V>(sums, width, rows);
  for (int lane = 0; lane < valid; ++lane) store_row(a, a.grad_query, offset_of(a.grad_query, b, t0 + lane, h), rows[lane]);
}

template <class Terms>
void run_as(const AttentionArgs& a, int64_t task, float* workspace) {
  const int64_t chunks = attention_chunks(a), chunk = task % chunks, head = task / chunks, b = head / a.heads, h = head % a.heads;
  const int64_t begin = chunk * attention_chunk(a), end = least(begin + attention_chunk(a), a.queries);
  const Packed packed = place(a, keys_of(a, b, begin, end), workspace);
  const int64_t padded_width = packed.padded_width, sums = round_up(packed.keys.count, kRows) * padded_width;
  pack_over_keys<Terms>(a, a.key, b, h, packed.keys, packed.key_panels);
  if (packed.key_factors != packed.key_panels) pack_over_width<Terms>(a, a.key, b, h, packed.keys, packed.key_factors);
  pack_over_width<Terms>(a, a.value, b, h, packed.keys, packed.value_factors);
  pack_positions(packed.keys, packed.positions);
  for (int64_t i = 0; i < sums; i += W) store(packed.key_sums + i, F{}), store(packed.value_sums + i, F{});

  for (int64_t t = begin; t < end; t += kMaxLanes) {
    const int64_t valid = least(kMaxLanes, end - t);
    if (valid > W) {
      differentiate<Terms, 2>(a, b, h, t, valid, packed);
    } else {
      differentiate<Terms, 1>(a, b, h, t, valid, packed);
    }
  }

  for (int64_t i = 0; i < packed.keys.count * padded_width; i += W) store(packed.key_sums + i, load(packed.key_sums + i) * a.scale);
  store_key_gradients(a, chunk, b, h, packed.keys, packed.key_sums, packed.value_sums, padded_width);
}

void run(const AttentionArgs& a, int64_t task, float* workspace) { (takes_pairs(a) ? run_as<Pairs> : run_as<Single>)(a, task, workspace); }

void reduce(const AttentionArgs& a, int64_t head) {
  const int64_t chunks = attention_chunks(a), b = head / a.heads, h = head % a.heads, width = a.width;
  const int64_t step = a.batch * a.heads * 2 * a.keys * width;
  alignas(64) float row[kAttentionMaxWidth];
  for (int64_t which = 0; which < 2; ++which) {
    const AttentionOperand& grad = which == 0 ? a.grad_key : a.grad_value;
    for (int64_t s = 0; s < a.keys; ++s) {
      const float* from = a.partial + ((head * 2 + which) * a.keys + s) * width;
      for (int64_t d = 0; d < width; d += W) {
        F total = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += load_some(from + chunk * step + d, 1, width - d);
        store(row + d, total);
      }
      store_row(a, grad, offset_of(grad, b, s, h), row);
    }
  }
}

}  // namespace

const AttentionBackwardKernels attention_backward_kernels = {workspace_floats, run, reduce};

}  // namespace emc::EMC_ISA
