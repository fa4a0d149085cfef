// What a kernel and its boxed operator share: plain descriptions of tensors, and the table of kernels per instruction set.
// Nothing here knows torch; nothing here is compiled differently from one instruction set to the next.
#pragma once

#include <cstdint>

namespace emc {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

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

// One dense int64 tensor of seeds and how rows find theirs; see docs/operators.md, "Noise".
struct Noise {
  const int64_t* seeds;   // (num_seeds,)
  int64_t rows_per_seed;  // leading indices that share a seed: the counter's third word runs over them
  int64_t frames;         // T: rows of one leading index
  int64_t frame_offset;
  uint32_t stream;
};

}  // namespace emc

// In a kernel's header: EMC_KERNEL_TABLE(PhiloxKernels, philox) declares emc::<isa>::philox for every instruction set that is built.
// In its boxed operator: EMC_KERNELS(philox) is the table for this machine. In its source: `const PhiloxKernels philox = {...};`
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
#define EMC_PICK_V4(name) ::emc::isa() == ::emc::Isa::kV4 ? &::emc::v4::name:
#else
#define EMC_TABLE_V4(type, name)
#define EMC_PICK_V4(name)
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
#endif
