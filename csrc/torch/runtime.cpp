// State of the library: the instruction set, the precision of products, the poison switch, and the stamp that Python reads before it loads
// the file.
#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "boxed.h"
#include "build_config.h"
#ifdef EMC_HAVE_CUDA
#include "../cuda/device.h"
#endif

namespace emc {
namespace {

#if defined(__x86_64__)
// Matrix tiles have a state of 8 KiB, which Linux gives to a process that asks; the question is asked once.
bool has_tiles() {
#if defined(EMC_EMULATED_TILES)
  return true;
#elif defined(EMC_HAVE_AMX)
  static const bool granted = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & bit_AMX_TILE) == 0 || (d & bit_AMX_BF16) == 0) return false;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}
#endif

bool supported(Isa level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (level == Isa::kAmx) return v4 && has_tiles();
#ifdef EMC_HAVE_BF16
  if (level == Isa::kBf16) return v4 && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef EMC_HAVE_V4
  if (level == Isa::kV4) return v4;
#endif
#ifdef EMC_HAVE_V3
  if (level == Isa::kV3) return v3;
#endif
#endif
  return level == Isa::kBase;
}

const char* const kNames[] = {"base", "v3", "v4", "bf16", "amx"};

Isa best() {
  for (Isa level : {Isa::kAmx, Isa::kBf16, Isa::kV4, Isa::kV3})
    if (supported(level)) return level;
  return Isa::kBase;
}

// Name of a level that this machine can run, else nothing.
std::optional<Isa> parse(const char* name) {
  for (Isa level : {Isa::kBase, Isa::kV3, Isa::kV4, Isa::kBf16, Isa::kAmx})
    if (name != nullptr && std::strcmp(name, kNames[static_cast<int>(level)]) == 0 && supported(level)) return level;
  return std::nullopt;
}

std::atomic<Isa> chosen{parse(std::getenv("EMC_FAST_ISA")).value_or(best())};
const char* const kPrecisions[] = {"highest", "high", "medium"};
std::atomic<Precision> precision{Precision::kHighest};
std::atomic<bool> poison{std::getenv("EMC_FAST_POISON") != nullptr};

}  // namespace

Isa isa() { return chosen.load(std::memory_order_relaxed); }
Precision float32_precision() { return precision.load(std::memory_order_relaxed); }
bool poison_memory() { return poison.load(std::memory_order_relaxed); }

}  // namespace emc

#define EMC_EXPORT extern "C" __attribute__((visibility("default"), used))

// Found by a search for its first words, without loading the file; emc_fast/ops/_library.py compares it with what it expects.
EMC_EXPORT const char emc_fast_stamp[] =
    "emc_fast native library|version=" EMC_VERSION "|interface=1|processor=" EMC_PROCESSOR "|isas=" EMC_ISA_LIST "|sources=" EMC_SOURCES
    "|compiler=" EMC_COMPILER "|cuda=" EMC_CUDA_STATUS "|";

EMC_EXPORT const char* emc_fast_isa() { return emc::kNames[static_cast<int>(emc::isa())]; }
// Take another instruction set (tests); 0, or 1 when this machine cannot run it.
EMC_EXPORT int emc_fast_set_isa(const char* name) {
  const auto level = emc::parse(name);
  if (level) emc::chosen = *level;
  return level ? 0 : 1;
}
EMC_EXPORT const char* emc_fast_float32_precision() { return emc::kPrecisions[static_cast<int>(emc::float32_precision())]; }
// Calls that start from now on multiply float32 so; 0, or 1 for a name that there is not.
EMC_EXPORT int emc_fast_set_float32_precision(const char* name) {
  for (emc::Precision level : {emc::Precision::kHighest, emc::Precision::kHigh, emc::Precision::kMedium})
    if (std::strcmp(name, emc::kPrecisions[static_cast<int>(level)]) == 0) {
      emc::precision = level;
      return 0;
    }
  return 1;
}
// Why the CUDA kernels of this build cannot run in this process, or the empty string. Asks the driver.
EMC_EXPORT const char* emc_fast_cuda_problem() {
#ifdef EMC_HAVE_CUDA
  const char* problem = emc::cuda::emc_cuda_problem();
  return problem != nullptr ? problem : "";
#else
  return "built without CUDA";
#endif
}
EMC_EXPORT void emc_fast_set_poison(int on) { emc::poison = on != 0; }
