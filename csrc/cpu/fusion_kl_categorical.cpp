// CPU kernels of the fusion loss of categorical distributions given as logits: forward reads a row twice, backward once.
//
//   KL(p || q) = sum_i p_i (log p_i - log q_i) = sum_i p_i phi(y_i),  y = log q - log p,  phi(y) = e^y - 1 - y,  since p and q both sum to
//   1
//
// No term of the second form is negative, so that a loss near 0 keeps its digits. Where y is large, p phi(y) is q - p (1 + y), which cannot
// overflow. Lanes beyond the row hold -inf in all three distributions, for which every term is 0.
#include "fusion_kl_rows.h"

namespace emc::EMC_ISA {
namespace {

constexpr float kInf = __builtin_inff();
constexpr float kLeastNormal = 0x1p-126f;
constexpr float kLeastExponent = -80.0f;  // of what is added to a sum that has a 1 in it

// What turns the logits of a row into probabilities: p = e^(x - top) scale.
struct Scales {
  float top[3], scale[3];

  EMC_INLINE void probabilities(const F (&x)[3], F (&p)[3]) const {
    const F exponents[3] = {x[0] - top[0], x[1] - top[1], x[2] - top[2]};
    Exponential e[3];
    exponentials<false>(exponents, e);
    for (int k = 0; k < 3; ++k) p[k] = e[k].value() * scale[k];
  }
  // Of logits that are not far below the largest.
  EMC_INLINE void near_probabilities(const F (&x)[3], F (&p)[3]) const {
    const F exponents[3] = {x[0] - top[0], x[1] - top[1], x[2] - top[2]};
    Exponential e[3];
    exponentials<true>(exponents, e);
    for (int k = 0; k < 3; ++k) p[k] = e[k].near_value() * scale[k];
  }
};

// The derivative of sum p (log p - log q) by x_p is p (a - mean of a under p), where a is x_p - x_q, or the sum over two q. The numbers a
// can all be large, so they are taken relative to that of the most probable class; with one class that takes nearly all, little but 0 is
// then left to round.
struct Slope {
  float origin, mean;  // a of the most probable class; the mean of a - origin
};

// What the backward pass wants to know of a row. log q - log p = (x_q - x_p) - shift.
struct Stats {
  Scales scales;
  float shift_rf, shift_fs;
  Slope real, face;
};
static_assert(sizeof(Stats) == FusionKl::kStats * sizeof(float), "emc_fast/ops/fusion_kl_categorical.py has the number too");

EMC_INLINE F slope_real(F r, F f, F s) { return (r - f) + (r - s); }
EMC_INLINE F slope_face(F f, F s) { return f - s; }
// a - origin; 0 for a class that p excludes: 0 log 0 = 0, and so is its derivative.
EMC_INLINE F relative(F x_p, F a, float origin) { return select((I)(x_p == -kInf), splat(0.0f), a - origin); }

EMC_INLINE F padded(F x, int64_t left, float past = -kInf) {
  return __builtin_expect(left >= W, 1) ? x : select((I)iota() < static_cast<int32_t>(left), x, splat(past));
}

// The largest logit so far, per lane, and the slope of its class.
struct Largest {
  F logit = splat(-kInf), slope = {};

  EMC_INLINE void take(F x, F a) {
    const I larger = (I)(x > logit);
    logit = select(larger, x, logit);
    slope = select(larger, a, slope);
  }
  EMC_INLINE float origin(float top) const {
    float found = 0.0f;
    for (int i = 0; i < W; ++i)
      if (logit[i] == top) found = slope[i];
    return __builtin_fabsf(found) < kInf ? found : 0.0f;
  }
};

// The exponentials of a row's logits, made where its largest logits are found and read where its divergences are made, while a row has no
// more classes.
struct Kept {
  static constexpr int64_t kClasses = 2048;
  float value[3][kClasses];
  float base[3][kClasses / kPiece];  // each piece's: value = e^(logit - base)

  EMC_INLINE static bool holds(int64_t first, int64_t n) { return first + n <= kClasses; }
};

// The largest logits of a row's three distributions, with the origins of the slopes, and the sums of e^(logit - largest); these are
// rescaled when a later piece holds a larger logit.
template <class T>
EMC_INLINE void normalise(Row<T, 3, true>& row, float (&top)[3], double (&total)[3], float& origin_real, float& origin_face, Kept& kept) {
  for (int k = 0; k < 3; ++k) {
    top[k] = -kInf;
    total[k] = 0.0;
  }
  Largest real, face;
  F largest_speech = splat(-kInf);
  row.for_pieces([&](int64_t first, int64_t n) {
    F x[3];
    for (int64_t i = 0; i < n; i += W) {
      row.read(i, n - i, x);
      for (int k = 0; k < 3; ++k) x[k] = padded(x[k], n - i);
      real.take(x[0], slope_real(x[0], x[1], x[2]));
      face.take(x[1], slope_face(x[1], x[2]));
      largest_speech = max(x[2], largest_speech);
    }
    const float here[3] = {max(real.logit), max(face.logit), max(largest_speech)};
    float base[3];
    for (int k = 0; k < 3; ++k) {
      if (here[k] > top[k]) {
        total[k] *= __builtin_exp(static_cast<double>(top[k]) - here[k]);
        top[k] = here[k];
      }
      base[k] = top[k] == -kInf ? 0.0f : top[k];  // every class excluded so far: each adds 0, and a NaN is still found
    }
    const bool keep = Kept::holds(first, n);
    if (keep)
      for (int k = 0; k < 3; ++k) kept.base[k][first / kPiece] = base[k];
    F lanes[3] = {};
    const auto add = [&](auto counts) __attribute__((always_inline)) {
      constexpr bool kCounts = decltype(counts)::kValue != 0;
      for (int64_t i = 0; i < n; i += W) {
        row.read(i, n - i, x);
        for (int k = 0; k < 3; ++k) {
          x[k] = padded(x[k], n - i) - base[k];
          if (kCounts) x[k] = at_least(x[k], kLeastExponent);
        }
        Exponential e[3];
        exponentials<kCounts>(x, e);
        for (int k = 0; k < 3; ++k) {
          const F value = kCounts ? e[k].near_value() : e[k].value();
          lanes[k] += value;
          if (kCounts && keep) store_some(kept.value[k] + first + i, value, n - i);
        }
      }
    };
    // Beside the 1 of the largest, the little that a class adds too much whose exponent was bounded is nothing.
    if (top[0] > -kInf && top[1] > -kInf && top[2] > -kInf) {
      add(Number<1>());
    } else {
      add(Number<0>());
    }
    for (int k = 0; k < 3; ++k) total[k] += sum(lanes[k]);
  });
  origin_real = real.origin(top[0]);
  origin_face = face.origin(top[1]);
}

// log q - log p of one class, for a class that p excludes (log p = -inf) a number that stands for inf but times 0 is 0.
EMC_INLINE F log_ratio(F x_p, F x_q, float shift) { return select((I)(x_p == -kInf), splat(1e30f), (x_q - x_p) - shift); }

// What is near: no term overflows, and q - p is exact enough as p (e^y - 1) in the sum that puts the shift right.
struct Reaches {
  Reach ratio, depth;  // of log q - log p, and of a logit below the largest

  EMC_INLINE bool near() const { return none(ratio.beyond(16.0f) | depth.beyond(60.0f)); }
};

// Sums of the terms p phi(y) of KL(p || q), and of q - p. Both come from one exponential while y <= 1, without the cancellation of close p
// and q.
struct Divergence {
  F kl = {}, excess = {};

  EMC_INLINE void add_near(F p, const Exponential& e) {
    kl += p * e.minus_tangent();
    excess += p * e.minus_one();
  }
  // With e the exponential of y. A class that p excludes adds q to the first, which the sum over the others lacks.
  EMC_INLINE void add(F p, F q, F y, const Exponential& e) {
    const F positive = at_least(p, kLeastNormal);  // an underflown p is not 0: a class that only q excludes costs inf
    const I far = (I)(y > 1.0f);
    kl += select(far, q - p * (1.0f + y), positive * e.minus_tangent());
    excess += select(far, q - p, p * e.minus_one());
  }
};

// q - p of one class, likewise.
EMC_INLINE F difference(F p, F q, F y, const Exponential& e) { return select((I)(y > 1.0f), q - p, p * e.minus_one()); }

// The ratios of a class's probabilities where the distributions are near each other and none thinks it too improbable: that of real and
// speech is a product.
struct NearRatios {
  F rf, fs;  // log q - log p
  Exponential of_rf, of_fs;

  EMC_INLINE NearRatios(const F (&x)[3], float shift_rf, float shift_fs, const Scales& scales, Reaches& reach)
      : rf((x[1] - x[0]) - shift_rf), fs((x[2] - x[1]) - shift_fs) {
    const F exponents[2] = {rf, fs};
    Exponential e[2];
    exponentials<true>(exponents, e);
    of_rf = e[0], of_fs = e[1];
    reach.ratio.take(rf), reach.ratio.take(fs);
    for (int k = 0; k < 3; ++k) reach.depth.take(x[k] - scales.top[k]);
  }
};

template <class T>
void forward_typed(const FusionKl& args, int64_t begin, int64_t end) {
  sum_blocks(args, begin, end, false, [&](const Cursor& cursor, int64_t index, int64_t rows) {
    Row<T, 3, true> row(args, cursor, rows);
    Stats stats;
    Scales& scales = stats.scales;
    double total[3], log_sum[3];
    Kept kept;
    normalise(row, scales.top, total, stats.real.origin, stats.face.origin, kept);
    for (int k = 0; k < 3; ++k) {
      scales.scale[k] = static_cast<float>(1.0 / total[k]);
      log_sum[k] = static_cast<double>(scales.top[k]) + __builtin_log(total[k]);
    }
    const float shift[3] = {static_cast<float>(log_sum[1] - log_sum[0]), static_cast<float>(log_sum[2] - log_sum[0]),
                            static_cast<float>(log_sum[2] - log_sum[1])};
    double kl[3] = {}, excess[3] = {}, mass[2] = {}, moment[2] = {};
    row.for_pieces([&](int64_t first, int64_t n) {
      F x[3], p[3];
      Divergence pairs[3] = {};  // rf, rs, fs
      F masses[2] = {}, moments[2] = {};
      const auto weigh = [&](F real, F face) __attribute__((always_inline)) {
        masses[0] += p[0], masses[1] += p[1];
        moments[0] += p[0] * real, moments[1] += p[1] * face;
      };
      Reaches reach;
      const bool is_kept = Kept::holds(first, n);
      float scale[3] = {};
      if (is_kept)
        for (int k = 0; k < 3; ++k)
          scale[k] = static_cast<float>(scales.scale[k] * __builtin_exp(static_cast<double>(kept.base[k][first / kPiece]) - scales.top[k]));
      for (int64_t i = 0; i < n; i += W) {
        row.read(i, n - i, x);
        for (int k = 0; k < 3; ++k) x[k] = padded(x[k], n - i, scales.top[k]);
        const NearRatios ratios(x, shift[0], shift[2], scales, reach);
        if (is_kept) {
          for (int k = 0; k < 3; ++k) p[k] = load_some(kept.value[k] + first + i, 1, n - i) * scale[k];
        } else {
          scales.near_probabilities(x, p);
          for (int k = 0; k < 3; ++k) p[k] = padded(p[k], n - i, 0.0f);
        }
        pairs[0].add_near(p[0], ratios.of_rf);
        pairs[1].add_near(p[0], Exponential::product(ratios.of_rf, ratios.of_fs));
        pairs[2].add_near(p[1], ratios.of_fs);
        weigh(slope_real(x[0], x[1], x[2]) - stats.real.origin, slope_face(x[1], x[2]) - stats.face.origin);
      }
      if (!reach.near()) {
        for (int k = 0; k < 3; ++k) pairs[k] = Divergence();
        for (int k = 0; k < 2; ++k) masses[k] = moments[k] = F{};
        for (int64_t i = 0; i < n; i += W) {
          row.read(i, n - i, x);
          for (int k = 0; k < 3; ++k) x[k] = padded(x[k], n - i);
          const F r = x[0], f = x[1], s = x[2];
          scales.probabilities(x, p);
          const F y[3] = {log_ratio(r, f, shift[0]), log_ratio(r, s, shift[1]), log_ratio(f, s, shift[2])};
          Exponential e[3];
          exponentials<false>(y, e);
          pairs[0].add(p[0], p[1], y[0], e[0]);
          pairs[1].add(p[0], p[2], y[1], e[1]);
          pairs[2].add(p[1], p[2], y[2], e[2]);
          weigh(relative(r, slope_real(r, f, s), stats.real.origin), relative(f, slope_face(f, s), stats.face.origin));
        }
      }
      for (int k = 0; k < 3; ++k) {
        kl[k] += sum(pairs[k].kl);
        excess[k] += sum(pairs[k].excess);
      }
      for (int k = 0; k < 2; ++k) {
        mass[k] += sum(masses[k]);
        moment[k] += sum(moments[k]);
      }
    });
    // Both distributions of a pair sum to 1. What the sum of q - p lacks of 0 is the rounding error of the shift, and with it both the loss
    // of close distributions and their gradients are put right.
    for (int k = 0; k < 3; ++k) kl[k] -= 0.5 * excess[k] * excess[k];
    stats.shift_rf = static_cast<float>(shift[0] + excess[0]);
    stats.shift_fs = static_cast<float>(shift[2] + excess[2]);
    stats.real.mean = static_cast<float>(moment[0] / mass[0]);
    stats.face.mean = static_cast<float>(moment[1] / mass[1]);
    std::memcpy(args.stats + index * FusionKl::kStats, &stats, sizeof stats);
    return kl[0] + kl[1] + kl[2];
  });
}

//   dKL(p || q) / dx_p = p (-y - KL) = p (a - mean of a),  dKL(p || q) / dx_q = q - p
template <class T>
void backward_typed(const FusionKl& args, int64_t begin, int64_t end) {
  const auto differentiate = [&](const Cursor& cursor, int64_t index, int64_t rows, const Gradients<T, 3>& out) {
    Row<T, 3, true> row(args, cursor, rows);
    Stats stats;
    std::memcpy(&stats, args.stats + index * FusionKl::kStats, sizeof stats);
    const Scales scales = stats.scales;
    const float g = cursor.grad();
    row.for_pieces([&](int64_t first, int64_t n) {
      F x[3], p[3];
      // Of a - origin, and of the differences of the probabilities.
      const auto write = [&](int64_t i, F real, F face, F rf, F fs) __attribute__((always_inline)) {
        const F own_r = p[0] * (real - stats.real.mean), own_f = p[1] * (face - stats.face.mean);
        const F grad[3] = {own_r * g, (rf + own_f) * g, (fs + (fs + rf)) * g};
        out.write(first + i, n - i, grad);
      };
      Reaches reach;
      for (int64_t i = 0; i < n; i += W) {
        row.read(i, n - i, x);
        for (int k = 0; k < 3; ++k) x[k] = padded(x[k], n - i, scales.top[k]);
        const NearRatios ratios(x, stats.shift_rf, stats.shift_fs, scales, reach);
        scales.near_probabilities(x, p);
        const F real = slope_real(x[0], x[1], x[2]) - stats.real.origin, face = slope_face(x[1], x[2]) - stats.face.origin;
        const F rf = difference(p[0], p[1], ratios.rf, ratios.of_rf), fs = difference(p[1], p[2], ratios.fs, ratios.of_fs);
        write(i, real, face, rf, fs);
      }
      if (reach.near()) return;
      for (int64_t i = 0; i < n; i += W) {
        row.read(i, n - i, x);
        const F r = x[0], f = x[1], s = x[2];
        scales.probabilities(x, p);
        const F y[2] = {log_ratio(r, f, stats.shift_rf), log_ratio(f, s, stats.shift_fs)};
        Exponential e[2];
        exponentials<false>(y, e);
        const F rf = difference(p[0], p[1], y[0], e[0]), fs = difference(p[1], p[2], y[1], e[1]);
        write(i, relative(r, slope_real(r, f, s), stats.real.origin), relative(f, slope_face(f, s), stats.face.origin), rf, fs);
      }
    });
  };
  differentiate_blocks<T, 3>(args, begin, end, false, differentiate);
}

void forward(const FusionKl& args, int64_t begin, int64_t end) { EMC_FOR_DTYPE(args.dtype, forward_typed, args, begin, end); }
void backward(const FusionKl& args, int64_t begin, int64_t end) { EMC_FOR_DTYPE(args.dtype, backward_typed, args, begin, end); }

}  // namespace

const FusionKlKernels fusion_kl_categorical_kernels = {forward, backward};

}  // namespace emc::EMC_ISA
