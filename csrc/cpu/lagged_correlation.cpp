// Pearson's coefficient at every lag, H channels at a time in the lanes of a vector.
//
// At lag l the overlap of x is a suffix and that of y a prefix of the sequence (the other way round for l < 0), so the moments of all
// overlaps grow frame by frame from the smallest, and only the products x[t + l] y[t] cost more than a pass. Everything is summed in
// float64 around the mean of the whole sequence. Sums only ever add: nothing that lies outside an overlap is ever subtracted from it.
#include "lagged_correlation_kernels.h"
#include "simd_double.h"

namespace emc::EMC_ISA {
namespace {

constexpr int kLags = 11;  // computed together; divides the 99 of two seconds at 25 frames a second

struct Moments {
  D sum, squares;
};
struct Run {
  int64_t head, tail;  // frames at the start, at the end, that all hold one value
};

struct Lanes {
  D* x;             // (max_lag + frames + max_lag,): zeros on both sides
  D* y;             // (frames,)
  Moments* x_head;  // (max_lag + 1,): of the first frames - l frames
  Moments* x_tail;  // (max_lag + 1,): of the last frames - l frames
  Moments* y_head;
  Moments* y_tail;
};

int64_t workspace(int64_t frames, int64_t max_lag) {
  return 64 + static_cast<int64_t>(sizeof(D)) * (2 * frames + 2 * max_lag + kLags) +
         static_cast<int64_t>(sizeof(Moments)) * 4 * (max_lag + 1);
}

Run runs(const float* v, int64_t stride, int64_t frames) {
  Run run{1, 1};
  while (run.head < frames && v[run.head * stride] == v[0]) ++run.head;
  while (run.tail < frames && v[(frames - 1 - run.tail) * stride] == v[(frames - 1) * stride]) ++run.tail;
  return run;
}

// Channels [first, first + count) of a sequence around their means, one in each lane.
void pack(const float* v, const int64_t* stride, int64_t frames, int64_t first, int64_t count, D* to, Run* run) {
  for (int64_t lane = 0; lane < count; ++lane) run[lane] = runs(v + (first + lane) * stride[1], stride[0], frames);
  D sum = {};
  for (int64_t t = 0; t < frames; ++t) {
    to[t] = load_channels(v + t * stride[0] + first * stride[1], stride[1], count);
    sum += to[t];
  }
  const D mean = sum / splat(static_cast<double>(frames));
  for (int64_t t = 0; t < frames; ++t) to[t] = to[t] - mean;
}

void moments(const D* v, int64_t frames, int64_t max_lag, Moments* head, Moments* tail) {
  const int64_t core = frames > max_lag ? frames - max_lag : 0;
  Moments h{}, t{};
  for (int64_t i = 0; i < frames; ++i) {
    if (i >= core) head[frames - i] = h;  // the first i frames
    h = {h.sum + v[i], h.squares + v[i] * v[i]};
  }
  head[0] = h;
  for (int64_t i = 0; i < frames; ++i) {
    if (i >= core) tail[frames - i] = t;  // the last i frames
    const D u = v[frames - 1 - i];
    t = {t.sum + u, t.squares + u * u};
  }
  tail[0] = t;
}

template <int kCount>
EMC_INLINE void products(const D* x, const D* y, int64_t frames, D* out) {
  D sum[kCount];
  for (int l = 0; l < kCount; ++l) sum[l] = D{};
  for (int64_t t = 0; t < frames; ++t) {
    const D v = y[t];
    for (int l = 0; l < kCount; ++l) sum[l] += x[t + l] * v;
  }
  for (int l = 0; l < kCount; ++l) out[l] = sum[l];
}

// The coefficient from sums around another mean than the overlap's loses digits where the overlap hardly varies: then it is taken in two
// passes.
double careful(const double* x, const double* y, int64_t frames) {
  double mean_x = 0.0, mean_y = 0.0, xy = 0.0, xx = 0.0, yy = 0.0;
  for (int64_t t = 0; t < frames; ++t) {
    mean_x += x[t * H];
    mean_y += y[t * H];
  }
  mean_x /= static_cast<double>(frames);
  mean_y /= static_cast<double>(frames);
  for (int64_t t = 0; t < frames; ++t) {
    const double a = x[t * H] - mean_x, b = y[t * H] - mean_y;
    xy += a * b;
    xx += a * a;
    yy += b * b;
  }
  return xy / (__builtin_sqrt(xx) * __builtin_sqrt(yy));
}

void correlate(const LagProblem& p, void* memory) {
  const int64_t frames = p.frames, max_lag = p.max_lag, lags = 2 * max_lag + 1;
  Lanes lanes;
  lanes.x = reinterpret_cast<D*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
  lanes.y = lanes.x + frames + 2 * max_lag;
  D* const product = lanes.y + frames;  // (kLags,)
  lanes.x_head = reinterpret_cast<Moments*>(product + kLags);
  lanes.x_tail = lanes.x_head + max_lag + 1;
  lanes.y_head = lanes.x_tail + max_lag + 1;
  lanes.y_tail = lanes.y_head + max_lag + 1;
  for (int64_t l = 0; l < max_lag; ++l) lanes.x[l] = lanes.x[max_lag + frames + l] = D{};

  for (int64_t first = 0; first < p.channels; first += H) {
    const int64_t count = p.channels - first < H ? p.channels - first : H;
    Run x_run[H], y_run[H];
    pack(p.x, p.x_stride, frames, first, count, lanes.x + max_lag, x_run);
    pack(p.y, p.y_stride, frames, first, count, lanes.y, y_run);
    moments(lanes.x + max_lag, frames, max_lag, lanes.x_head, lanes.x_tail);
    moments(lanes.y, frames, max_lag, lanes.y_head, lanes.y_tail);

    for (int64_t start = 0; start < lags; start += kLags) {
      const int64_t some = lags - start < kLags ? lags - start : kLags;
      if (some == kLags) {
        products<kLags>(lanes.x + start, lanes.y, frames, product);
      } else {
        for (int64_t l = 0; l < some; ++l) products<1>(lanes.x + start + l, lanes.y, frames, product + l);
      }
      for (int64_t l = 0; l < some; ++l) {
        const int64_t lag = start + l - max_lag, apart = lag < 0 ? -lag : lag, overlap = frames - apart;
        double* const out = p.out + (start + l) * p.channels + first;
        if (overlap < 2) {
          for (int64_t lane = 0; lane < count; ++lane) out[lane] = __builtin_nan("");
          continue;
        }
        const Moments x = lag < 0 ? lanes.x_head[apart] : lanes.x_tail[apart], y = lag < 0 ? lanes.y_tail[apart] : lanes.y_head[apart];
        const D n = splat(static_cast<double>(overlap));
        const D covariance = product[l] - x.sum * y.sum / n, x_var = x.squares - x.sum * x.sum / n, y_var = y.squares - y.sum * y.sum / n;
        for (int64_t lane = 0; lane < count; ++lane) {
          const int64_t x_constant = lag < 0 ? x_run[lane].head : x_run[lane].tail,
                        y_constant = lag < 0 ? y_run[lane].tail : y_run[lane].head;
          double r = __builtin_nan("");
          if (x_constant < overlap && y_constant < overlap) {
            const bool thin = x_var[lane] < 1e-6 * x.squares[lane] || y_var[lane] < 1e-6 * y.squares[lane];
            const int64_t x_start = max_lag + (lag > 0 ? lag : 0), y_start = lag < 0 ? -lag : 0;
            r = thin ? careful(reinterpret_cast<const double*>(lanes.x + x_start) + lane,
                               reinterpret_cast<const double*>(lanes.y + y_start) + lane, overlap)
                     : covariance[lane] / (__builtin_sqrt(x_var[lane]) * __builtin_sqrt(y_var[lane]));
            r = r > 1.0 ? 1.0 : r < -1.0 ? -1.0 : r;
          }
          out[lane] = r;
        }
      }
    }
  }
}

}  // namespace

const LagKernels lag_kernels = {workspace, correlate};

}  // namespace emc::EMC_ISA
