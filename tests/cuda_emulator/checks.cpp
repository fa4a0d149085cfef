// Kernels with known faults, for the test of the emulator itself. Each returns what went wrong, or the empty string.
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator.h"
#include "ptx.h"

namespace {

std::string text;

const char* run(unsigned threads, const std::function<void()>& kernel, size_t shared_bytes = 0) {
  text.clear();
  try {
    emu::launch(2, threads, shared_bytes, kernel);
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace

#define EMC_EXPORT extern "C" __attribute__((visibility("default"), used))

// Sum of 0..threads-1 through shared memory, with or without the barrier that it needs.
EMC_EXPORT double emc_emulator_sum(int threads, int barrier) {
  double result = 0.0;
  run(
      static_cast<unsigned>(threads),
      [&] {
        auto* values = static_cast<float*>(emu::shared());
        values[threadIdx.x] = static_cast<float>(threadIdx.x);
        if (barrier != 0) __syncthreads();
        if (threadIdx.x == static_cast<unsigned>(threads) / 2) {
          result = 0.0;
          for (int i = 0; i < threads; ++i) result += values[i];
        }
      },
      static_cast<size_t>(threads) * sizeof(float));
  return result;
}
// 1 when shuffles and votes gave what they should, with many of them one behind the other.
EMC_EXPORT int emc_emulator_warp_operations() {
  std::vector<int> good(64);
  run(64, [&] {
    const unsigned lane = threadIdx.x % 32;
    bool fine = true;
    for (unsigned k = 0; k < 40; ++k) {
      fine = fine && __shfl_xor_sync(emu::kFullMask, lane * 7 + k, static_cast<int>(k % 32)) == (lane ^ (k % 32)) * 7 + k;
      fine = fine && __shfl_sync(emu::kFullMask, double(lane) + k, static_cast<int>(k)) == double(k % 32) + k;
      fine = fine && __ballot_sync(emu::kFullMask, lane % 3 == k % 3) == 0x49249249u << (k % 3);
      if (k % 5 == 0) __syncthreads();
    }
    fine = fine && __shfl_down_sync(emu::kFullMask, lane, 4u) == (lane < 28 ? lane + 4 : lane);
    fine = fine && __shfl_up_sync(emu::kFullMask, lane, 4u) == (lane < 4 ? lane : lane - 4);
    good[threadIdx.x] = fine;
  });
  for (const int g : good)
    if (g == 0) return 0;
  return text.empty();
}
// The same sum by copies to shared memory, behind which another group of copies follows: every step that a reader needs, or without one.
EMC_EXPORT double emc_emulator_copied_sum(int threads, int commit, int left, int barrier) {
  const auto count = static_cast<size_t>(threads);
  std::vector<float> numbers(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = static_cast<float>(i);
  double result = 0.0;
  run(
      static_cast<unsigned>(threads),
      [&] {
        auto* values = static_cast<float*>(emu::shared());
        values[threadIdx.x] = 1.0f;  // what a copy finds in its place must not pass for what it brings
        emc::cuda::copy_async(values + threadIdx.x, &numbers[threadIdx.x], threadIdx.x % 4 != 0);
        if (commit != 0) emc::cuda::commit_copies();
        emc::cuda::copy_async(values + threads + threadIdx.x, &numbers[threadIdx.x], true);
        emc::cuda::commit_copies();
        if (left == 0) emc::cuda::wait_copies<0>();
        if (left == 1) emc::cuda::wait_copies<1>();
        if (barrier != 0) __syncthreads();
        if (threadIdx.x == static_cast<unsigned>(threads) / 2) {
          result = 0.0;
          for (int i = 0; i < threads; ++i) result += values[i];
        }
        emc::cuda::wait_copies<0>();
      },
      2 * count * sizeof(float));
  return result;
}
EMC_EXPORT const char* emc_emulator_unwaited() {
  return run(
      32,
      [] {
        static const float one = 1.0f;
        emc::cuda::copy_async(static_cast<float*>(emu::shared()) + threadIdx.x, &one, true);
        emc::cuda::commit_copies();
      },
      32 * sizeof(float));
}
EMC_EXPORT const char* emc_emulator_misaligned_copy() {
  return run(
      32,
      [] {
        static const uint2 from{};
        emc::cuda::copy_async(reinterpret_cast<uint2*>(static_cast<float*>(emu::shared()) + 1), &from, true);
      },
      32 * sizeof(float));
}
EMC_EXPORT const char* emc_emulator_deadlock() {
  return run(64, [] {
    if (threadIdx.x < 40) __syncwarp();  // the second warp's other lanes have ended
  });
}
EMC_EXPORT const char* emc_emulator_divergence() {
  return run(32, [] {
    if (threadIdx.x % 2 == 0) {
      __syncwarp();
    } else {
      __shfl_xor_sync(emu::kFullMask, 1, 1);
    }
  });
}
EMC_EXPORT const char* emc_emulator_partial_mask() {
  return run(32, [] { __syncwarp(0xffffu); });
}
EMC_EXPORT const char* emc_emulator_odd_block() {
  return run(33, [] {});
}
// Writes one float beyond the block's shared memory: what AddressSanitizer is there to see.
EMC_EXPORT void emc_emulator_out_of_bounds() {
  run(32, [] { static_cast<float*>(emu::shared())[threadIdx.x + 1] = 1.0f; }, 32 * sizeof(float));
}
