// Bodies for the wrappers of csrc/cuda/ptx.cuh.
#pragma once

namespace emc::cuda {

inline float half_to_float(unsigned short bits) {
  _Float16 h;
  std::memcpy(&h, &bits, sizeof h);
  return static_cast<float>(h);
}
inline unsigned short float_to_half(float x) {
  const auto h = static_cast<_Float16>(x);
  unsigned short bits;
  std::memcpy(&bits, &h, sizeof bits);
  return bits;
}
inline float exp2_approximate(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

inline float bfloat_to_float(unsigned short bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
inline unsigned short float_to_bfloat(float x) {
  const unsigned bits = __float_as_uint(x);
  return static_cast<unsigned short>((x == x ? bits + 0x7fffu + (bits >> 16 & 1u) : bits | 0x400000u) >> 16);
}
inline unsigned pack_half(float low, float high) { return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16; }
inline unsigned pack_bfloat(float low, float high) { return float_to_bfloat(low) | static_cast<unsigned>(float_to_bfloat(high)) << 16; }

inline void check_row(const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emu::fail("a row for ldmatrix is not aligned to 16 bytes");
  if (!emu::in_shared(row, 16)) emu::fail("a row for ldmatrix is not in shared memory");
}
inline void load_matrices(unsigned (&x)[4], const void* row) {
  check_row(row);
  const emu::Brought<const void*> rows(emu::Meeting::kLoadMatrix, row);
  const unsigned lane = emu::current->lane;
  for (unsigned m = 0; m < 4; ++m) std::memcpy(&x[m], static_cast<const unsigned char*>(rows[8 * m + lane / 4]) + lane % 4 * 4, 4);
}
inline void load_matrices_transposed(unsigned (&x)[4], const void* row) {
  check_row(row);
  const emu::Brought<const void*> rows(emu::Meeting::kLoadMatrix, row);
  const unsigned lane = emu::current->lane;
  for (unsigned m = 0; m < 4; ++m) {
    unsigned short element[2];
    for (unsigned i = 0; i < 2; ++i)
      std::memcpy(&element[i], static_cast<const unsigned char*>(rows[8 * m + lane % 4 * 2 + i]) + lane / 4 * 2, 2);
    x[m] = element[0] | static_cast<unsigned>(element[1]) << 16;
  }
}

// From 8.0 on nothing arrives before it is waited for, as a GPU may have it at the worst.
template <class Whole>
void copy_async(Whole* to, const Whole* from, bool there) {
  static_assert(sizeof(Whole) == 4 || sizeof(Whole) == 8 || sizeof(Whole) == 16);
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Whole) != 0 || (there && reinterpret_cast<uintptr_t>(from) % sizeof(Whole) != 0))
    emu::fail("a copy is not aligned to its size");
  if (!emu::in_shared(to, sizeof(Whole)) || (there && emu::in_shared(from, 1)))
    emu::fail("a copy does not go from global to shared memory");
  if (emu::capability >= 80) {
    emu::copy_later(to, there ? from : nullptr, sizeof(Whole));
  } else {
    *to = there ? *from : Whole{};
  }
}
inline void commit_copies() { emu::commit_copies(); }
template <int kLeft>
void wait_copies() {
  emu::wait_copies(kLeft);
}

// A lane's elements as the PTX manual numbers them, two to a register. The hardware adds in an order of its own and cuts sums off; this
// adds in float32, below 8.0 what comes of the first half of the terms before that of the second, as the two instructions there do.
template <float (*kToFloat)(unsigned short)>
float element(const unsigned* registers, int i) {
  return kToFloat(static_cast<unsigned short>(registers[i / 2] >> (i % 2 * 16)));
}

template <float (*kToFloat)(unsigned short)>
void multiply_16x8_as(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Mine {
    unsigned a[4], b[2];
    float c[4];
  };
  const Mine mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  emu::compute_together(mine, c, [](const emu::Brought<Mine>& all, auto& result) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Mine x = all[static_cast<unsigned>(lane)];
      const int group = lane / 4, within = lane % 4;
      for (int i = 0; i < 8; ++i) left[group + (i % 4 < 2 ? 0 : 8)][within * 2 + (i & 1) + (i < 4 ? 0 : 8)] = element<kToFloat>(x.a, i);
      for (int i = 0; i < 4; ++i) right[within * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = element<kToFloat>(x.b, i);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const Mine x = all[static_cast<unsigned>(lane)];
      for (int i = 0; i < 4; ++i) result[lane][i] = x.c[i];
    }
    const int terms = emu::capability >= 80 ? 16 : 8;
    for (int from = 0; from < 16; from += terms) {
      float product[16][8] = {};
      for (int row = 0; row < 16; ++row)
        for (int k = from; k < from + terms; ++k)
          for (int column = 0; column < 8; ++column) product[row][column] += left[row][k] * right[k][column];
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) result[lane][i] += product[lane / 4 + (i < 2 ? 0 : 8)][lane % 4 * 2 + (i & 1)];
    }
  });
}
inline void multiply_16x8(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  multiply_16x8_as<half_to_float>(c, a, b0, b1);
}
inline void multiply_bfloat_16x8(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  multiply_16x8_as<bfloat_to_float>(c, a, b0, b1);
}

template <bool kRows>
void multiply_8x8(float (&c)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  struct Mine {
    unsigned a[2], b[2];
    float c[8];
  };
  Mine mine = {{a0, a1}, {b0, b1}, {}};
  std::memcpy(mine.c, c, sizeof c);
  emu::compute_together(mine, c, [](const emu::Brought<Mine>& all, auto& result) {
    float left[4][8][4], right[4][4][8];  // of each quad pair
    for (int lane = 0; lane < 32; ++lane) {
      const Mine x = all[static_cast<unsigned>(lane)];
      const int pair = lane / 4 % 4, within = lane % 4, high = lane < 16 ? 0 : 4;
      for (int i = 0; i < 4; ++i) {
        left[pair][within + high][i] = element<half_to_float>(x.a, i);
        right[pair][kRows ? within : i][kRows ? i + high : within + high] = element<half_to_float>(x.b, i);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const Mine x = all[static_cast<unsigned>(lane)];
      const int pair = lane / 4 % 4, high = lane < 16 ? 0 : 4;
      for (int i = 0; i < 8; ++i) {
        const int row = (lane & 1) + (i & 2) + high, column = (i & 4) + (lane & 2) + (i & 1);
        float product = 0.0f;
        for (int k = 0; k < 4; ++k) product += left[pair][row][k] * right[pair][k][column];
        result[lane][i] = x.c[i] + product;
      }
    }
  });
}

}  // namespace emc::cuda
