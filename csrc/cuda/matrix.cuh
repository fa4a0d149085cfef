// Products of matrices by a warp, in tiles of 16 x 16 whose operands stand in shared memory.
//
// A kernel is written once against `Units`, which are one of
//   Tiled<Tensor<T>>   mma.m16n8k16 from 8.0 on, for Half on 7.5 as two mma.m16n8k8
//   Tiled<Volta>       mma.m8n8k4, 7.0's own; Half alone
//   Scalar<T>          multiply-adds in float32: for float, and for BFloat16 on devices that have no such tensor cores
// In all of them a lane has 2 rows and 4 columns of a tile of sums, and 4 lanes share a row. Each has
//   row(r), column() + step(c)              the places of a lane's sums; the steps are known to the compiler
//   products(rows, columns, width, sums)           sums = rows columns^T, for 16 rows and 16 kCount columns of kWidth elements
//   accumulate(left, tile, scratch, width, sums)   sums += left tile, where left is sums again; the tile has a row for each of its columns
// Of kWidth elements those beyond `width` are zeros, which may be left out.
#pragma once

#include "base.cuh"

namespace emc::cuda {

constexpr int kTile = 16;

// A lane's share of a 16 x 16 tile: at[r][c] is element (Units::row(r), Units::column() + Units::step(c)).
struct Sums {
  float at[2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) at[r][c] = 0.0f;
  }
  // The sum of a row's elements that this lane has, in pairs.
  __device__ __forceinline__ float of_row(int r) const { return (at[r][0] + at[r][1]) + (at[r][2] + at[r][3]); }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) at[r][c] *= factor;
  }
};

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

// The sum over the lanes that share a row with this one, and the largest, past which a NaN is passed over.
template <class Units>
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kFullMask, x, Units::kNearMate);
  return x + __shfl_xor_sync(kFullMask, x, Units::kFarMate);
}
template <class Units>
__device__ __forceinline__ float row_largest(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullMask, x, Units::kNearMate));
  return fmaxf(x, __shfl_xor_sync(kFullMask, x, Units::kFarMate));
}

// The places of sums in the instructions of 16 rows and 8 columns, two of them side by side.
struct WideLayout {
  static constexpr int kNearMate = 1, kFarMate = 2;
  __device__ __forceinline__ static int row(int r) { return lane_index() / 4 + 8 * r; }
  __device__ __forceinline__ static int column() { return lane_index() % 4 * 2; }
  __device__ __forceinline__ static constexpr int step(int c) { return (c & 1) + 8 * (c >> 1); }
};

template <class A, class B>
struct SameType {
  static constexpr bool value = false;
};
template <class A>
struct SameType<A, A> {
  static constexpr bool value = true;
};

__device__ __forceinline__ unsigned pack(float low, float high, Half) { return pack_half(low, high); }
__device__ __forceinline__ unsigned pack(float low, float high, BFloat16) { return pack_bfloat(low, high); }
// Two neighbours into memory.
template <class T>
__device__ __forceinline__ void store_pair(T* p, float low, float high) {
  if constexpr (SameType<T, float>::value) {
    *reinterpret_cast<uint2*>(p) = {__float_as_uint(low), __float_as_uint(high)};
  } else {
    *reinterpret_cast<unsigned*>(p) = pack(low, high, T());
  }
}
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Half) {
  multiply_16x8(c, a, b0, b1);
}
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, BFloat16) {
  multiply_bfloat_16x8(c, a, b0, b1);
}

template <bool kFirst, class First, class Second>
struct Either {
  using type = First;
};
template <class First, class Second>
struct Either<false, First, Second> {
  using type = Second;
};

template <class T>
struct Tensor : WideLayout {
  using Type = T;
  // The left factor, 16 x 16.
  struct Left {
    unsigned at[4];
  };
  // From 16 rows in memory.
  __device__ __forceinline__ static Left rows(const T* tile, int pitch) {
    Left a;
    load_matrices(a.at, tile + lane_index() % 16 * pitch + lane_index() / 16 * 8);
    return a;
  }
  // From sums, rounded to T.
  __device__ __forceinline__ static Left of(const Sums& x) {
    return {{pack(x.at[0][0], x.at[0][1], T()), pack(x.at[1][0], x.at[1][1], T()), pack(x.at[0][2], x.at[0][3], T()),
             pack(x.at[1][2], x.at[1][3], T())}};
  }
  // sums += a tile^T: the tile's rows are the columns of the product.
  __device__ __forceinline__ static void multiply_rows(Sums& sums, const Left& a, const T* tile, int pitch) {
    const int lane = lane_index();
    unsigned b[4];
    load_matrices(b, tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    add(sums, a, b);
  }
  // sums += a tile
  __device__ __forceinline__ static void multiply_columns(Sums& sums, const Left& a, const T* tile, int pitch) {
    const int lane = lane_index();
    unsigned b[4];
    load_matrices_transposed(b, tile + lane % 16 * pitch + lane / 16 * 8);
    add(sums, a, b);
  }

 private:
  __device__ __forceinline__ static void add(Sums& sums, const Left& a, const unsigned (&b)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float c[4] = {sums.at[0][2 * half], sums.at[0][2 * half + 1], sums.at[1][2 * half], sums.at[1][2 * half + 1]};
      multiply(c, a.at, b[2 * half], b[2 * half + 1], T());
      sums.at[0][2 * half] = c[0];
      sums.at[0][2 * half + 1] = c[1];
      sums.at[1][2 * half] = c[2];
      sums.at[1][2 * half + 1] = c[3];
    }
  }
};

// Of the four quad pairs of a warp, those with lane bit 2 set take the lower 8 rows of a tile, those with bit 3 the right 8 columns.
struct Volta {
  using Type = Half;
  static constexpr int kNearMate = 2, kFarMate = 8;
  __device__ __forceinline__ static int row(int r) {
    const int lane = lane_index();
    return (lane & 1) + 2 * r + lane / 16 * 4 + (lane & 4) * 2;
  }
  __device__ __forceinline__ static int column() { return (lane_index() & 2) + (lane_index() & 8); }
  __device__ __forceinline__ static constexpr int step(int c) { return (c & 1) + 4 * (c >> 1); }

  struct Left {  // one row of 16
    unsigned at[8];
  };
  __device__ __forceinline__ static Left rows(const Half* tile, int pitch) {
    const int lane = lane_index();
    Left a;
    load(a.at, tile + (lane % 4 + lane / 16 * 4 + (lane & 4) * 2) * pitch);
    return a;
  }
  // A lane has two columns of each of two rows, and needs all 16 of one: half of that row from the lane that has its other columns in this
  // quad pair, and half from the quad pair to the right or left.
  __device__ __forceinline__ static Left of(const Sums& x) {
    const bool second = (lane_index() & 2) != 0, right = (lane_index() & 8) != 0;
    unsigned mine[4];
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const unsigned upper = pack_half(x.at[0][2 * group], x.at[0][2 * group + 1]);
      const unsigned lower = pack_half(x.at[1][2 * group], x.at[1][2 * group + 1]);
      const unsigned other = __shfl_xor_sync(kFullMask, second ? upper : lower, kNearMate);
      mine[2 * group] = second ? other : upper;
      mine[2 * group + 1] = second ? lower : other;
    }
    Left a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned other = __shfl_xor_sync(kFullMask, mine[i], kFarMate);
      a.at[i] = right ? other : mine[i];
      a.at[4 + i] = right ? mine[i] : other;
    }
    return a;
  }
  __device__ __forceinline__ static void multiply_rows(Sums& sums, const Left& a, const Half* tile, int pitch) {
    const int lane = lane_index();
    unsigned b[8];
    load(b, tile + (lane % 4 + lane / 16 * 4 + (lane & 8)) * pitch);
    float c[8];
    take(sums, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_8x8<false>(c, a.at[2 * k], a.at[2 * k + 1], b[2 * k], b[2 * k + 1]);
    put(c, sums);
  }
  __device__ __forceinline__ static void multiply_columns(Sums& sums, const Left& a, const Half* tile, int pitch) {
    const int lane = lane_index();
    tile += lane % 4 * pitch + lane / 16 * 4 + (lane & 8);
    float c[8];
    take(sums, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint2 b = *reinterpret_cast<const uint2*>(tile + 4 * k * pitch);
      multiply_8x8<true>(c, a.at[2 * k], a.at[2 * k + 1], b.x, b.y);
    }
    put(c, sums);
  }

 private:
  __device__ __forceinline__ static void load(unsigned (&x)[8], const Half* row) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 four = reinterpret_cast<const uint4*>(row)[i];
      x[4 * i] = four.x;
      x[4 * i + 1] = four.y;
      x[4 * i + 2] = four.z;
      x[4 * i + 3] = four.w;
    }
  }
  // The instruction numbers its sums with the column's bit 0 first, then the row, then the column's bit 2.
  __device__ __forceinline__ static void take(const Sums& sums, float (&c)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = sums.at[i >> 1 & 1][(i & 1) + (i >> 2) * 2];
  }
  __device__ __forceinline__ static void put(const float (&c)[8], Sums& sums) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.at[i >> 1 & 1][(i & 1) + (i >> 2) * 2] = c[i];
  }
};

// Products from those of single tiles.
template <class Core>
struct Tiled : Core {
  using T = typename Core::Type;

  template <int kWidth, int kPitch, int kCount>
  __device__ __forceinline__ static void products(const T* rows, const T* columns, int, Sums (&sums)[kCount]) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) sums[n].clear();
#pragma unroll 4
    for (int k = 0; k < kWidth; k += kTile) {
      const auto left = Core::rows(rows + k, kPitch);
#pragma unroll
      for (int n = 0; n < kCount; ++n) Core::multiply_rows(sums[n], left, columns + n * kTile * kPitch + k, kPitch);
    }
  }
  template <int kPitch, int kCount, int kSums>
  __device__ __forceinline__ static void accumulate(const Sums (&left)[kCount], const T* tile, float*, int, Sums (&sums)[kSums]) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const auto factor = Core::of(left[n]);
#pragma unroll
      for (int d = 0; d < kSums; ++d) Core::multiply_columns(sums[d], factor, tile + n * kTile * kPitch + d * kTile, kPitch);
    }
  }
};

template <class T>
struct Scalar : WideLayout {
  // The left factor of accumulate() passes through the warp's own piece of shared memory, two tiles at a time, and is not rounded.
  static constexpr int kScratchPitch = 2 * kTile + 4;
  static constexpr int kScratch = kTile * kScratchPitch;  // floats of a warp

  template <int kWidth, int kPitch, int kCount>
  __device__ __forceinline__ static void products(const T* rows, const T* columns, int width, Sums (&sums)[kCount]) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) sums[n].clear();
#pragma unroll 1
    for (int k = 0; k < width; k += kVector) {
      float a[2][kVector];
#pragma unroll
      for (int r = 0; r < 2; ++r) four(rows + row(r) * kPitch + k, a[r]);
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float b[kVector];
          four(columns + (n * kTile + column() + step(c)) * kPitch + k, b);
#pragma unroll
          for (int i = 0; i < kVector; ++i)
#pragma unroll
            for (int r = 0; r < 2; ++r) sums[n].at[r][c] = fmaf(a[r][i], b[i], sums[n].at[r][c]);
        }
    }
  }
  template <int kPitch, int kCount, int kSums>
  __device__ __forceinline__ static void accumulate(const Sums (&left)[kCount], const T* tile, float* scratch, int width,
                                                    Sums (&sums)[kSums]) {
    constexpr int kAtOnce = kCount < 2 ? kCount : 2;
#pragma unroll
    for (int first = 0; first < kCount; first += kAtOnce) {
      __syncwarp();
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int c = 0; c < 4; c += 2)
            store_pair(scratch + row(r) * kScratchPitch + n * kTile + column() + step(c), left[first + n].at[r][c],
                       left[first + n].at[r][c + 1]);
      __syncwarp();
#pragma unroll
      for (int d = 0; d < kSums; ++d) {  // one after the other: more would not leave the compiler the registers to read ahead
        if (d * kTile >= width) break;
        float whole[2][4] = {};  // of these tiles, in parts of four terms, so that long sums lose less
#pragma unroll 1
        for (int k = 0; k < kAtOnce * kTile; k += kVector) {
          float a[2][kVector];
#pragma unroll
          for (int r = 0; r < 2; ++r) four(scratch + row(r) * kScratchPitch + k, a[r]);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float part[2];
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
              const float b = to_float(tile[(first * kTile + k + i) * kPitch + d * kTile + column() + step(c)]);
#pragma unroll
              for (int r = 0; r < 2; ++r) part[r] = i == 0 ? a[r][i] * b : fmaf(a[r][i], b, part[r]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) whole[r][c] += part[r];
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[d].at[r][c] += whole[r][c];
      }
    }
  }

 private:
  template <class X>
  __device__ __forceinline__ static void four(const X* p, float (&x)[kVector]) {
    Vector<X> v;
    v.whole = *reinterpret_cast<const typename Vector<X>::Whole*>(p);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = v.get(i);
  }
};

// The units of a device whose capability, times 100, is the number, as __CUDA_ARCH__ has it.
template <class T, int kArchitecture>
struct UnitsOf {
  using type = Scalar<T>;
};
template <int kArchitecture>
struct UnitsOf<Half, kArchitecture> {
  using type = typename Either<(kArchitecture >= 750), Tiled<Tensor<Half>>, Tiled<Volta>>::type;
};
template <int kArchitecture>
struct UnitsOf<BFloat16, kArchitecture> {
  using type = typename Either<(kArchitecture >= 800), Tiled<Tensor<BFloat16>>, Scalar<BFloat16>>::type;
};

// body(units) with the units of the device that runs this.
template <class T, class Body>
__device__ __forceinline__ void with_units(const Body& body) {
#if defined(EMC_EMULATOR)
  if (emu::capability < 75) {
    body(typename UnitsOf<T, 700>::type());
  } else if (emu::capability < 80) {
    body(typename UnitsOf<T, 750>::type());
  } else {
    body(typename UnitsOf<T, 800>::type());
  }
#elif defined(__CUDA_ARCH__)
  body(typename UnitsOf<T, __CUDA_ARCH__>::type());
#endif
}

}  // namespace emc::cuda
