// What the kernels of both fusion losses share: walking rows, and exponentials whose parts stay apart.
#pragma once

#include "fusion_kl_kernels.h"
#include "simd.h"

namespace emc::EMC_ISA {
namespace {

// A position in the outer dimensions; divides only where a block begins.
class Cursor {
 public:
  EMC_INLINE Cursor(const FusionKl& args, int64_t row) : args_(args) {
    for (int d = args.walk.outer - 1; d >= 0; --d) {
      at_[d] = row % args.walk.sizes[d];
      row /= args.walk.sizes[d];
    }
  }
  EMC_INLINE void next() {
    for (int d = args_.walk.outer - 1; d >= 0; --d) {
      if (++at_[d] < args_.walk.sizes[d]) return;
      at_[d] = 0;
    }
  }
  template <class T>
  EMC_INLINE const T* row(const Operand& operand) const {
    int64_t offset = 0;
    for (int d = 0; d < args_.walk.outer; ++d) offset += at_[d] * operand.outer[d];
    return static_cast<const T*>(operand.data) + offset;
  }
  EMC_INLINE bool counts() const { return args_.mask.data == nullptr || *row<uint8_t>(args_.mask) != 0; }
  EMC_INLINE float grad() const { return *row<float>(args_.grad) / args_.divisor; }

 private:
  const FusionKl& args_;
  int64_t at_[Walk::kMaxOuter];
};

// Whether rows can be taken as one long row: none is left out or has a loss or a weight of its own.
EMC_INLINE bool together(const FusionKl& args) {
  if (args.mask.data != nullptr || args.row_loss != nullptr) return false;
  for (int d = 0; d < args.walk.outer; ++d)
    if (args.grad.outer[d] != 0) return false;
  return true;
}

// A row is taken in pieces. What is summed over a piece in float32 is added up in float64, so that a long row is as exact as a short one;
// and a piece with strides is gathered first, so that the arithmetic is compiled for dense rows alone.
constexpr int64_t kPiece = 16 * W;

template <class T>
__attribute__((noinline)) void gather(const T* from, int64_t stride, int64_t n, T* to) {
  if (stride == 1)
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
  else
    for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
}

// One row, or several that are taken as one. Memory is asked for ahead unless so little is computed that loads follow each other closely.
template <class T, int kInputs, bool kAsk>
class Row {
 public:
  EMC_INLINE Row(const FusionKl& args, const Cursor& cursor, int64_t rows) : args_(args), cursor_(cursor), width_(rows * args.walk.width) {
    for (int k = 0; k < kInputs; ++k) {
      const Operand& input = args.input[k];
      row_[k] = cursor.row<T>(input);
      dense_[k] = input.stride == 1 && (rows == 1 || (args.walk.outer == 1 && input.outer[0] == args.walk.width));
    }
  }
  // Calls visit(first element, count) for each piece, after which read(k, i, ...) gives its elements from i on.
  template <class Visit>
  EMC_INLINE void for_pieces(const Visit& visit) {
    bool dense = true;
    for (int k = 0; k < kInputs; ++k) dense = dense && dense_[k];
    Cursor cursor = cursor_;
    for (int64_t first = 0; first < width_; first += kPiece) {
      const int64_t n = width_ - first < kPiece ? width_ - first : kPiece;
      for (int k = 0; k < kInputs; ++k) at_[k] = dense_[k] ? row_[k] + first : gathered_[k];
      if (!dense) gather_piece(cursor, first, n);
      visit(first, n);
    }
  }
  // W elements, or the `left` that are left and zeros.
  EMC_INLINE void read(int64_t i, int64_t left, F (&x)[kInputs]) const {
    if constexpr (kAsk)
      for (int k = 0; k < kInputs; ++k) prefetch(at_[k] + i);
    if (__builtin_expect(left >= W, 1)) {
      for (int k = 0; k < kInputs; ++k) x[k] = load(at_[k] + i);
    } else {
      for (int k = 0; k < kInputs; ++k) x[k] = load_n(at_[k] + i, left);
    }
  }

 private:
  const FusionKl& args_;
  const Cursor& cursor_;
  const int64_t width_;
  bool dense_[kInputs];
  const T* row_[kInputs];
  const T* at_[kInputs];
  T gathered_[kInputs][kPiece];

  // `cursor` is at the row that the piece begins in, and then at the one that the next begins in.
  __attribute__((noinline)) void gather_piece(Cursor& cursor, int64_t first, int64_t n) {
    const int64_t width = args_.walk.width;
    for (int64_t i = 0, column = first % width; i < n;) {
      const int64_t take = width - column < n - i ? width - column : n - i;
      for (int k = 0; k < kInputs; ++k) {
        const Operand& input = args_.input[k];
        if (!dense_[k]) gather(cursor.row<T>(input) + column * input.stride, input.stride, take, gathered_[k] + i);
      }
      i += take;
      column += take;
      if (column == width) {
        column = 0;
        cursor.next();
      }
    }
  }
};

// The gradients of a row, each dense.
template <class T, int kOutputs>
struct Gradients {
  T* row[kOutputs];
  bool past;  // the caches

  EMC_INLINE void write(int64_t i, int64_t left, const F (&x)[kOutputs]) const {
    for (int k = 0; k < kOutputs; ++k) store_some(row[k] + i, x[k], left, past);
  }
};

// Forward over blocks: loss(cursor, row, rows) of each row that counts, or of all rows of a block at once.
template <class Loss>
EMC_INLINE void sum_blocks(const FusionKl& args, int64_t begin, int64_t end, bool at_once, const Loss& loss) {
  for (int64_t block = begin; block < end; ++block) {
    int64_t row = block * FusionKl::kRowsPerBlock;
    const int64_t last = row + FusionKl::kRowsPerBlock < args.walk.rows ? row + FusionKl::kRowsPerBlock : args.walk.rows;
    const int64_t rows = at_once ? last - row : 1;
    double sum = 0.0;
    for (Cursor cursor(args, row); row < last; row += rows, cursor.next()) {
      const double value = cursor.counts() ? loss(cursor, row, rows) : 0.0;
      if (args.row_loss != nullptr) args.row_loss[row] = static_cast<float>(value);
      sum += value;
    }
    if (args.block_loss != nullptr) args.block_loss[block] = sum;
  }
}

// Backward over blocks: differentiate(cursor, row, rows, out) of each row that counts, or of all rows at once; the gradients of the others
// are zero.
template <class T, int kInputs, class Differentiate>
EMC_INLINE void differentiate_blocks(const FusionKl& args, int64_t begin, int64_t end, bool at_once, const Differentiate& differentiate) {
  int64_t row = begin * FusionKl::kRowsPerBlock;
  const int64_t last = end * FusionKl::kRowsPerBlock < args.walk.rows ? end * FusionKl::kRowsPerBlock : args.walk.rows;
  const bool past = args.walk.rows * args.walk.width * kInputs * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
  const int64_t rows = at_once ? last - row : 1;
  for (Cursor cursor(args, row); row < last; row += rows, cursor.next()) {
    Gradients<T, kInputs> out;
    for (int k = 0; k < kInputs; ++k) out.row[k] = static_cast<T*>(args.grad_input[k]) + row * args.walk.width;
    out.past = past;
    if (cursor.counts()) {
      differentiate(cursor, row, rows, out);
    } else {
      for (int k = 0; k < kInputs; ++k) std::memset(out.row[k], 0, static_cast<size_t>(args.walk.width) * sizeof(T));
    }
  }
  finish_past(past);
}

// The nearest integer n to x, and 2^n if n is within [-126, 127].
struct Rounded {
  F shifted;  // adding 1.5 * 2^23 leaves no bit below the units: n stands in the low bits of the mantissa

  EMC_INLINE explicit Rounded(F x) : shifted(x + 0x1.8p23f) {}
  EMC_INLINE F integer() const { return shifted - 0x1.8p23f; }
  EMC_INLINE F power() const { return (F)(((U)shifted << 23) + 0x3f800000u); }
};

// Minimax polynomial of (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, highest power first; relative error 3e-9.
constexpr int kCurvatureTerms = 6;
constexpr float kCurvature[kCurvatureTerms] = {1.985780254e-4f, 1.393360668e-3f, 8.333360776e-3f, 4.166646674e-2f, 1.666666716e-1f, 0.5f};

// e^x = 2^n e^r with |r| <= ln 2 / 2, in parts: e^x - 1 and e^x - 1 - x are put together without the cancellation that a finished e^x
// brings.
struct Exponential {
  F scale;      // 2^n
  F integer;    // n
  F r;          // x - n ln 2; far from 0 where n had to be bounded
  F bounded;    // r, but not below -1: 2^n has already taken such a term below the last bit
  F curvature;  // e^r - 1 - r

  Exponential() = default;
  EMC_INLINE explicit Exponential(F x);
  // Of the sum of the exponents of two that are near, as exact as they are: (1 + q)(1 + q') = 1 + r + r' + (c + c' + q q').
  EMC_INLINE static Exponential product(const Exponential& a, const Exponential& b) {
    Exponential e;
    e.scale = a.scale * b.scale, e.integer = a.integer + b.integer;
    e.r = e.bounded = a.r + b.r;
    e.curvature = (a.r + a.curvature) * (b.r + b.curvature) + (a.curvature + b.curvature);
    return e;
  }

  // e^x of what is near
  EMC_INLINE F near_value() const { return scale * (1.0f + (bounded + curvature)); }
  // e^x, 0 below the normal numbers
  EMC_INLINE F value() const { return r < -1.0f ? splat(0.0f) : near_value(); }
  // e^x - 1
  EMC_INLINE F minus_one() const { return scale * (bounded + curvature) + (scale - 1.0f); }
  // e^x - 1 - x, never negative; with n = 0 the polynomial alone
  EMC_INLINE F minus_tangent() const {
    const F whole = scale - 1.0f;
    return scale * curvature + (whole * r + (whole - integer * 0.693147182f));
  }
};

// The largest size of the numbers taken, per lane, in the bits of a float; those of a NaN are larger than any number's. Of what is near
// nothing has to be bounded and fewer exponentials are needed; where a piece turns out to reach further, it is done again in the way that
// always holds.
struct Reach {
  I size = {};

  EMC_INLINE void take(F x) {
    const I bits = (I)abs(x);
    size = bits > size ? bits : size;
  }
  EMC_INLINE I beyond(float bound) const { return size > (I)splat(bound); }
};
EMC_INLINE bool none(I mask) { return max((F)(mask & (I)splat(1.0f))) == 0.0f; }

// Several at once, step by step: of one after the other a processor does not see enough ahead to keep its units busy. Where all exponents
// are near 0, within some 80, nothing has to be bounded.
template <bool kNear, int kCount>
EMC_INLINE void exponentials(const F (&x)[kCount], Exponential (&e)[kCount]) {
  F p[kCount];
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) {
    const F scaled = x[k] * 1.44269504f;
    const Rounded n(kNear ? scaled : at_least(at_most(scaled, 127.0f), -126.0f));
    e[k].scale = n.power(), e[k].integer = n.integer();
  }
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) {
    e[k].r = (x[k] - e[k].integer * 0.693359375f) + e[k].integer * 2.12194440e-4f;  // ln 2 in two parts; n times the first is exact
    e[k].bounded = kNear ? e[k].r : at_least(e[k].r, -1.0f);
    p[k] = splat(kCurvature[0]);
  }
#pragma GCC unroll 5
  for (int i = 1; i < kCurvatureTerms; ++i)
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) p[k] = p[k] * e[k].bounded + kCurvature[i];
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) e[k].curvature = p[k] * (e[k].bounded * e[k].bounded);
}

EMC_INLINE Exponential::Exponential(F x) {
  const F exponent[1] = {x};
  Exponential e[1];
  exponentials<false>(exponent, e);
  *this = e[0];
}

}  // namespace
}  // namespace emc::EMC_ISA
