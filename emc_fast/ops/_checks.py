"""Checks of operators' arguments: each error names the argument, what it got and what it takes, before anything is launched.

Everything here is metadata (shapes, dtypes, devices): nothing reads a tensor's values, nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(name: str, value: object, *, min_dim: int = 0, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    """``value`` is a tensor of one of ``dtypes`` with at least ``min_dim`` dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be {_names(dtypes)}, got {value.dtype}")
    if value.dim() < min_dim:
        raise ValueError(f"{name} needs at least {min_dim} dimension{'s' if min_dim > 1 else ''}, got shape {tuple(value.shape)}")


def check_same(name: str, value: Tensor, other_name: str, other: Tensor, *, shape: bool = True, dtype: bool = True) -> None:
    """``value`` is on the device of ``other``, and has its shape and dtype where asked."""
    if shape and value.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(value.shape)}")
    if dtype and value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}")
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def check_probability(name: str, value: object) -> None:
    """``value`` is a number in [0, 1]."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_stream(value: object) -> None:
    """``stream`` is an int that fits the counter's fourth word."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"stream must be an int, got {type(value).__name__}")
    if not 0 <= value < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {value}")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}"
