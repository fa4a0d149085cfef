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
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(m)), v = (__m512i)a;
  const __m512i even = _mm512_mul_epu32(v, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), factor);
  *high = (U)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif defined(__AVX2__)
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
}

EMC_INLINE void philox(U c[4], uint32_t key_low, uint32_t key_high) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply_wide(c[0], 0xD2511F53u, &high0, &low0);
    multiply_wide(c[2], 0xCD9E8D57u, &high1, &low1);
    const U first = high1 ^ c[1] ^ key_low, third = high0 ^ c[3] ^ key_high;
    c[0] = first;
    c[1] = low1;
    c[2] = third;
    c[3] = low0;
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
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
  uint32_t key_low, key_high, r, stream;
  uint64_t block;  // of the row's first element
};

// Row of a tensor (*lead, T, d): `row` is the flat index over (*lead, T).
EMC_INLINE NoiseRow noise_row(const Noise& noise, int64_t row, int64_t width) {
  const int64_t lead = row / noise.frames, frame = row % noise.frames;
  const uint64_t seed = static_cast<uint64_t>(noise.seeds[lead / noise.rows_per_seed]);
  const uint64_t blocks = static_cast<uint64_t>((width + 3) / 4);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(lead % noise.rows_per_seed), noise.stream,
          static_cast<uint64_t>(frame + noise.frame_offset) * blocks};
}

// The four words of W blocks, lane-major.
EMC_INLINE void blocks(const NoiseRow& row, int64_t group, U w[4]) {
  const uint64_t n = row.block + static_cast<uint64_t>(group) * W;
  const U base = splat(static_cast<uint32_t>(n));
  w[0] = base + iota();
  w[1] = splat(static_cast<uint32_t>(n >> 32)) - (U)(w[0] < base);  // a comparison is -1: the carry
  w[2] = splat(row.r);
  w[3] = splat(row.stream);
  philox(w, row.key_low, row.key_high);
}

// (w >> 9 + 1/2) 2^-23: exact, never 0 or 1.
EMC_INLINE F uniform(U w) { return (__builtin_convertvector((I)(w >> 9), F) + 0.5f) * 0x1p-23f; }

// Words, uniforms and normals of elements [4 W group, 4 W (group + 1)) of a row, in order.
EMC_INLINE void words(const NoiseRow& row, int64_t group, U w[4]) {
  blocks(row, group, w);
  interleave(w);
}
EMC_INLINE void uniforms(const NoiseRow& row, int64_t group, F u[4]) {
  U w[4];
  words(row, group, w);
  for (int k = 0; k < 4; ++k) u[k] = uniform(w[k]);
}
EMC_INLINE void normals(const NoiseRow& row, int64_t group, F x[4]) {
  U w[4];
  blocks(row, group, w);
  for (int k = 0; k < 4; k += 2) {
    F sine, cosine;
    sincos_turns(uniform(w[k + 1]), &sine, &cosine);
    const F radius = sqrt(-2.f * log(uniform(w[k])));
    x[k] = radius * cosine;
    x[k + 1] = radius * sine;
  }
  interleave(x);
}

}  // namespace
}  // namespace emc::EMC_ISA
