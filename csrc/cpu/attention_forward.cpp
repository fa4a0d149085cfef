// Forward pass of fused attention: softmax(scale Q K^T) V by blocks of keys with an online softmax. The state of a query is a maximum, a
// sum and an output that is not yet divided by it; a thread's memory is O(S), and no T x S matrix exists.
#include "attention_dropout.h"

namespace emc::EMC_ISA {
namespace {

// Keys per block: their scores stay in the first-level cache between the product, the exponential and the second product.
constexpr int64_t kBlockPanels = 96 / kRows;
constexpr int64_t kBlock = kBlockPanels * kRows;

struct Packed {
  KeyRange keys;
  float* key_panels;
  float* value_panels;
  int32_t* positions;
};

Packed place(const AttentionArgs& a, const KeyRange& keys, float* workspace) {
  const int64_t size = round_up(round_up(keys.count, kRows) * a.width, 16);
  return {keys, workspace, workspace + size, reinterpret_cast<int32_t*>(workspace + 2 * size)};
}

int64_t workspace_floats(const AttentionArgs& a) {
  const int64_t keys = round_up(a.keys, kRows);
  return 2 * round_up(keys * a.width, 16) + keys;
}

// Scores of `panels` panels from `panel` on, [key][lane]; `largest` follows.
template <class Terms, int V>
inline void score(const Packed& packed, int64_t panel, int64_t panels, const float* queries, int64_t width, float scale,
                  const Lanes<V>& lanes, float* scores, F (&largest)[V]) {
  for (int64_t p = 0; p < panels; ++p, scores += kRows * V * W) {
    F tile[kRows][V];
    multiply_width<Terms, V>(packed.key_panels + (panel + p) * width * kRows, queries, width, tile);
    scale_pairs<Terms>(scale, tile);
    lanes.hide(packed.positions + (panel + p) * kRows, tile);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        largest[v] = max(tile[r][v], largest[v]);  // a NaN score compares false here and shows in the sum
        store(scores + (r * V + v) * W, tile[r][v]);
      }
  }
}

// scores = exp(scores - largest), and their sum into `total`: panel by panel and then block by block, so that long sums lose little.
template <int V>
inline void exponentiate(float* scores, int64_t panels, const F (&largest)[V], F (&total)[V]) {
  F block[V] = {};
  for (int64_t p = 0; p < panels; ++p) {
    F panel[V] = {};
    for (int r = 0; r < kRows; ++r, scores += V * W)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const F e = exp_nonpositive(load(scores + v * W) - largest[v]);
        panel[v] += e;
        store(scores + v * W, e);
      }
    for (int v = 0; v < V; ++v) block[v] += panel[v];
  }
  for (int v = 0; v < V; ++v) total[v] += block[v];
}

// Queries t0 .. t0 + valid of one head.
template <class Terms, int V>
void attend(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, const Packed& packed) {
  constexpr int kCount = V * W;
  alignas(64) float queries[kAttentionMaxWidth * kCount];  // [d][lane], times scale
  alignas(64) float sums[kAttentionMaxWidth * kCount];     // [d][lane]
  alignas(64) float scores[kBlock * kCount];               // [key][lane]
  alignas(64) float factors[kBlock * kCount];              // [key][lane], dropout
  alignas(64) float rows[kCount][kAttentionMaxWidth];
  const int64_t width = a.width;

  const float* asked[kCount];
  for (int lane = 0; lane < kCount; ++lane) asked[lane] = lane < valid ? row_of(a, a.query, b, t0 + lane, h, rows[lane]) : nullptr;
  pack_columns<Terms, V>(asked, rows, width, a.scale, queries);
  for (int64_t i = 0; i < width * kCount; i += W) store(sums + i, F{});

  const Lanes<V> lanes(a, t0, valid);
  const PairDropout<V> dropout(a, b, h, t0);
  const int64_t begin = lower_bound(packed.keys, lanes.first_min) / kRows;
  const int64_t end = divide_up(lower_bound(packed.keys, int64_t{lanes.last_max} + 1), kRows);
  F running[V], total[V];  // maximum and sum of exponentials
  for (int v = 0; v < V; ++v) running[v] = splat(kLowest), total[v] = F{};

  for (int64_t panel = begin; panel < end; panel += kBlockPanels) {
    const int64_t panels = least(kBlockPanels, end - panel), count = panels * kRows;
    F largest[V], decay[V];
    for (int v = 0; v < V; ++v) largest[v] = running[v];
    score<Terms, V>(packed, panel, panels, queries, elements<Terms>(width), a.scale, lanes, scores, largest);
    for (int v = 0; v < V; ++v) {
      decay[v] = exp_nonpositive(running[v] - largest[v]);
      running[v] = largest[v];
      total[v] *= decay[v];
    }
    exponentiate<V>(scores, panels, largest, total);
    if (dropout.active()) {  // after the sum: the softmax is that of all keys
      dropout.fill(packed.positions + panel * kRows, count, factors);
      for (int64_t i = 0; i < count * kCount; i += W) store(scores + i, load(scores + i) * load(factors + i));
    }
    pair_rows<Terms>(scores, count, kCount);
    multiply_all_keys<Terms, V>(packed.value_panels + panel * width * (kRows / Terms::kTerms), panels, width, scores, decay, sums);
  }

  alignas(64) float top[kCount], sum[kCount];
  for (int v = 0; v < V; ++v) store(top + v * W, running[v]), store(sum + v * W, total[v]);
  turn_to_rows<V>(sums, width, rows);
  for (int lane = 0; lane < valid; ++lane) store_result(a, b, h, t0 + lane, rows[lane], top[lane], sum[lane]);
}

template <class Terms>
void run_as(const AttentionArgs& a, int64_t task, float* workspace) {
  const int64_t chunks = attention_chunks(a), b = task / chunks / a.heads, h = task / chunks % a.heads;
  const int64_t begin = task % chunks * attention_chunk(a), end = least(begin + attention_chunk(a), a.queries);
  const Packed packed = place(a, keys_of(a, b, begin, end), workspace);
  pack_over_width<Terms>(a, a.key, b, h, packed.keys, packed.key_panels);
  pack_over_keys<Terms>(a, a.value, b, h, packed.keys, packed.value_panels);
  pack_positions(packed.keys, packed.positions);
  for (int64_t t = begin; t < end; t += kMaxLanes) {
    const int64_t valid = least(kMaxLanes, end - t);
    if (valid > W) {
      attend<Terms, 2>(a, b, h, t, valid, packed);
    } else {
      attend<Terms, 1>(a, b, h, t, valid, packed);
    }
  }
}

void run(const AttentionArgs& a, int64_t task, float* workspace) { (takes_pairs(a) ? run_as<Pairs> : run_as<Single>)(a, task, workspace); }

}  // namespace

const AttentionForwardKernels attention_forward_kernels = {workspace_floats, run};

}  // namespace emc::EMC_ISA
