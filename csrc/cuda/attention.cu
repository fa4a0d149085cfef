// Launchers of attention.
#include "attention.cuh"
#include "attention_backward.cuh"
#include "launch.h"

namespace emc::cuda {
namespace {

using AttentionKernel = void (*)(Attention);

// How many elements of a row can be read at once.
int together(const HeadsOperand& x, int width, DType dtype) {
  const auto even = [&](int n) {
    const uintptr_t bytes = static_cast<uintptr_t>(n) * (dtype == DType::kFloat32 ? 4 : 2);
    return reinterpret_cast<uintptr_t>(x.data) % bytes == 0 && x.stride[0] % n == 0 && x.stride[1] % n == 0 && x.stride[2] % n == 0 &&
           width % n == 0;
  };
  return x.stride[3] != 1 ? 1 : dtype != DType::kFloat32 && even(8) ? 8 : even(4) ? 4 : even(2) ? 2 : 1;
}

// The kernels of a dtype and a padded head width, and what they need.
struct AttentionPlan {
  AttentionKernel forward, backward_queries, backward_keys;
  int most_warps;
  int (*bytes)(int rows, int lefts, int stages);

  template <class T, int kWidth>
  static AttentionPlan of() {
    using Tiles = AttentionTiles<T, kWidth>;
    static_assert(Tiles::bytes(Tiles::kMaxRows, 2, 1) <= 64 * 1024, "what a block of 7.5 can have");
    return {&attention<T, kWidth>, &attention_backward_queries<T, kWidth>, &attention_backward_keys<T, kWidth>, Tiles::kMaxWarps,
            [](int rows, int lefts, int stages) { return Tiles::bytes(rows, lefts, stages); }};
  }
  template <class T>
  static AttentionPlan of_width(int width) {
    if constexpr (sizeof(T) < sizeof(float))  // multiply-adds leave out what is beyond the width
      if (width <= 16) return of<T, 16>();
    return width <= 32 ? of<T, 32>() : width <= 64 ? of<T, 64>() : of<T, 128>();
  }
  static AttentionPlan of(const Attention& a) {
    return a.dtype == DType::kFloat32   ? of_width<float>(a.width)
           : a.dtype == DType::kFloat16 ? of_width<Half>(a.width)
                                        : of_width<BFloat16>(a.width);
  }
};

// Steps whose tiles a block has at once: two from 8.0 on, where shared memory then leaves a multiprocessor `enough` blocks, each of which
// is charged 1 KiB more than it asks for. Code that is older than the device takes one, and leaves the rest alone.
int stages_for(int bytes_of_two, int enough, int device) {
  int major = 0, shared = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess) return 1;
  return major >= 8 && enough * (bytes_of_two + 1024) <= shared ? 2 : 1;
}

// Over `length` rows of every head. Blocks get fewer warps where there would be fewer blocks than multiprocessors; that changes no bit.
const char* run(Attention a, AttentionKernel kernel, const AttentionPlan& plan, int64_t length, int lefts, int device, void* stream) {
  const auto blocks = [&](int warps) { return a.batch * a.heads * ((length + warps * kTile - 1) / (warps * kTile)); };
  int warps = plan.most_warps;
  const int64_t multiprocessors = grid_for(int64_t{1} << 40, device, 1);
  while (warps > 1 && blocks(warps) < multiprocessors) warps /= 2;
  const int64_t grid = blocks(warps);
  if (grid == 0) return nullptr;
  if (grid > 0x7fffffff) return "attention takes fewer than 2^31 tiles of queries or keys";
  const int enough = kernel == plan.backward_keys ? 2 : 3;  // what registers leave to most of the kernels
  a.stages = a.dtype == DType::kFloat32 ? 1 : stages_for(plan.bytes(warps * kTile, lefts, 2), enough, device);
  const size_t bytes = static_cast<size_t>(plan.bytes(warps * kTile, lefts, a.stages));
  return launch(kernel, static_cast<unsigned>(grid), static_cast<unsigned>(warps * kWarp), bytes, stream, a);
}

void prepare(Attention* a) {
  a->query.together = together(a->query, a->width, a->dtype);
  a->key.together = together(a->key, a->width, a->dtype);
  a->value.together = together(a->value, a->width, a->dtype);
  if (a->grad_out.data != nullptr) a->grad_out.together = together(a->grad_out, a->width, a->dtype);
}

}  // namespace

const char* emc_cuda_attention(const Attention* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  Attention a = *arguments;
  prepare(&a);
  const AttentionPlan plan = AttentionPlan::of(a);
  return run(a, plan.forward, plan, a.queries, 1, device, stream);
}
const char* emc_cuda_attention_backward(const Attention* arguments, int device, void* stream) {
  if (const char* error = use_device(device)) return error;
  Attention a = *arguments;
  prepare(&a);
  const AttentionPlan plan = AttentionPlan::of(a);
  if (const char* error = run(a, plan.backward_queries, plan, a.queries, 2, device, stream)) return error;
  return run(a, plan.backward_keys, plan, a.keys, 2, device, stream);
}

}  // namespace emc::cuda
