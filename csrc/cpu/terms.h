// How products of float32 are added up: term by term, or two terms at a time as bfloat16, where the processor has such products and the
// caller asks for no more. Packed operands then have pairs of terms in the place of floats: 32 bits either way, so that loops over packed
// operands are written once.
#pragma once

#include "simd.h"

namespace emc::EMC_ISA {
namespace {

struct Single {
  static constexpr int kTerms = 1;  // in an element
  EMC_INLINE static F multiply_add(F a, F b, F sum) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static constexpr int kTerms = 2;
  EMC_INLINE static F multiply_add(F a, F b, F sum) { return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }

  // Element i is the pair of first[i] and second[i], rounded to nearest; NaN stays.
  EMC_INLINE static F of(F first, F second) {
    alignas(64) static constexpr uint16_t kDealt[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (F)_mm512_permutexvar_epi16(_mm512_load_si512(kDealt), rounded);
  }
  // Elements 2i and 2i + 1 of a row of `count` become its element i, in whole vectors; zeros fill the last. May be done in place.
  EMC_INLINE static void along(const float* row, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 2 * W, to += W) {
      const F first = load_some(row + i, 1, count - i), second = count - i > W ? load_some(row + i + W, 1, count - i - W) : F{};
      store(to, (F)(__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
    }
  }
};
constexpr bool kHasPairs = true;
#else
using Pairs = Single;
constexpr bool kHasPairs = false;
#endif

}  // namespace
}  // namespace emc::EMC_ISA
