// What the kernels of attention share: tiles in shared memory, which pairs may attend, which of them dropout keeps, and powers of two.
#pragma once

#include "attention_arguments.h"
#include "math.cuh"
#include "matrix.cuh"
#include "philox.cuh"

namespace emc::cuda {

constexpr int kAttentionThreads = 128;  // of a block, at the most

// A block has up to kMaxWarps warps of 16 rows each ("left": queries, or in the backward pass of the keys, keys), and goes over the other
// sequence ("right") in steps of kColumns. How many warps a block has, and whether tiles of one or of two steps, changes no bit.
template <class T, int kWidth_>
struct AttentionTiles {
  using Type = T;
  static constexpr int kWidth = kWidth_;
  static constexpr int kBytes = kWidth * static_cast<int>(sizeof(T));
  static constexpr int kColumns = sizeof(T) == 2 && kWidth <= 64 ? 64 : kBytes <= 256 ? 32 : 16;
  static constexpr int kMaxWarps = kBytes <= 256 ? 4 : 2;
  static constexpr int kMaxRows = kMaxWarps * kTile;
  // 16 bytes more, so that the rows that a warp reads at once begin in different banks.
  static constexpr int kPitch = kWidth + 16 / static_cast<int>(sizeof(T));

  // Of one step: two tiles of kColumns, three numbers of each column, and what dropout keeps.
  static constexpr int kRightBytes = kColumns * kPitch * static_cast<int>(sizeof(T));
  static constexpr int kStageBytes = 2 * kRightBytes + 4 * (3 * kColumns + 2 * (kColumns > kMaxRows ? kColumns : kMaxRows));
  // Shared memory for `lefts` tiles of `rows`, so many steps, and scratch.
  static constexpr int bytes(int rows, int lefts, int stages) {
    const int left = lefts * rows * kPitch * static_cast<int>(sizeof(T)), scratch = rows / kTile * Scalar<T>::kScratch * 4;
    // Code that needs scratch has one stage, and for BFloat16 the host cannot tell which code runs.
    const int right = stages * kStageBytes, one = kStageBytes + (SameType<T, Half>::value ? 0 : scratch);
    return left + (right < one ? one : right);
  }
};

// How many steps' tiles a block has. Below 8.0 a copy keeps its thread waiting anyway; and products in float32 take some ten times as long
// as those of tensor cores, so that the copies of one block pass while others multiply.
template <class T>
__device__ __forceinline__ int stages_of(const Attention& a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return 1;
#else
  return sizeof(T) == sizeof(float) ? 1 : a.stages;
#endif
}

// What a block has of one step.
template <class Tiles>
struct StepTiles {
  typename Tiles::Type* right[2];
  float* numbers;
  unsigned* keep;
};

// Blocks of a multiprocessor for which the compiler is to leave registers: 128 a thread with four, 168 with three. Left to itself it takes
// more in float32, for nothing that the code would show.
struct Blocks {
  int forward, queries, keys;
};
template <class T, int kWidth>
constexpr Blocks kBlocks = {1, 1, 1};
template <>
constexpr Blocks kBlocks<float, 128> = {3, 3, 2};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
template <>
constexpr Blocks kBlocks<float, 32> = {4, 3, 2};  // a third block would spill
template <>
constexpr Blocks kBlocks<float, 64> = {3, 2, 2};  // the same, and shared memory has no room for it
#else
template <>
constexpr Blocks kBlocks<float, 32> = {4, 3, 3};
template <>
constexpr Blocks kBlocks<float, 64> = {3, 3, 2};
#endif

// A block's share of the work: `rows` rows of one head; and its shared memory.
template <class Tiles>
struct AttentionBlock {
  using T = typename Tiles::Type;
  int rows, warp_row;  // of the block; the first of this warp's among them
  int head, b, h;      // number of the head, and its place in the batch and in its entry
  int first;           // row of the sequence
  T* left[2];
  unsigned char* stages;
  float* scratch;  // this warp's

  // Of `length` rows in all. The tiles that see most, which for queries are the last, begin first.
  __device__ __forceinline__ AttentionBlock(const Attention& a, int length, int lefts, bool from_the_end) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, heads = static_cast<int>(a.batch * a.heads);
    rows = static_cast<int>(blockDim.x) / kWarp * kTile;
    warp_row = warp * kTile;
    const int item = static_cast<int>(blockIdx.x), tile = item / heads, last = (length - 1) / rows;
    head = item - tile * heads;
    first = (from_the_end ? last - tile : tile) * rows;
    b = head / static_cast<int>(a.heads);
    h = head - b * static_cast<int>(a.heads);
    left[0] = shared_memory<T>();
    left[1] = left[0] + rows * Tiles::kPitch;
    stages = reinterpret_cast<unsigned char*>(left[0] + lefts * rows * Tiles::kPitch);
    scratch = reinterpret_cast<float*>(stages + Tiles::kStageBytes) + warp * Scalar<T>::kScratch;
  }
  __device__ __forceinline__ StepTiles<Tiles> stage(int i) const {
    unsigned char* const at = stages + i * Tiles::kStageBytes;
    auto* const numbers = reinterpret_cast<float*>(at + 2 * Tiles::kRightBytes);
    return {{reinterpret_cast<T*>(at), reinterpret_cast<T*>(at + Tiles::kRightBytes)},
            numbers,
            reinterpret_cast<unsigned*>(numbers + 3 * Tiles::kColumns)};
  }
};

// So many bytes, moved at once.
template <int kBytes>
struct Bytes;
template <>
struct Bytes<2> {
  using type = unsigned short;
};
template <>
struct Bytes<4> {
  using type = unsigned;
};
template <>
struct Bytes<8> {
  using type = uint2;
};
template <>
struct Bytes<16> {
  using type = uint4;
};

// Begins to copy n elements, zeros where not `there`.
template <int n, class T>
__device__ __forceinline__ void fetch_some(T* to, const T* from, bool there) {
  using Whole = typename Bytes<n* static_cast<int>(sizeof(T))>::type;
  if constexpr (sizeof(Whole) >= 4) {
    copy_async(reinterpret_cast<Whole*>(to), reinterpret_cast<const Whole*>(from), there);
  } else {
    *reinterpret_cast<Whole*>(to) = there ? __ldg(reinterpret_cast<const Whole*>(from)) : Whole{};
  }
}
// Begins to copy rows first .. first + count of a head of two operands, or of x alone, into shared memory; zeros where `live(row)` is
// false, and beyond the width. A thread keeps its columns and goes down the rows, so that it only adds to addresses: with those made anew
// for every copy, copying takes more instructions than the products. The text stands once for both operands and for all sizes of a copy:
// it would be most of what these kernels take to compile, and of their registers.
template <int kOperands, class Tiles, class Live>
__device__ __forceinline__ void fetch(const Attention& a, const AttentionBlock<Tiles>& block, const HeadsOperand& x, const HeadsOperand& y,
                                      int first, int count, typename Tiles::Type* const (&to)[2], const Live& live) {
  using T = typename Tiles::Type;
  constexpr int kLogWidth = Tiles::kWidth == 128 ? 7 : Tiles::kWidth == 64 ? 6 : Tiles::kWidth == 32 ? 5 : 4;
  const HeadsOperand* const operands[2] = {&x, &y};
  const int together = x.together < y.together ? x.together : y.together;
  const int log = together == 8 ? 3 : together == 4 ? 2 : together - 1, across_log = kLogWidth - log < 5 ? kLogWidth - log : 5;
  const int across = 1 << across_log;
  const int thread = static_cast<int>(threadIdx.x), begin = thread >> across_log, step = static_cast<int>(blockDim.x) >> across_log;
#pragma unroll 1
  for (int column = (thread & (across - 1)) << log; column < Tiles::kWidth; column += across << log) {
    const T* source[kOperands];
    T* target[kOperands];
#pragma unroll
    for (int k = 0; k < kOperands; ++k) {
      const HeadsOperand& z = *operands[k];
      source[k] = static_cast<const T*>(z.data) + block.b * z.stride[0] + block.h * z.stride[2] + (first + begin) * z.stride[1] +
                  column * z.stride[3];
      target[k] = to[k] + begin * Tiles::kPitch + column;
    }
#pragma unroll 1
    for (int row = begin; row < count; row += step) {
      const bool there = column < a.width && live(row);
#pragma unroll
      for (int k = 0; k < kOperands; ++k) {
        if (sizeof(T) == 2 && together == 8) {
          if constexpr (sizeof(T) == 2) fetch_some<8>(target[k], source[k], there);
        } else if (together >= 4) {
          fetch_some<4>(target[k], source[k], there);
        } else if (together == 2) {
          fetch_some<2>(target[k], source[k], there);
        } else {
          fetch_some<1>(target[k], source[k], there);
        }
        source[k] += step * operands[k]->stride[1];
        target[k] += step * Tiles::kPitch;
      }
    }
  }
}

// The warp's 16 rows of a result, the first of them row `first` of `length`, to dense memory (batch, length, heads, width), by way of the
// warp's rows of a tile that only it reads.
template <class Units, class Tiles>
__device__ __forceinline__ void write_rows(const Attention& a, const AttentionBlock<Tiles>& block,
                                           const Sums (&sums)[Tiles::kWidth / kTile], typename Tiles::Type* tile, void* to, int first,
                                           int length) {
  using T = typename Tiles::Type;
  using Pair = typename Bytes<2 * static_cast<int>(sizeof(T))>::type;
  __syncwarp();
#pragma unroll
  for (int d = 0; d < Tiles::kWidth / kTile; ++d)
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 4; c += 2)
        store_pair(tile + Units::row(r) * Tiles::kPitch + d * kTile + Units::column() + Units::step(c), sums[d].at[r][c],
                   sums[d].at[r][c + 1]);
  __syncwarp();
  const int64_t step = a.heads * a.width;
  T* const out = static_cast<T*>(to) + (static_cast<int64_t>(block.b) * length + first) * step + block.h * a.width;
  constexpr int kPairs = Tiles::kWidth / 2;
#pragma unroll 1
  for (int i = lane_index(); i < kTile * kPairs; i += kWarp) {
    const int row = i / kPairs, column = i % kPairs * 2;
    if (first + row >= length || column >= a.width) continue;
    const T* const from = tile + row * Tiles::kPitch + column;
    T* const p = out + row * step + column;
    if (a.width % 2 == 0) {
      *reinterpret_cast<Pair*>(p) = *reinterpret_cast<const Pair*>(from);
    } else {
      p[0] = from[0];
      if (column + 1 < a.width) p[1] = from[1];
    }
  }
}

// Which of the keys first .. first + 31 exist and are not masked, a bit for each. All lanes of the warp come.
template <class Arguments>
__device__ __forceinline__ unsigned seen_keys(const Arguments& a, int b, int first) {
  const int s = first + lane_index();
  return __ballot_sync(kFullMask, s < a.keys && (a.key_mask == nullptr || a.key_mask[b * a.mask_stride[0] + s * a.mask_stride[1]] != 0));
}

// Bits low .. high - 1 of a word; there may be none.
__device__ __forceinline__ unsigned bits_between(int low, int high) {
  const unsigned below = high <= 0 ? 0u : high >= 32 ? kFullMask : (1u << high) - 1u;
  return low <= 0 ? below : low >= 32 ? 0u : below & (kFullMask << low);
}
__device__ __forceinline__ bool bit(unsigned word, int i) { return (word >> i & 1u) != 0; }

// Which pairs dropout keeps: bit s % 32 of word s / 32 of a query's row, from the noise as docs/operators.md defines it.
template <class Tiles>
__device__ __forceinline__ void make_keep(const Attention& a, const AttentionBlock<Tiles>& block, int first_query, int queries,
                                          int first_key, int keep_words, unsigned* keep) {
  const uint64_t blocks = static_cast<uint64_t>((static_cast<int64_t>(a.keys) + 3) / 4);
  const int rows_per_seed = static_cast<int>(a.noise.rows_per_seed), which = block.head / rows_per_seed;
  const auto seed = static_cast<uint64_t>(__ldg(a.noise.seeds + which));
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < queries * keep_words; i += static_cast<int>(blockDim.x)) {
    const int query = i / keep_words;
    const NoiseRow row = {
        static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(block.head - which * rows_per_seed),
        a.noise.stream,
        static_cast<uint64_t>(first_query + query) * blocks + static_cast<uint64_t>(first_key / 4 + (i - query * keep_words) * 8)};
    unsigned bits = 0;
#pragma unroll 1
    for (int k = 0; k < 8; ++k) {
      uint32_t w[4];
      words(row, k, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) bits |= static_cast<unsigned>((w[j] >> 9) >= a.keep_from) << (4 * k + j);
    }
    keep[i] = bits;
  }
}

// Rows [first, last) of the other sequence that may be seen; the first is at a multiple of `step`.
struct Range {
  int first, last;
  // Query t sees keys with t + shift - s in [least_lag, lag_bound), where shift = keys - queries.
  __device__ __forceinline__ static Range of_keys(const Attention& a, int t, int last_query, int step) {
    const int64_t shift = a.keys - a.queries;
    return {t + shift - a.lag_bound + 1, last_query + shift - a.least_lag + 1, a.keys, step};
  }
  __device__ __forceinline__ static Range of_queries(const Attention& a, int s, int last_key, int step) {
    const int64_t shift = a.keys - a.queries;
    return {s - shift + a.least_lag, last_key - shift + a.lag_bound, a.queries, step};
  }

 private:
  __device__ __forceinline__ Range(int64_t begin, int64_t end, int length, int step)
      : first(begin < 0         ? 0
              : begin >= length ? length
                                : static_cast<int>(begin) / step * step),
        last(end < 0        ? 0
             : end < length ? static_cast<int>(end)
                            : length) {}
};

// Goes over the other sequence. look(at) says which of the 32 rows from `at` on matter, a bit for each and the same in all warps: a step in
// which none does is left out. fill(at, seen, tiles) begins a step's copies, body(at, seen, tiles) works on what has arrived. With two
// stages the next step's copies are on their way meanwhile, and one barrier serves for two: behind it the next step has arrived, and this
// one, whose stage is filled then, has been read. Behind all of it nothing is on its way, and all warps have read what they wanted.
template <class Tiles, class Look, class Fill, class Body>
__device__ __forceinline__ void for_each_step(const Attention& a, const AttentionBlock<Tiles>& block, const Range& range, const Look& look,
                                              const Fill& fill, const Body& body) {
  constexpr int kColumns = Tiles::kColumns, kWords = (kColumns + 31) / 32;
  unsigned seen[kWords], seen_here[kWords] = {};  // of the next step, of this one
  const auto next_from = [&](int at) {
#pragma unroll 1
    for (; at < range.last; at += kColumns) {
      unsigned any = 0;
#pragma unroll
      for (int w = 0; w < kWords; ++w) any |= seen[w] = look(at + 32 * w);
      if (any != 0) break;
    }
    return at;
  };
  const bool ahead = stages_of<typename Tiles::Type>(a) == 2;
  int next = next_from(range.first), here = range.last, stage = 0;
  const auto go_on = [&] {
    here = next;
#pragma unroll
    for (int w = 0; w < kWords; ++w) seen_here[w] = seen[w];
  };
#pragma unroll 1
  do {  // the text of fill and body stands once: there would be twice as much to compile
    if (next < range.last) fill(next, seen, block.stage(stage));
    commit_copies();
    if (!ahead) {
      wait_copies<0>();
      __syncthreads();
      go_on();
    }
    if (here < range.last) body(here, seen_here, block.stage(ahead ? stage ^ 1 : 0));
    if (ahead) {
      go_on();
      stage ^= 1;
    }
    next = next_from(next + kColumns);
    wait_copies<0>();
    __syncthreads();
  } while ((ahead ? here : next) < range.last);
}
// Over the keys that may be attended, with their values, and what dropout keeps of the block's queries with them.
template <class Tiles, class Body>
__device__ __forceinline__ void for_each_step_of_keys(const Attention& a, const AttentionBlock<Tiles>& block, const Range& range,
                                                      const Body& body) {
  constexpr int kWords = (Tiles::kColumns + 31) / 32;
  const auto look = [&](int s) { return seen_keys(a, block.b, s); };
  const auto fill = [&](int s, const unsigned (&seen)[kWords], const StepTiles<Tiles>& tiles) {
    const auto live = [&](int row) { return bit(row < 32 ? seen[0] : seen[kWords - 1], row & 31); };
    fetch<2>(a, block, a.key, a.value, s, Tiles::kColumns, tiles.right, live);
    if (a.dropout) make_keep(a, block, block.first, block.rows, s, kWords, tiles.keep);
  };
  for_each_step(a, block, range, look, fill, body);
}

// 2^x for x that is not far above 0.
template <class T>
__device__ __forceinline__ float exp2_of(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return exp2_moderate(x);
  } else {
    return exp2_approximate(x);  // what is made of it is rounded to 16 bits
  }
}

// x / total. For float it is rounded once: the rounding of an inverse would reach all keys of a query alike. Less text than the division,
// and the same wherever nothing underflows.
template <class T>
__device__ __forceinline__ float over(float x, float total, float inverse) {
  const float quotient = x * inverse;
  if constexpr (sizeof(T) < sizeof(float)) return quotient;
  const float rest = fmaf(-quotient, total, x), rounded = fmaf(rest, inverse, quotient);
  return rest == rest ? rounded : quotient;  // inf stays
}

}  // namespace emc::cuda
