"""Triton kernels, one file per operator, and the gate in front of them.

Triton serves NVIDIA devices of capability 8.0 and up, and AMD. Below 8.0 its ``tl.dot`` falls back without an error to scalar code that
spills thousands of registers, so older cards are served by CUDA C++ instead.
"""

from __future__ import annotations

import functools
import importlib.util

#: Operators that have a Triton kernel in this version.
OPERATORS: frozenset[str] = frozenset()
MINIMUM_CAPABILITY = (8, 0)


@functools.cache
def device_reason() -> str:
    """Why no Triton kernel can run on this machine, or the empty string."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip:
        return ""
    capability = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if capability < MINIMUM_CAPABILITY:
        return f"the device has capability {capability[0]}.{capability[1]}, Triton's matrix instructions need 8.0"
    return ""


def triton_reason(operator: str) -> str:
    """Why Triton cannot serve ``operator`` here, or the empty string."""
    if operator not in OPERATORS:
        return f"this version has no Triton kernel for {operator}"
    return device_reason()
