"""What a measurement depends on of the machine that made it, and nothing that tells whose machine that was."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy
import torch

from .._version import __version__
from ..ops import native

CPUINFO = Path("/proc/cpuinfo")
SIBLINGS = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")


def this_machine() -> dict[str, Any]:
    """Processor, cores, instruction sets and versions, as a file of races has them under ``machine_info``."""
    library = native()
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        **topology(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "isa": library.isa,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "emc_fast": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "compiler": library.stamp.get("compiler", ""),
        },
    }


def this_gpu() -> dict[str, Any]:
    """The CUDA device in use, as a file of its races has it under ``gpu`` in ``machine_info``.

    Name, capability (90 is 9.0), multiprocessors, GiB of memory, CUDA's version and Triton's (empty without it).
    """
    from importlib import metadata
    from importlib.util import find_spec

    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": found.name,
        "capability": 10 * found.major + found.minor,
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda or "",
        "triton": metadata.version("triton") if find_spec("triton") else "",
    }


def _cpuinfo(name: str) -> str:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def processor() -> str:
    """The model of the processor as it calls itself; its family too where that is a brand alone, as in some virtual machines."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family = _cpuinfo("cpu family")
    return f"{name} (family {family})" if family and re.fullmatch(r"AMD \w+", name) else name


def topology() -> dict[str, Any]:
    """``threads_per_core`` as the system has it, if it says so, and whether the machine is ``virtual``: a hypervisor says it then."""
    found: dict[str, Any] = {}
    try:
        spans = re.findall(r"(\d+)(?:-(\d+))?", SIBLINGS.read_text())
        found["threads_per_core"] = sum(int(last or first) - int(first) + 1 for first, last in spans)
    except OSError:
        pass
    return found | {"virtual": "hypervisor" in _cpuinfo("flags").split()}


def topology_in_words(machine: dict[str, Any]) -> str:
    """What a file of races knows of it; the empty string if nothing."""
    count = machine.get("threads_per_core")
    if count is None:
        return ""
    says = "it is virtual, and its hypervisor says so" if machine.get("virtual") else "by its own account"
    return f"{count} hardware thread{'s' * (count > 1)} to a core ({says})"
