"""What the launchers of all Triton kernels share: tensors as rows, fresh outputs, the device, the noise's arguments."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import interpreting

#: Dimensions before the last that a kernel walks by itself, once neighbours that all operands step through evenly are merged.
MAX_OUTER = 3


def fresh(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised dense tensor; full of NaN where ``EMC_FAST_POISON`` asks for it (tests)."""
    dtype = dtype or like.dtype
    if os.environ.get("EMC_FAST_POISON") and dtype.is_floating_point:
        return torch.full(tuple(shape), math.nan, dtype=dtype, device=like.device)
    return torch.empty(tuple(shape), dtype=dtype, device=like.device)


def device_guard(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes x's device the current one, on which Triton launches."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def capability(x: Tensor) -> int:
    """Compute capability of x's device as a number (80, 90); 0 on AMD and in the interpreter."""
    if interpreting() or torch.version.hip or x.device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def processors(x: Tensor) -> int:
    """Multiprocessors of x's device; 1 on the CPU."""
    return _processors(x.device.index) if x.device.type == "cuda" else 1


class Rows(NamedTuple):
    """Operands of one leading shape as rows: the merged outer sizes, and each operand with its outer strides."""

    total: int
    outer: int
    sizes: tuple[int, int]  # of the last two outer dimensions; the first follows from the row
    operands: list[Tensor | None]
    strides: list[tuple[int, ...]]  # per operand, of the MAX_OUTER outer dimensions, 0 for those that are not there


def as_rows(lead: Sequence[int], operands: Sequence[Tensor | None]) -> Rows:
    """Describe operands whose first ``len(lead)`` dimensions are ``lead`` (or none, for a missing operand).

    More than :data:`MAX_OUTER` dimensions that cannot be merged are rare; there the operands that are not dense are copied.
    """
    sizes, strides = _merge(lead, operands)
    if len(sizes) > MAX_OUTER:
        operands = [None if x is None else x.contiguous() for x in operands]
        sizes, strides = _merge(lead, operands)
    sizes = [1] * (MAX_OUTER - len(sizes)) + sizes
    padded = [(0,) * (MAX_OUTER - len(s)) + tuple(s) for s in strides]
    outer = max(1, sum(size != 1 for size in sizes))
    return Rows(math.prod(lead), outer, (sizes[1], sizes[2]), list(operands), padded)


def _merge(lead: Sequence[int], operands: Sequence[Tensor | None]) -> tuple[list[int], list[list[int]]]:
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in operands]
    for d, size in enumerate(lead):
        if size == 1:
            continue
        here = [0 if x is None else x.stride(d) for x in operands]
        if sizes and all(s[-1] == stride * size for s, stride in zip(steps, here, strict=True)):
            sizes[-1] *= size
            for s, stride in zip(steps, here, strict=True):
                s[-1] = stride
        else:
            sizes.append(size)
            for s, stride in zip(steps, here, strict=True):
                s.append(stride)
    return sizes, steps


class Noise(NamedTuple):
    """Arguments of a kernel that makes noise for a tensor (*lead, T, d); see docs/operators.md, "Noise"."""

    seeds: Tensor | None
    frames: int
    rows_per_seed: int
    stream: int
    frame_offset: Tensor | None


def noise_of(shape: Sequence[int], seed: Tensor | None, stream: int, frame_offset: Tensor | None) -> Noise:
    """The noise of a tensor of ``shape``. Nothing here reads the seed."""
    if seed is None:
        return Noise(None, 1, 1, 0, None)
    frames = shape[-2] if len(shape) > 1 else 1
    lead = math.prod(shape[:-2]) if len(shape) > 1 else 1
    return Noise(seed.contiguous(), frames, max(1, lead // max(1, seed.numel())), stream, frame_offset)
