"""Triton kernels, one file per operator, and the gate in front of them.

Triton serves NVIDIA devices of capability 8.0 and up, and AMD. Below 8.0 its ``tl.dot`` falls back without an error to scalar code that
spills thousands of registers, so older cards are served by CUDA C++ instead. With ``TRITON_INTERPRET=1`` in the environment the same
kernels run in Triton's interpreter on CPU tensors, for tests. Importing this package does not import Triton.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

#: Raw operators that have a Triton kernel, and the module that has it.
KERNELS: dict[str, str] = {
    "philox_normal": "philox",
    "philox_uniform": "philox",
    "dropout": "philox",
    "reparameterize": "reparameterize",
    "reparameterize_backward": "reparameterize",
    "fusion_kl": "fusion_kl",
    "fusion_kl_backward": "fusion_kl",
    "fusion_kl_categorical": "fusion_kl_categorical",
    "fusion_kl_categorical_backward": "fusion_kl_categorical",
    "dtw": "dtw",
    "attention": "attention",
    "attention_backward": "attention",
    "attention_block_epilogue": "attention_block",
    "attention_block_epilogue_backward": "attention_block",
}
#: Raw operators that the operator layer puts together from these.
COMPOSED = frozenset({"attention_block", "attention_block_backward"})
MINIMUM_CAPABILITY = (8, 0)


def interpreting() -> bool:
    """Whether Triton interprets its kernels on the CPU. Triton reads the variable when a kernel's module is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device_type() -> str:
    """The type of device whose tensors the kernels take."""
    return "cpu" if interpreting() else "cuda"


def kernel(raw: str) -> Callable[..., Any]:
    """The function that serves the raw operator ``raw``; imports Triton."""
    return getattr(importlib.import_module(f"{__name__}.{KERNELS[raw]}"), raw)


def _interpreter_reason() -> str:
    triton, numpy = (tuple(int(part) for part in re.findall(r"\d+", version(name))[:3]) for name in ("triton", "numpy"))
    if triton < (3, 7, 1) and numpy >= (2, 4):
        return "the interpreter of triton before 3.7.1 needs numpy before 2.4"
    return ""


@functools.cache
def device_reason() -> str:
    """Why no Triton kernel can run on this machine, or the empty string."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return _interpreter_reason()
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip:
        return ""
    capability = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if capability < MINIMUM_CAPABILITY:
        return f"the device has capability {capability[0]}.{capability[1]}, Triton's matrix instructions need 8.0"
    return ""


def triton_reason(raw: str) -> str:
    """Why Triton cannot serve the raw operator ``raw`` here, or the empty string."""
    if raw not in KERNELS and raw not in COMPOSED:
        return f"this version has no Triton kernel for {raw}"
    return device_reason()
