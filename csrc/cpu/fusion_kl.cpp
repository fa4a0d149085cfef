// CPU kernels of the fusion loss of diagonal Gaussians: forward and backward in one pass over the inputs each.
//
//   KL(p || q) = 1/2 sum_i [phi(l_p - l_q) + (m_p - m_q)^2 e^-l_q],  phi(x) = e^x - 1 - x
//   loss of a row = KL(real || face) + KL(real || speech) + KL(face || speech)
//
// phi is evaluated as a whole, so that a loss near 0 keeps its digits. Lanes beyond the row hold zeros, for which every term is 0.
#include "fusion_kl_rows.h"

namespace emc::EMC_ISA {
namespace {

// e^-l as (2^m)^2 e^r. The power is applied to a difference of means before that is squared, in two steps: neither equal means over a tiny
// variance (0 * inf) nor far means over a huge one (inf * 0) make a NaN of a finite term.
struct InverseVariance {
  F low, high;  // their product is 2^m
  F rest;       // e^r

  EMC_INLINE explicit InverseVariance(F logvar) {
    const F y = at_least(at_most(-logvar, 350.0f), -350.0f);  // beyond, float32 holds no term but 0 and inf
    const F m = Rounded(y * 0.72134752f).integer();           // 1 / (2 ln 2)
    const F r = (y - m * 1.38671875f) + m * 4.24388880e-4f;
    F p = splat(2.444009260e-5f);  // minimax of (e^r - 1 - r) / r^2 for |r| <= ln 2
    p = p * r + 2.010984899e-4f;
    p = p * r + 1.389370416e-3f;
    p = p * r + 8.332527243e-3f;
    p = p * r + 4.166652635e-2f;
    p = p * r + 1.666667312e-1f;
    p = p * r + 0.5f;
    rest = (p * (r * r) + r) + 1.0f;
    const Rounded half(m * 0.5f);
    low = half.power();
    high = Rounded(m - half.integer()).power();
  }
  // d^2 e^-l
  EMC_INLINE F quadratic(F d) const {
    const F scaled = d * low * high;
    return scaled * rest * scaled;
  }
  // d e^-l
  EMC_INLINE F linear(F d) const { return d * low * high * rest * low * high; }
};

// What is near: no term overflows.
struct Reaches {
  Reach logvar, mean;

  EMC_INLINE bool near() const { return none(logvar.beyond(40.0f) | mean.beyond(0x1p40f)); }
};

// What loss and gradients of three distributions that are near each other are made of: three exponentials instead of five, since
// e^(l_r - l_s) and e^-l_s are products.
struct NearTerms {
  F rf, rs, fs;                        // differences of the means
  Exponential of_rf, of_fs, of_rs;     // of those of the log-variances
  F precision_face, precision_speech;  // e^-l

  EMC_INLINE NearTerms(const F (&x)[6], Reaches& reach) : rf(x[0] - x[1]), rs(x[0] - x[2]), fs(x[1] - x[2]) {
    const F exponents[3] = {x[3] - x[4], x[4] - x[5], -x[4]};
    Exponential e[3];
    exponentials<true>(exponents, e);
    of_rf = e[0], of_fs = e[1], of_rs = Exponential::product(e[0], e[1]);
    precision_face = e[2].near_value();
    const F back = exponents[1] - x[4], lost = (x[4] - (exponents[1] - back)) - (x[5] + back);  // what rounding took from the second
    precision_speech = precision_face * (of_fs.near_value() * (1.0f + lost));
    for (const F& exponent : exponents) reach.logvar.take(exponent);
    reach.logvar.take(x[5]);
    reach.mean.take(rf), reach.mean.take(fs);
  }
};

// Twice the loss, per lane. x: three means, then three log-variances unless the variance is 1.
template <int kInputs>
EMC_INLINE F loss(const F (&x)[kInputs]) {
  const F rf = x[0] - x[1], rs = x[0] - x[2], fs = x[1] - x[2];
  if constexpr (kInputs == 3) {
    return rf * rf + rs * rs + fs * fs;
  } else {
    const InverseVariance face(x[4]), speech(x[5]);
    const F means = face.quadratic(rf) + speech.quadratic(rs) + speech.quadratic(fs);
    return means + Exponential(x[3] - x[4]).minus_tangent() + Exponential(x[3] - x[5]).minus_tangent() +
           Exponential(x[4] - x[5]).minus_tangent();
  }
}

// The loss's derivatives, times g.
template <int kInputs>
EMC_INLINE void differentiate(const F (&x)[kInputs], float g, F (&grad)[kInputs]) {
  const F rf = x[0] - x[1], rs = x[0] - x[2], fs = x[1] - x[2];
  if constexpr (kInputs == 3) {
    grad[0] = (rf + rs) * g;
    grad[1] = (fs - rf) * g;
    grad[2] = (rs + fs) * -g;
  } else {
    const InverseVariance face(x[4]), speech(x[5]);
    const F slope_rf = face.linear(rf), slope_rs = speech.linear(rs), slope_fs = speech.linear(fs);
    grad[0] = (slope_rf + slope_rs) * g;
    grad[1] = (slope_fs - slope_rf) * g;
    grad[2] = (slope_rs + slope_fs) * -g;
    const F excess_rf = Exponential(x[3] - x[4]).minus_one();
    const F excess_rs = Exponential(x[3] - x[5]).minus_one();
    const F excess_fs = Exponential(x[4] - x[5]).minus_one();
    const float half = 0.5f * g;
    grad[3] = (excess_rf + excess_rs) * half;
    grad[4] = (excess_fs - excess_rf - face.quadratic(rf)) * half;
    grad[5] = (excess_rs + excess_fs + speech.quadratic(rs) + speech.quadratic(fs)) * -half;
  }
}

// The same of distributions that are near each other.
EMC_INLINE F near_loss(const F (&x)[6], Reaches& reach) {
  const NearTerms t(x, reach);
  const F means = t.rf * t.rf * t.precision_face + (t.rs * t.rs + t.fs * t.fs) * t.precision_speech;
  return means + t.of_rf.minus_tangent() + t.of_rs.minus_tangent() + t.of_fs.minus_tangent();
}
EMC_INLINE void near_differentiate(const F (&x)[6], float g, F (&grad)[6], Reaches& reach) {
  const NearTerms t(x, reach);
  const F slope_rf = t.rf * t.precision_face, slope_rs = t.rs * t.precision_speech, slope_fs = t.fs * t.precision_speech;
  grad[0] = (slope_rf + slope_rs) * g;
  grad[1] = (slope_fs - slope_rf) * g;
  grad[2] = (slope_rs + slope_fs) * -g;
  const F excess_rf = t.of_rf.minus_one(), excess_rs = t.of_rs.minus_one(), excess_fs = t.of_fs.minus_one();
  const float half = 0.5f * g;
  grad[3] = (excess_rf + excess_rs) * half;
  grad[4] = (excess_fs - excess_rf - slope_rf * t.rf) * half;
  grad[5] = (excess_rs + excess_fs + (slope_rs * t.rs + slope_fs * t.fs)) * -half;
}

template <class T, int kInputs>
void forward_rows(const FusionKl& args, int64_t begin, int64_t end) {
  sum_blocks(args, begin, end, together(args), [&](const Cursor& cursor, int64_t, int64_t rows) {
    Row<T, kInputs, kInputs == 6> row(args, cursor, rows);
    double total = 0.0;
    row.for_pieces([&](int64_t, int64_t n) {
      F lanes = {}, x[kInputs];
      Reaches reach;
      if constexpr (kInputs == 6)
        for (int64_t i = 0; i < n; i += W) {
          row.read(i, n - i, x);
          lanes += near_loss(x, reach);
        }
      if (kInputs == 3 || !reach.near()) {
        lanes = F{};
        for (int64_t i = 0; i < n; i += W) {
          row.read(i, n - i, x);
          lanes += loss(x);
        }
      }
      total += sum(lanes);
    });
    return 0.5 * total;
  });
}

template <class T, int kInputs>
void backward_rows(const FusionKl& args, int64_t begin, int64_t end) {
  const bool at_once = together(args);
  differentiate_blocks<T, kInputs>(args, begin, end, at_once,
                                   [&](const Cursor& cursor, int64_t, int64_t rows, const Gradients<T, kInputs>& out) {
                                     Row<T, kInputs, kInputs == 6> row(args, cursor, rows);
                                     const float g = cursor.grad();
                                     row.for_pieces([&](int64_t first, int64_t n) {
                                       F x[kInputs], grad[kInputs];
                                       Reaches reach;
                                       if constexpr (kInputs == 6)
                                         for (int64_t i = 0; i < n; i += W) {
                                           row.read(i, n - i, x);
                                           near_differentiate(x, g, grad, reach);
                                           out.write(first + i, n - i, grad);
                                         }
                                       if (kInputs == 6 && reach.near()) return;
                                       for (int64_t i = 0; i < n; i += W) {
                                         row.read(i, n - i, x);
                                         differentiate(x, g, grad);
                                         out.write(first + i, n - i, grad);
                                       }
                                     });
                                   });
}

template <class T>
void forward_typed(const FusionKl& args, int64_t begin, int64_t end) {
  (args.input[3].data == nullptr ? forward_rows<T, 3> : forward_rows<T, 6>)(args, begin, end);
}
template <class T>
void backward_typed(const FusionKl& args, int64_t begin, int64_t end) {
  (args.input[3].data == nullptr ? backward_rows<T, 3> : backward_rows<T, 6>)(args, begin, end);
}
void forward(const FusionKl& args, int64_t begin, int64_t end) { EMC_FOR_DTYPE(args.dtype, forward_typed, args, begin, end); }
void backward(const FusionKl& args, int64_t begin, int64_t end) { EMC_FOR_DTYPE(args.dtype, backward_typed, args, begin, end); }

}  // namespace

const FusionKlKernels fusion_kl_kernels = {forward, backward};

}  // namespace emc::EMC_ISA
