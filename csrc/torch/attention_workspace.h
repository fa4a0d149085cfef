// Parallel loops whose threads each need scratch memory.
#pragma once

#include <atomic>
#include <cstdlib>

#include "boxed.h"

namespace emc {

// Body(int64_t begin, int64_t end, float* workspace): `floats` floats at a multiple of 64 bytes, one set per call of the body.
template <class Body>
void parallel_with_workspace(int64_t count, int64_t grain, int64_t floats, const Body& body) {
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) / 64 + 1) * 64;
  std::atomic<bool> short_of_memory{false};
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {  // may not throw
    void* workspace = std::aligned_alloc(64, bytes);
    if (workspace == nullptr) {
      short_of_memory = true;
      return;
    }
    if (poison_memory()) __builtin_memset(workspace, 0xff, bytes);
    body(begin, end, static_cast<float*>(workspace));
    std::free(workspace);
  });
  if (short_of_memory) throw std::runtime_error("emc_fast: no memory for a workspace of " + std::to_string(bytes) + " bytes");
}

}  // namespace emc
