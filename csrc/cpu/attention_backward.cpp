// Backward pass of fused attention: probabilities are made again from each query's maximum and sum, then, with delta = rowsum(grad_out *
// out),
//   grad_value = P^T grad_out,  grad_score = P * (grad_out V^T - delta),  grad_query = scale grad_score K,  grad_key = scale grad_score^T
//   Q.
// A task owns its queries' gradients; those of keys and values are summed over its queries in order, and over tasks by `reduce`, in order.
#include "attention_dropout.h"

namespace emc::EMC_ISA {
namespace {

// Keys per block: smaller than in the forward pass, for there are two blocks of probabilities and four packed operands.
constexpr int64_t kBlockPanels = 48 / kRows;
constexpr int64_t kBlock = kBlockPanels * kRows;

struct Packed {
  KeyRange keys;
  int64_t padded_width;  // of the sums' rows, a whole number of vectors
  float* key_panels;
  float* value_panels;
  float* key_sums;    // [key][padded width]
  float* value_sums;  // [key][padded width]
  int32_t* positions;
};

Packed place(const AttentionArgs& a, const KeyRange& keys, float* workspace) {
  const int64_t count = round_up(keys.count, kRows), padded_width = round_up(a.width, W);
  const int64_t panels = round_up(count * a.width, 16), sums = round_up(count * padded_width, 16);
  float* key_sums = workspace + 2 * panels;
  return {keys, padded_width, workspace, workspace + panels, key_sums, key_sums + sums, reinterpret_cast<int32_t*>(key_sums + 2 * sums)};
}

int64_t workspace_floats(const AttentionArgs& a) {
  const int64_t keys = round_up(a.keys, kRows);
  return 2 * round_up(keys * a.width, 16) + 2 * round_up(keys * round_up(a.width, W), 16) + keys;
}

// One group of queries, packed both ways round.
template <int V>
struct Queries {
  static constexpr int kCount = V * W;
  alignas(64) float query_columns[kAttentionMaxWidth * kCount];  // [d][lane], times scale * log2(e)
  alignas(64) float grad_columns[kAttentionMaxWidth * kCount];   // [d][lane], divided by the query's sum of exponentials
  alignas(64) float query_rows[kCount * kAttentionMaxWidth];     // [lane][padded width]
  alignas(64) float grad_rows[kCount * kAttentionMaxWidth];      // [lane][padded width], divided likewise
  alignas(64) float sums[kAttentionMaxWidth * kCount];           // [d][lane], of grad_query
  F largest[V];                                                  // score; +inf makes every probability 0
  F delta[V];

  void pack(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, int64_t padded_width) {
    alignas(64) float out[kAttentionMaxWidth], top[kCount];
    const int64_t first = (b * a.heads + h) * a.queries + t0, sums_of_exponentials = a.batch * a.heads * a.queries;
    for (int lane = 0; lane < kCount; ++lane) {
      float *query = query_rows + lane * padded_width, *grad = grad_rows + lane * padded_width;
      const int64_t t = t0 + lane;
      const float total = lane < valid ? a.statistics[sums_of_exponentials + first + lane] : 0.f;
      if (total == 0.f) {  // no query, or one that sees nothing: it takes no part, whatever its row and its gradient hold
        top[lane] = kInfinity;
        for (int64_t d = 0; d < padded_width; d += W) store(query + d, F{}), store(grad + d, F{}), store(out + d, F{});
      } else {
        top[lane] = a.statistics[first + lane];
        load_row(a, a.query, offset_of(a.query, b, t, h), query);
        load_row(a, a.grad_out, offset_of(a.grad_out, b, t, h), grad);
        load_row(a, a.out, offset_of(a.out, b, t, h), out);
        // Exponentials then serve as probabilities: their sum divides every product that they enter.
        for (int64_t d = 0; d < padded_width; d += W) store(grad + d, load(grad + d) * (1.f / total));
      }
      for (int64_t d = 0; d < a.width; ++d) {
        query_columns[d * kCount + lane] = query[d] * (a.scale * kLog2E);
        grad_columns[d * kCount + lane] = grad[d];
        sums[d * kCount + lane] = out[d];
      }
    }
    // delta in the order of the product grad_out V^T: a query that sees one key has out = v, and its score's gradient is then exactly 0.
    for (int v = 0; v < V; ++v) {
      largest[v] = load(top + v * W);
      delta[v] = F{};
      for (int64_t d = 0; d < a.width; ++d) delta[v] += load(sums + d * kCount + v * W) * load(grad_columns + d * kCount + v * W);
    }
    for (int64_t i = 0; i < a.width * kCount; i += W) store(sums + i, F{});
  }
};

// Probabilities (after dropout) and gradients of the scores of one panel, [key][lane] each.
template <int V>
inline void differentiate(const Packed& packed, int64_t panel, const Queries<V>& q, int64_t width, const Lanes<V>& lanes,
                          const float* factors, float* probabilities, float* grads) {
  F tile[kRows][V];
  multiply_width<V>(packed.key_panels + panel * width * kRows, q.query_columns, width, tile);
  lanes.hide(packed.positions + panel * kRows, tile);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(probabilities + (r * V + v) * W, exp2_nonpositive(tile[r][v] - q.largest[v]));
  multiply_width<V>(packed.value_panels + panel * width * kRows, q.grad_columns, width, tile);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t place = (r * V + v) * W;
      const F p = load(probabilities + place);
      if (factors == nullptr) {
        store(grads + place, p * (tile[r][v] - q.delta[v]));
      } else {
        const F factor = load(factors + place);
        store(grads + place, p * (tile[r][v] * factor - q.delta[v]));
        store(probabilities + place, p * factor);
      }
    }
}

// sums[r][c] += sum over lanes of weights[r][lane] * rows[lane][c]: kRows keys, C vectors of the width.
template <int C, int V>
inline void multiply_lanes(const float* weights, const float* rows, int64_t padded_width, float* sums) {
  F tile[kRows][C];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) tile[r][c] = load(sums + r * padded_width + c * W);
  for (int lane = 0; lane < V * W; ++lane, rows += padded_width) {
    F column[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) column[c] = load(rows + c * W);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F weight = splat(weights[r * V * W + lane]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) tile[r][c] += weight * column[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(sums + r * padded_width + c * W, tile[r][c]);
}

template <int V>
inline void multiply_all_lanes(const float* weights, const float* rows, int64_t padded_width, float* sums) {
  int64_t d = 0;
  for (; d + 2 * W <= padded_width; d += 2 * W) multiply_lanes<2, V>(weights, rows + d, padded_width, sums + d);
  if (d < padded_width) multiply_lanes<1, V>(weights, rows + d, padded_width, sums + d);
}

// Queries t0 .. t0 + valid of one head: their grad_query, and their part of the sums for the keys.
template <int V>
void differentiate_queries(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0, int64_t valid, const Packed& packed) {
  constexpr int kCount = V * W;
  Queries<V> q;
  alignas(64) float probabilities[kBlock * kCount], grads[kBlock * kCount], factors[kBlock * kCount];
  const int64_t width = a.width, padded_width = packed.padded_width;
  q.pack(a, b, h, t0, valid, padded_width);

  const Lanes<V> lanes(a, t0, valid);
  const PairDropout<V> dropout(a, b, h, t0);
  const int64_t begin = lower_bound(packed.keys, lanes.first_min) / kRows;
  const int64_t end = divide_up(lower_bound(packed.keys, int64_t{lanes.last_max} + 1), kRows);
  F one[V];
  for (int v = 0; v < V; ++v) one[v] = splat(1.f);
  for (int64_t panel = begin; panel < end; panel += kBlockPanels) {
    const int64_t panels = least(kBlockPanels, end - panel);
    if (dropout.active()) dropout.fill(packed.positions + panel * kRows, panels * kRows, factors);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t place = p * kRows * kCount;
      differentiate<V>(packed, panel + p, q, width, lanes, dropout.active() ? factors + place : nullptr, probabilities + place,
                       grads + place);
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t place = p * kRows * kCount, sums = (panel + p) * kRows * padded_width;
      multiply_all_lanes<V>(probabilities + place, q.grad_rows, padded_width, packed.value_sums + sums);
      multiply_all_lanes<V>(grads + place, q.query_rows, padded_width, packed.key_sums + sums);
    }
    multiply_all_keys<V>(packed.key_panels + panel * width * kRows, panels, width, grads, one, q.sums);
  }

  alignas(64) float row[kAttentionMaxWidth];
  for (int lane = 0; lane < valid; ++lane) {
    for (int64_t d = 0; d < width; ++d) row[d] = q.sums[d * kCount + lane] * a.scale;
    store_row(a, a.grad_query, offset_of(a.grad_query, b, t0 + lane, h), row);
  }
}

// All keys' rows of one head in order: those that took part from `sums`, zero for the others.
template <class Store>
inline void for_each_key(const AttentionArgs& a, const KeyRange& keys, Store store_one) {
  int64_t i = 0;
  for (int64_t s = 0; s < a.keys; ++s) {
    const bool seen = i < keys.count && keys.index[i] == s;
    store_one(s, seen ? i : -1);
    i += seen;
  }
}

void run(const AttentionArgs& a, int64_t task, float* workspace) {
  const int64_t chunks = attention_chunks(a), chunk = task % chunks, head = task / chunks, b = head / a.heads, h = head % a.heads;
  const int64_t begin = chunk * kAttentionChunk, end = least(begin + kAttentionChunk, a.queries), width = a.width;
  const Packed packed = place(a, keys_of(a, b, begin, end), workspace);
  const int64_t padded_width = packed.padded_width, sums = round_up(packed.keys.count, kRows) * padded_width;
  pack_panels(a, a.key, b, h, packed.keys, packed.key_panels);
  pack_panels(a, a.value, b, h, packed.keys, packed.value_panels);
  pack_positions(packed.keys, packed.positions);
  for (int64_t i = 0; i < sums; i += W) store(packed.key_sums + i, F{}), store(packed.value_sums + i, F{});

  for (int64_t t = begin; t < end; t += kMaxLanes) {
    const int64_t valid = least(kMaxLanes, end - t);
    if (valid > W) {
      differentiate_queries<2>(a, b, h, t, valid, packed);
    } else {
      differentiate_queries<1>(a, b, h, t, valid, packed);
    }
  }

  alignas(64) float zeros[kAttentionMaxWidth] = {};
  for (int64_t i = 0; i < packed.keys.count * padded_width; i += W) store(packed.key_sums + i, load(packed.key_sums + i) * a.scale);
  float* partial = chunks == 1 ? nullptr : a.partial + (chunk * a.batch * a.heads + head) * 2 * a.keys * width;
  for_each_key(a, packed.keys, [&](int64_t s, int64_t i) {
    const float* key = i < 0 ? zeros : packed.key_sums + i * padded_width;
    const float* value = i < 0 ? zeros : packed.value_sums + i * padded_width;
    if (partial == nullptr) {
      store_row(a, a.grad_key, offset_of(a.grad_key, b, s, h), key);
      store_row(a, a.grad_value, offset_of(a.grad_value, b, s, h), value);
    } else {
      std::memcpy(partial + s * width, key, static_cast<size_t>(width) * sizeof(float));
      std::memcpy(partial + (a.keys + s) * width, value, static_cast<size_t>(width) * sizeof(float));
    }
  });
}

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
