// Philox4x32-10 (Salmon et al., SC 2011) on vectors, and the noise of a row as docs/operators.md defines it.
//
// One lane is one block of four words. A group is W consecutive blocks: 4 W consecutive elements of a row, given in their order.
#pragma once

#include "math.h"

namespace emc::EMC_ISA {
namespace {

constexpr int kGroup = 4 * W;  // elements of a group

EMC_INLINE void multiply_wide(U a, uint32_t m, U* high, U* low) {
#if defined(__AVX512F__)
  // Even and odd lanes by the port that multiplies, all moves by the one that shuffles; a product of 32 bits would be two more of the
  // former.
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(m)), v = (__m512i)a;
  const __m512i odd_lanes = _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(v)));
  const __m512i even = _mm512_mul_epu32(v, factor), odd = _mm512_mul_epu32(odd_lanes, factor);
  U upper, lower;
  for (int i = 0; i < W; ++i) {
    lower[i] = static_cast<uint32_t>(i % 2 * W + i / 2 * 2);
    upper[i] = lower[i] + 1;
  }
  *high = (U)_mm512_permutex2var_epi32(even, (__m512i)upper, odd);
  *low = (U)_mm512_permutex2var_epi32(even, (__m512i)lower, odd);
#else
#if defined(__AVX2__)
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(m)), v = (__m256i)a;
  const __m256i even = _mm256_mul_epu32(v, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), factor);
  *high = (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#elif defined(__SSE2__)
  const __m128i factor = _mm_set1_epi32(static_cast<int>(m)), v = (__m128i)a;
  const __m128i even = _mm_mul_epu32(v, factor), odd = _mm_mul_epu32(_mm_srli_epi64(v, 32), factor);
  const __m128i upper = _mm_set_epi32(-1, 0, -1, 0);
  *high = (U)_mm_or_si128(_mm_srli_epi64(even, 32), _mm_and_si128(odd, upper));
#else
  *high = __builtin_convertvector((__builtin_convertvector(a, U64) * static_cast<uint64_t>(m)) >> 32, U);
#endif
  *low = a * m;
#endif
}

// Both halves of the key of each round.
struct PhiloxKeys {
  uint32_t low[10] = {}, high[10] = {};

  PhiloxKeys() = default;
  EMC_INLINE explicit PhiloxKeys(uint64_t seed) {
    for (uint32_t round = 0; round < 10; ++round) {
      low[round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
      high[round] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
    }
  }
};

// N vectors of blocks at once: the products of one wait for each other, those of another fill the time.
template <int N>
EMC_INLINE void philox(U (&blocks)[N][4], const PhiloxKeys& keys) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      U* c = blocks[n];
      U high0, low0, high1, low1;
      multiply_wide(c[0], 0xD2511F53u, &high0, &low0);
      multiply_wide(c[2], 0xCD9E8D57u, &high1, &low1);
      c[0] = high1 ^ c[1] ^ keys.low[round];
      c[1] = low1;
      c[2] = high0 ^ c[3] ^ keys.high[round];
      c[3] = low0;
    }
}

// Lane-major to element order: v[k][lane] becomes element 4 * lane + k.
template <class V>
EMC_INLINE void interleave(V v[4]) {
  U low, high, first, second;
  for (int i = 0; i < W / 2; ++i) {
    low[2 * i] = static_cast<uint32_t>(i), low[2 * i + 1] = static_cast<uint32_t>(W + i);
    high[2 * i] = static_cast<uint32_t>(W / 2 + i), high[2 * i + 1] = static_cast<uint32_t>(W + W / 2 + i);
  }
  for (int i = 0; i < W; ++i) {
    const int pair = i / 4, inner = i % 4;
    first[i] = static_cast<uint32_t>((inner < 2 ? 0 : W) + 2 * pair + inner % 2);
    second[i] = first[i] + static_cast<uint32_t>(W / 2);
  }
  const V a = shuffle(v[0], v[1], low), b = shuffle(v[0], v[1], high);
  const V c = shuffle(v[2], v[3], low), d = shuffle(v[2], v[3], high);
  v[0] = shuffle(a, c, first);
  v[1] = shuffle(a, c, second);
  v[2] = shuffle(b, d, first);
  v[3] = shuffle(b, d, second);
}

// Where the noise of one row begins.
struct NoiseRow {
  PhiloxKeys keys;
  uint32_t r, stream;
  uint64_t block;  // of the row's first element
};

// Row of a tensor (*lead, T, d): `row` is the flat index over (*lead, T).
EMC_INLINE NoiseRow noise_row(const Noise& noise, int64_t row, int64_t width) {
  const int64_t lead = row / noise.frames, frame = row % noise.frames;
  const uint64_t seed = static_cast<uint64_t>(noise.seeds[lead / noise.rows_per_seed]);
  const uint64_t blocks = static_cast<uint64_t>((width + 3) / 4);
  return {PhiloxKeys(seed), static_cast<uint32_t>(lead % noise.rows_per_seed), noise.stream,
          static_cast<uint64_t>(frame + noise.frame_offset) * blocks};
}

// The rows from `begin` to `end` one after the other, without the divisions.
class NoiseRows {
 public:
  NoiseRows(const Noise& noise, int64_t width, int64_t begin, int64_t end) : noise_(noise), width_(width), row_(begin), end_(end) {
    if (begin < end) start();
  }
  EMC_INLINE const NoiseRow& now() const { return now_; }
  EMC_INLINE void next() {
    ++row_, now_.block += static_cast<uint64_t>((width_ + 3) / 4);
    if (--left_ == 0 && row_ < end_) start();
  }

 private:
  void start() {
    now_ = noise_row(noise_, row_, width_);
    left_ = noise_.frames - row_ % noise_.frames;
  }

  const Noise& noise_;
  int64_t width_, row_, end_, left_ = 0;  // left: frames of this leading index
  NoiseRow now_;
};

// The words of N times W blocks, lane-major.
template <int N>
EMC_INLINE void blocks(const NoiseRow& row, int64_t group, U (&w)[N][4]) {
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    const uint64_t block = row.block + static_cast<uint64_t>(group + n) * W;
    const U base = splat(static_cast<uint32_t>(block));
    w[n][0] = base + iota();
    w[n][1] = splat(static_cast<uint32_t>(block >> 32)) - (U)(w[n][0] < base);  // a comparison is -1: the carry
    w[n][2] = splat(row.r);
    w[n][3] = splat(row.stream);
  }
  philox(w, row.keys);
}

// (w >> 9 + 1/2) 2^-23: exact, never 0 or 1.
EMC_INLINE F uniform(U w) { return (__builtin_convertvector((I)(w >> 9), F) + 0.5f) * 0x1p-23f; }

// sin and cos of 2 pi uniform(w). In 2^-32 of a turn a uniform is an integer, so the nearest quarter and what is left of it are bits of it.
EMC_INLINE void sincos_uniform(U w, F* sine, F* cosine) {
  const U turns = (w & ~511u) | 256u;
  const F left = __builtin_convertvector((I)(turns << 2), F);  // exact: of 2^-34 of a turn
  const U quarter = turns + 0x20000000u;                       // its number stands in the two highest bits
  F s, c;
  sincos_eighth(left * (6.28318530717958648f * 0x1p-34f), &s, &c);
  const I odd = (I)(quarter << 1) < 0;
  *sine = (F)((U)select(odd, c, s) ^ (quarter & 0x80000000u));
  *cosine = (F)((U)select(odd, s, c) ^ ((quarter + 0x40000000u) & 0x80000000u));
}

// Words, uniforms and normals of elements [4 W group, 4 W (group + N)) of a row, in order.
template <int N>
EMC_INLINE void words(const NoiseRow& row, int64_t group, U (&w)[N][4]) {
  blocks(row, group, w);
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) interleave(w[n]);
}
template <int N>
EMC_INLINE void uniforms(const NoiseRow& row, int64_t group, F (&u)[N][4]) {
  U w[N][4];
  words(row, group, w);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < 4; ++k) u[n][k] = uniform(w[n][k]);
}
template <int N>
EMC_INLINE void normals(const NoiseRow& row, int64_t group, F (&x)[N][4]) {
  U w[N][4];
  blocks(row, group, w);
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    for (int k = 0; k < 4; k += 2) {
      F sine, cosine;
      sincos_uniform(w[n][k + 1], &sine, &cosine);
      const F radius = sqrt(-2.f * log_normal_number(uniform(w[n][k])));
      x[n][k] = radius * cosine;
      x[n][k + 1] = radius * sine;
    }
    interleave(x[n]);
  }
}

// Calls body(Number<N>(), group) for the groups of a row, N of them from `group` on: two where the registers hold both.
template <class Body>
EMC_INLINE void for_groups(int64_t width, const Body& body) {
  int64_t group = 0;
  if constexpr (W == 16)
    for (; (group + 1) * kGroup < width; group += 2) body(Number<2>(), group);
  for (; group * kGroup < width; ++group) body(Number<1>(), group);
}

}  // namespace
}  // namespace emc::EMC_ISA
