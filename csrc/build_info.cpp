// emc_fast._build_info: what the native library was built from and for.
#include <pybind11/pybind11.h>

#include "build_config.h"

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "What the native library of emc_fast was built from and for.";
  m.attr("version") = EMC_VERSION;
  m.attr("compiler") = EMC_COMPILER;
  m.attr("processor") = EMC_PROCESSOR;
  m.attr("built") = EMC_BUILD_TIME;
  m.attr("isas") = EMC_ISA_LIST;
  m.attr("cuda") = EMC_CUDA_STATUS;
  m.attr("cuda_targets") = EMC_CUDA_TARGETS;
  m.attr("cuda_version") = EMC_CUDA_VERSION;
}
