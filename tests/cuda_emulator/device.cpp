// The emulator's side of csrc/torch/cuda/device.h: tensors are on the CPU, and the CUDA operators take the place of the CPU's while a test
// asks for it.
#include "../../csrc/torch/cuda/device.h"

namespace emc {
namespace {

struct Operator {
  const char* name;
  BoxedFunction function;
};
std::vector<Operator>& operators() {
  static std::vector<Operator> all;
  return all;
}
TorchLibraryHandle library = nullptr;

}  // namespace

bool poison_memory() { return true; }

OnDevice::OnDevice(const Tensor& tensor) : type_(tensor.device_type()), index_(0) {}
OnDevice::~OnDevice() = default;

Tensor OnDevice::empty(const int64_t* sizes, int64_t ndim, int32_t torch_dtype) const { return empty_cpu(sizes, ndim, torch_dtype); }

RegisterCuda::RegisterCuda(std::initializer_list<std::pair<const char*, BoxedFunction>> functions) {
  for (const auto& [name, function] : functions) operators().push_back({name, function});
}

}  // namespace emc

extern "C" AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle library);
#define EMC_EXPORT extern "C" __attribute__((visibility("default"), used))

// From now on the CPU's tensors go to the emulated CUDA operators.
EMC_EXPORT void emc_emulator_enable() {
  if (emc::library != nullptr) return;
  emc::check(aoti_torch_library_init_impl("emc_fast", "CPU", __FILE__, __LINE__, &emc::library), "the emulator's registration");
  for (const auto& op : emc::operators()) emc::check(torch_library_impl(emc::library, op.name, op.function, emc::kTorchInterface), op.name);
}
// What was registered before stands again.
EMC_EXPORT void emc_emulator_disable() {
  if (emc::library != nullptr) aoti_torch_delete_library_object(emc::library);
  emc::library = nullptr;
}
