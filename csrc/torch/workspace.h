// Scratch memory that is kept between calls, and parallel loops whose threads each need some.
#pragma once

#include <atomic>
#include <cstdlib>

#include "boxed.h"

namespace emc {

// `floats` floats at a multiple of 64 bytes, for as long as this object lives and on this thread alone. The memory is a thread's own and is
// taken again by the next call: fresh pages from the system would cost more than many kernels take. More than kKept is given back at once.
class Workspace {
 public:
  explicit Workspace(int64_t floats) : bytes_((static_cast<size_t>(floats) * sizeof(float) / 64 + 1) * 64) {
    Store& store = kept();
    size_t best = store.free.size();
    for (size_t i = 0; i < store.free.size(); ++i)
      if (store.free[i].bytes >= bytes_ && (best == store.free.size() || store.free[i].bytes < store.free[best].bytes)) best = i;
    if (best < store.free.size()) {
      bytes_ = store.free[best].bytes, data_ = store.free[best].data;
      store.free.erase(store.free.begin() + static_cast<std::ptrdiff_t>(best));
      store.bytes -= bytes_;
    } else {
      data_ = std::aligned_alloc(64, bytes_);
      if (data_ != nullptr) prefer_large_pages(data_, bytes_);
    }
    if (data_ != nullptr && poison_memory()) __builtin_memset(data_, 0xff, bytes_);
  }
  ~Workspace() {
    Store& store = kept();
    while (store.bytes + bytes_ > kKept && !store.free.empty()) {  // the oldest go first
      std::free(store.free.front().data);
      store.bytes -= store.free.front().bytes;
      store.free.erase(store.free.begin());
    }
    if (data_ == nullptr) return;
    if (bytes_ > kKept) {
      std::free(data_);
      return;
    }
    store.free.push_back({data_, bytes_});
    store.bytes += bytes_;
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return static_cast<float*>(data_); }  // null where there was no memory
  float* get() const {
    if (data_ == nullptr) throw std::runtime_error("emc_fast: no memory for a workspace of " + std::to_string(bytes_) + " bytes");
    return data();
  }

 private:
  static constexpr size_t kKept = size_t{32} << 20;
  struct Piece {
    void* data;
    size_t bytes;
  };
  struct Store {
    std::vector<Piece> free;
    size_t bytes = 0;
    ~Store() {
      for (const Piece& piece : free) std::free(piece.data);
    }
  };
  static Store& kept() {
    static thread_local Store store;
    return store;
  }

  size_t bytes_;
  void* data_ = nullptr;
};

// Body(int64_t begin, int64_t end, float* workspace): `floats` floats at a multiple of 64 bytes, one set per call of the body.
template <class Body>
void parallel_with_workspace(int64_t count, int64_t grain, int64_t floats, const Body& body) {
  std::atomic<bool> short_of_memory{false};
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {  // may not throw
    const Workspace workspace(floats);
    if (workspace.data() == nullptr) {
      short_of_memory = true;
      return;
    }
    body(begin, end, workspace.data());
  });
  if (short_of_memory)
    throw std::runtime_error("emc_fast: no memory for a workspace of " + std::to_string(static_cast<size_t>(floats) * sizeof(float)) +
                             " bytes");
}

// Body(int64_t task, float* workspace) for tasks that each are worth a thread. A thread takes the next one when it has done one, so that
// they may be of unequal length; the longest should come first.
template <class Body>
void parallel_tasks(int64_t count, int64_t grain, int64_t floats, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_with_workspace(count, grain, floats, [&](int64_t, int64_t, float* workspace) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(task, workspace);
  });
}

}  // namespace emc
