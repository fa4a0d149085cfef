// CUDA on the CPU, for tests: every CUDA thread is a fiber, blocks run one after the other, barriers and shuffles are real.
//
// The kernels (csrc/cuda/*.cuh) and launchers (csrc/cuda/*.cu) are compiled unchanged by the host's C++ compiler with this file included
// first (-include) and -DEMC_EMULATOR. What it can show: wrong results, a missing barrier (the three scheduling orders then disagree), a
// barrier that not all threads reach (an exception), a copy to shared memory that is read before it has been waited for, or whose place is
// still in use when it begins (NaN), accesses out of bounds (with -fsanitize=address,undefined). What it cannot: speed,
// bank conflicts, coalescing, the memory model between blocks.
//
// Limits: warp operations take the full mask, and shared memory comes from emc::cuda::shared_memory() alone. It is filled with NaN before
// each block.
#pragma once

#include <math.h>  // fmaf, sqrtf, fabsf and log stand outside of std, as in CUDA

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emu {

constexpr unsigned kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr unsigned kSlot = 64;  // bytes that a lane brings to its warp

enum class State { kReady, kAtWarp, kAtBlock, kDone };
enum class Meeting {
  kNone,
  kSync,
  kShuffle,
  kBallot,
  kLoadMatrix,
  kMatrix
};  // what a lane waits in: all lanes of a warp must wait in the same

struct Warp {
  alignas(16) unsigned char slot[2][kWarp][kSlot];  // values of two operations: one lane may be an operation ahead of another
  alignas(16) float result[2][kWarp][kSlot / sizeof(float)];
  bool computed[2];
};

// Bytes on their way into shared memory; zeros where there is nothing to read.
struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
  unsigned group;  // its number among the thread's
};

struct Thread {
  dim3 thread_index, block_index;
  unsigned lane = 0;
  unsigned parity = 0;
  Warp* warp = nullptr;
  State state = State::kReady;
  Meeting meeting = Meeting::kNone;
  void* stack_pointer = nullptr;  // while it does not run
  std::vector<Copy> copies;
  unsigned groups = 0;  // of copies, committed so far
};

extern Thread* current;
extern dim3 block_dim, grid_dim;
extern int capability;  // of the device that is emulated, times ten: which matrix instructions it has

void meet(Meeting meeting);  // wait for the warp
void sync_threads();         // wait for the block
// A copy that arrives when its thread waits for it; until then NaN stands in its place, whatever was there before.
void copy_later(void* to, const void* from, unsigned bytes);
void commit_copies();
void wait_copies(unsigned left);  // until all but the `left` youngest groups are there
[[noreturn]] void fail(const char* text);
void* shared();
bool in_shared(const void* p, size_t bytes);
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

inline void need_full(unsigned mask) {
  if (mask != kFullMask) fail("the emulator takes full warp masks only");
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= kSlot);
  need_full(mask);
  Thread& me = *current;
  const unsigned parity = me.parity;
  std::memcpy(me.warp->slot[parity][me.lane], &value, sizeof value);
  me.parity ^= 1;
  meet(Meeting::kShuffle);
  std::memcpy(&value, me.warp->slot[parity][source % kWarp], sizeof value);
  return value;
}

// What all lanes of the warp bring, in each of them.
template <class T>
class Brought {
 public:
  Brought(Meeting meeting, const T& mine) {
    static_assert(sizeof(T) <= kSlot);
    Thread& me = *current;
    slots_ = me.warp->slot[me.parity];
    std::memcpy(slots_[me.lane], &mine, sizeof mine);
    me.parity ^= 1;
    meet(meeting);
  }
  T operator[](unsigned lane) const {
    T value;
    std::memcpy(&value, slots_[lane], sizeof value);
    return value;
  }

 private:
  unsigned char (*slots_)[kSlot];
};

// An operation of the whole warp on what its lanes bring: the first lane that goes on computes the results of all.
template <class T, size_t n, class Compute>
void compute_together(const T& mine, float (&result)[n], const Compute& compute) {
  static_assert(sizeof result <= kSlot);
  Thread& me = *current;
  const unsigned parity = me.parity;
  Warp& warp = *me.warp;
  warp.computed[parity] = false;
  const Brought<T> all(Meeting::kMatrix, mine);
  if (!warp.computed[parity]) compute(all, warp.result[parity]);
  warp.computed[parity] = true;
  std::memcpy(result, warp.result[parity][me.lane], sizeof result);
}

}  // namespace emu

#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define threadIdx (::emu::current->thread_index)
#define blockIdx (::emu::current->block_index)
#define blockDim (::emu::block_dim)
#define gridDim (::emu::grid_dim)

inline void __syncthreads() { emu::sync_threads(); }
inline void __syncwarp(unsigned mask = emu::kFullMask) {
  emu::need_full(mask);
  emu::meet(emu::Meeting::kSync);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emu::shuffle(mask, value, static_cast<unsigned>(source));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emu::shuffle(mask, value, emu::current->lane ^ static_cast<unsigned>(lanes));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes) {
  const unsigned lane = emu::current->lane;
  return emu::shuffle(mask, value, lane < lanes ? lane : lane - lanes);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
  const unsigned lane = emu::current->lane;
  return emu::shuffle(mask, value, lane + lanes >= emu::kWarp ? lane : lane + lanes);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  emu::need_full(mask);
  emu::Thread& me = *emu::current;
  const unsigned parity = me.parity;
  me.warp->slot[parity][me.lane][0] = predicate != 0;
  me.parity ^= 1;
  emu::meet(emu::Meeting::kBallot);
  unsigned votes = 0;
  for (unsigned i = 0; i < emu::kWarp; ++i) votes |= static_cast<unsigned>(me.warp->slot[parity][i][0]) << i;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == emu::kFullMask; }

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
inline unsigned __float_as_uint(float x) {
  unsigned u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float __uint_as_float(unsigned u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
