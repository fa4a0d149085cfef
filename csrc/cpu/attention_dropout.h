// Attention's dropout, made again wherever it is needed: the factor 0 or 1 / (1 - p) of each (key, query) pair of a block, from the noise
// of the tensor (B,H,T,S) as docs/operators.md defines it.
#pragma once

#include "attention_tiles.h"
#include "philox.h"

namespace emc::EMC_ISA {
namespace {

template <int V>
class PairDropout {
 public:
  PairDropout(const AttentionArgs& a, int64_t b, int64_t h, int64_t t0) {
    active_ = a.dropout_p > 0.0;
    if (!active_) return;
    row_ = noise_row(a.noise, (b * a.heads + h) * a.queries, a.keys);
    bound_ = keep_from(a.dropout_p);
    scale_ = a.dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - a.dropout_p)) : 0.f;
    for (int v = 0; v < V; ++v)
      for (int lane = 0; lane < W; ++lane) {
        const uint64_t n = static_cast<uint64_t>(t0 + v * W + lane) * static_cast<uint64_t>((a.keys + 3) / 4);
        low_[v][lane] = static_cast<uint32_t>(n);
        high_[v][lane] = static_cast<uint32_t>(n >> 32);
      }
  }

  bool active() const { return active_; }

  // factors[key][lane] for `count` keys at ascending positions. Four neighbouring keys share a Philox block.
  void fill(const int32_t* position, int64_t count, float* factors) const {
    U words[V][4];
    int32_t made = -1;
    for (int64_t i = 0; i < count;) {
      const int32_t group = position[i] / 4, word = position[i] % 4;
      if (group != made) {
        made = group;
        make(group, words);
      }
      const bool whole = word == 0 && i + 4 <= count && position[i + 3] == position[i] + 3;
      if (whole) {  // the usual case, with constant places
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) store(factors + ((i + k) * V + v) * W, factor(words[v][k]));
      } else {
        for (int v = 0; v < V; ++v) store(factors + (i * V + v) * W, factor(words[v][word]));
      }
      i += whole ? 4 : 1;
    }
  }

 private:
  EMC_INLINE void make(int32_t group, U (&words)[V][4]) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      U* c = words[v];
      c[0] = low_[v] + static_cast<uint32_t>(group);
      c[1] = high_[v] - (U)(c[0] < low_[v]);  // a comparison is -1: the carry
      c[2] = splat(row_.r);
      c[3] = splat(row_.stream);
    }
    philox(words, row_.keys);
  }
  EMC_INLINE F factor(U word) const { return select((I)((word >> 9) >= bound_), splat(scale_), F{}); }

  bool active_ = false;
  NoiseRow row_ = {};
  uint32_t bound_ = 0;
  float scale_ = 0.f;
  U low_[V], high_[V];
};

}  // namespace
}  // namespace emc::EMC_ISA
