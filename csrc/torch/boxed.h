// Helpers for boxed operators: owning tensor handles, arguments from and results to the stack, allocation, threads, registration.
//
// A boxed operator is `void f(StableIValue* stack, uint64_t num_args, uint64_t num_returns)`. It owns the tensors on the stack, so it takes
// every argument before anything can throw. An exception reaches Python as RuntimeError with its text.
#pragma once

#include <sys/mman.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../kernels.h"
#include "../torch_shim.h"

namespace emc {

enum class Isa { kBase, kV3, kV4, kBf16, kAmx };  // each runs what those before it run
Isa isa();                                        // chosen once: the best that the processor runs, or what EMC_FAST_ISA says
Precision float32_precision();                    // of products of float32; read once a call
bool poison_memory();                             // tests: fill fresh outputs with NaN, so that an element that was never written shows

inline void check(AOTITorchError error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string("emc_fast: torch refused ") + what);
}

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  void* data() const {
    void* p = nullptr;
    check(aoti_torch_get_data_ptr(handle_, &p), "a data pointer");
    return p;
  }
  template <class T>
  T* data_as() const {
    return static_cast<T*>(data());
  }
  int64_t dim() const {
    int64_t n = 0;
    check(aoti_torch_get_dim(handle_, &n), "a dimension");
    return n;
  }
  int64_t numel() const {
    int64_t n = 0;
    check(aoti_torch_get_numel(handle_, &n), "a size");
    return n;
  }
  const int64_t* sizes() const {
    int64_t* p = nullptr;
    check(aoti_torch_get_sizes(handle_, &p), "sizes");
    return p;
  }
  const int64_t* strides() const {
    int64_t* p = nullptr;
    check(aoti_torch_get_strides(handle_, &p), "strides");
    return p;
  }
  int64_t size(int64_t d) const { return sizes()[d < 0 ? d + dim() : d]; }
  int64_t stride(int64_t d) const { return strides()[d < 0 ? d + dim() : d]; }
  int32_t torch_dtype() const {
    int32_t t = 0;
    check(aoti_torch_get_dtype(handle_, &t), "a dtype");
    return t;
  }
  int32_t device_type() const {
    int32_t t = 0;
    check(aoti_torch_get_device_type(handle_, &t), "a device");
    return t;
  }
  int32_t device_index() const {
    int32_t i = 0;
    check(aoti_torch_get_device_index(handle_, &i), "a device");
    return i;
  }
  bool is_contiguous() const {
    bool yes = false;
    check(aoti_torch_is_contiguous(handle_, &yes), "contiguity");
    return yes;
  }

 private:
  AtenTensorHandle handle_ = nullptr;
};

// --- arguments: each takes what stands in its slot ---
inline Tensor take_tensor(StableIValue slot) { return Tensor(reinterpret_cast<AtenTensorHandle>(slot)); }
inline int64_t take_int(StableIValue slot) { return static_cast<int64_t>(slot); }
inline bool take_bool(StableIValue slot) { return (slot & 0xff) != 0; }
inline double take_double(StableIValue slot) {
  double value;
  __builtin_memcpy(&value, &slot, sizeof value);
  return value;
}
// Tensor?: null, or a heap cell that holds the handle.
inline Tensor take_optional_tensor(StableIValue slot) {
  auto* cell = reinterpret_cast<StableIValue*>(slot);
  if (cell == nullptr) return Tensor();
  Tensor tensor = take_tensor(*cell);
  if (torch_delete_stable_ivalue != nullptr) {
    torch_delete_stable_ivalue(cell);
  } else {
    delete cell;
  }
  return tensor;
}
// int?, float?
inline std::optional<StableIValue> take_optional(StableIValue slot) {
  auto* cell = reinterpret_cast<StableIValue*>(slot);
  if (cell == nullptr) return std::nullopt;
  StableIValue value = *cell;
  if (torch_delete_stable_ivalue != nullptr) {
    torch_delete_stable_ivalue(cell);
  } else {
    delete cell;
  }
  return value;
}

inline StableIValue give(Tensor&& tensor) { return reinterpret_cast<StableIValue>(tensor.release()); }

// --- dtypes ---
inline DType dtype_of(const Tensor& tensor, const char* name) {
  const int32_t t = tensor.torch_dtype();
  if (t == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (t == aoti_torch_dtype_float16()) return DType::kFloat16;
  if (t == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  throw std::runtime_error(std::string("emc_fast: ") + name + " must be float32, float16 or bfloat16");
}

inline Rows rows_of(const Tensor& tensor, const char* name) {
  const int64_t n = tensor.dim();
  if (n < 1) throw std::runtime_error(std::string("emc_fast: ") + name + " needs at least one dimension");
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  return Rows{tensor.data(), dtype_of(tensor, name), sizes[n - 1], strides[n - 1], n - 1, sizes, strides};
}

// Fresh memory of some megabytes costs more to fault in, four kibibytes at a time, than most kernels take to fill it: ask for large pages.
inline void prefer_large_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kLarge = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLarge - 1) / kLarge * kLarge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLarge * kLarge;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: a refusal changes nothing
#endif
}

// --- outputs: dense; on the CPU filled with NaN when tests ask for it ---
inline Tensor empty_dense(const int64_t* sizes, int64_t ndim, int32_t torch_dtype, int32_t device_type, int32_t device_index) {
  std::vector<int64_t> strides(static_cast<size_t>(ndim));
  int64_t numel = 1;
  for (int64_t d = ndim - 1; d >= 0; --d) {
    strides[static_cast<size_t>(d)] = numel;
    numel *= sizes[d] > 0 ? sizes[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  check(aoti_torch_empty_strided(ndim, sizes, strides.data(), torch_dtype, device_type, device_index, &handle), "memory for an output");
  return Tensor(handle);
}
inline Tensor empty_cpu(const int64_t* sizes, int64_t ndim, int32_t torch_dtype) {
  Tensor tensor = empty_dense(sizes, ndim, torch_dtype, aoti_torch_device_type_cpu(), 0);
  prefer_large_pages(tensor.data(), static_cast<size_t>(tensor.numel()) * aoti_torch_dtype_element_size(torch_dtype));
  if (poison_memory() && tensor.numel() > 0)
    __builtin_memset(tensor.data(), 0xff, static_cast<size_t>(tensor.numel()) * aoti_torch_dtype_element_size(torch_dtype));
  return tensor;
}
inline Tensor empty_like(const Tensor& other) { return empty_cpu(other.sizes(), other.dim(), other.torch_dtype()); }

// --- threads: torch's pool, so torch.set_num_threads governs and nested regions stay serial ---
template <class Body>  // Body(int64_t begin, int64_t end); must not throw
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  check(torch_parallel_for(
            0, count, grain > 0 ? grain : 1, [](int64_t begin, int64_t end, void* ctx) { (*static_cast<const Body*>(ctx))(begin, end); },
            const_cast<void*>(static_cast<const void*>(&body))),
        "a parallel loop");
}

// --- noise arguments: seed int64 of shape (1,) or a prefix of the leading dimensions; rows of `like` are (*lead, T) ---
struct NoiseLayout {
  int64_t rows_per_seed, frames;
};
inline NoiseLayout noise_layout(const Tensor& like, const Tensor& seed, const Tensor& frame_offset) {
  if (seed.torch_dtype() != aoti_torch_dtype_int64() || !seed.is_contiguous())
    throw std::runtime_error("emc_fast: seed must be a contiguous int64 tensor");
  if (frame_offset && (frame_offset.torch_dtype() != aoti_torch_dtype_int64() || frame_offset.numel() != 1))
    throw std::runtime_error("emc_fast: frame_offset must be an int64 tensor of one element");
  const int64_t frames = like.dim() > 1 ? like.size(-2) : 1;
  int64_t lead = 1;
  for (int64_t d = 0; d < like.dim() - 2; ++d) lead *= like.size(d);
  const int64_t seeds = seed.numel();
  if (seeds == 0 ? lead != 0 : lead % seeds != 0) throw std::runtime_error("emc_fast: the seeds do not divide the leading dimensions");
  return {seeds == 0 ? 1 : lead / seeds, frames};
}
inline Noise noise_of(const Tensor& like, const Tensor& seed, int64_t stream, const Tensor& frame_offset) {
  const NoiseLayout layout = noise_layout(like, seed, frame_offset);
  return Noise{seed.data_as<const int64_t>(), layout.rows_per_seed, layout.frames,
               frame_offset ? *frame_offset.data_as<const int64_t>() : 0, static_cast<uint32_t>(stream)};
}

// --- registration: `static const emc::Register cpu("CPU", {{"philox", philox_boxed}});`; the schema stands in emc_fast/ops/<op>.py ---
using BoxedFunction = void (*)(StableIValue*, uint64_t, uint64_t);
struct Register {
  Register(const char* key, std::initializer_list<std::pair<const char*, BoxedFunction>> functions) {
    TorchLibraryHandle library = nullptr;
    check(aoti_torch_library_init_impl("emc_fast", key, __FILE__, __LINE__, &library), "the library's registration");
    for (const auto& [name, function] : functions) check(torch_library_impl(library, name, function, kTorchInterface), name);
    // The handle is kept for the life of the process: deleting it would take the kernels away again.
  }
};

}  // namespace emc
