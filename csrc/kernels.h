// What a kernel and its boxed operator share: plain descriptions of tensors, and the table of kernels per instruction set.
// Nothing here knows torch; nothing here is compiled differently from one instruction set to the next.
#pragma once

#ifdef __CUDACC_RTC__  // NVRTC has no headers of the C library
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
#else
#include <cstdint>
#endif

namespace emc {

// A number that a generic lambda takes as a type.
template <int N>
struct Number {
  static constexpr int kValue = N;
};

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

// How precisely float32 operands are multiplied where the processor offers a choice (docs/operators.md, "Lower precision"): as float32, at
// 2^-16 of it, as bfloat16. Set for the process; a call takes it once, so that its threads and its passes agree.
enum class Precision : int32_t { kHighest, kHigh, kMedium };

// A tensor seen as rows along its last dimension, any strides (in elements, 0 for expanded dimensions). Borrows sizes and strides.
struct Rows {
  void* data;
  DType dtype;
  int64_t width;   // size of the last dimension
  int64_t stride;  // stride of the last dimension
  int64_t outer;   // number of dimensions before the last
  const int64_t* sizes;
  const int64_t* strides;
};

// Tensors of one shape (*outer, width), walked row by row: neighbouring outer dimensions are merged where every tensor steps through them
// evenly, so that dense tensors are left with one. Copied into a kernel's arguments as it stands.
struct Walk {
  static constexpr int kMaxOuter = 16;
  int outer;
  int64_t sizes[kMaxOuter];
  int64_t rows, width;
};
struct Operand {
  const void* data;
  int64_t outer[Walk::kMaxOuter];  // strides in elements
  int64_t stride;                  // of the last dimension
};

// One dense int64 tensor of seeds and how rows find theirs; see docs/operators.md, "Noise".
struct Noise {
  const int64_t* seeds;   // (num_seeds,)
  int64_t rows_per_seed;  // leading indices that share a seed: the counter's third word runs over them
  int64_t frames;         // T: rows of one leading index
  int64_t frame_offset;
  uint32_t stream;
};

// Dropout keeps an element where u >= p. In integers: where (w >> 9) >= keep_from(p).
static inline uint32_t keep_from(double p) {
  const double bound = p * 8388608.0 - 0.5;
  if (!(bound > 0.0)) return 0;
  const uint32_t below = static_cast<uint32_t>(bound);
  return static_cast<double>(below) < bound ? below + 1 : below;
}

}  // namespace emc

// In a kernel's header: EMC_KERNEL_TABLE(PhiloxKernels, philox) declares emc::<isa>::philox for every instruction set that is built.
// In its boxed operator: EMC_KERNELS(philox) is the table for this machine. In its source: `const PhiloxKernels philox = {...};`
// A table that has kernels for bfloat16 as well, by products of pairs (namespace bf16) and by matrix tiles (csrc/cpu/amx), is declared by
// EMC_KERNEL_TABLE_BF16 and taken by EMC_KERNELS_BF16.
#ifdef EMC_HAVE_V3
#define EMC_TABLE_V3(type, name) \
  namespace v3 {                 \
  extern const type name;        \
  }
#define EMC_PICK_V3(name) ::emc::isa() == ::emc::Isa::kV3 ? &::emc::v3::name:
#else
#define EMC_TABLE_V3(type, name)
#define EMC_PICK_V3(name)
#endif
#ifdef EMC_HAVE_V4
#define EMC_TABLE_V4(type, name) \
  namespace v4 {                 \
  extern const type name;        \
  }
#define EMC_PICK_V4(name) ::emc::isa() >= ::emc::Isa::kV4 ? &::emc::v4::name:
#else
#define EMC_TABLE_V4(type, name)
#define EMC_PICK_V4(name)
#endif
#ifdef EMC_HAVE_BF16
#define EMC_TABLE_BF16(type, name) \
  namespace bf16 {                 \
  extern const type name;          \
  }
#define EMC_PICK_BF16(name) ::emc::isa() == ::emc::Isa::kBf16 ? &::emc::bf16::name:
#else
#define EMC_TABLE_BF16(type, name)
#define EMC_PICK_BF16(name)
#endif
#ifdef EMC_HAVE_AMX
#define EMC_TABLE_AMX(type, name) \
  namespace amx {                 \
  extern const type name;         \
  }
#define EMC_PICK_AMX(name) ::emc::isa() == ::emc::Isa::kAmx ? &::emc::amx::name:
#else
#define EMC_TABLE_AMX(type, name)
#define EMC_PICK_AMX(name)
#endif
#ifdef EMC_ISA
#define EMC_KERNEL_TABLE(type, name) \
  namespace EMC_ISA {                \
  extern const type name;            \
  }
#else
#define EMC_KERNEL_TABLE(type, name) \
  namespace base {                   \
  extern const type name;            \
  }                                  \
  EMC_TABLE_V3(type, name)           \
  EMC_TABLE_V4(type, name)
#define EMC_KERNELS(name) (*(EMC_PICK_V4(name) EMC_PICK_V3(name) & ::emc::base::name))
#define EMC_KERNELS_BF16(name) (*(EMC_PICK_AMX(name) EMC_PICK_BF16(name) EMC_PICK_V4(name) EMC_PICK_V3(name) & ::emc::base::name))
#endif
#define EMC_KERNEL_TABLE_BF16(type, name) EMC_TABLE_AMX(type, name) EMC_TABLE_BF16(type, name) EMC_KERNEL_TABLE(type, name)
