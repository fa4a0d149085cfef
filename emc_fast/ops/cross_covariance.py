"""Covariance over time of every sequence of one set with every sequence of another, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backend, _library
from ._checks import check_tensor
from .reference import cross_covariance as reference

__all__ = ["cross_covariance"]


def _fake(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    k, j, c = x.shape[0], y.shape[0], x.shape[2]
    return tuple(x.new_empty(shape, dtype=torch.float64) for shape in ((k, j, c), (k, 2, c), (j, 2, c)))  # type: ignore[return-value]


_library.define("cross_covariance(Tensor x, Tensor y) -> (Tensor, Tensor, Tensor)")
_library.register_fake("cross_covariance", _fake)
_backend.register_operator("cross_covariance")


def cross_covariance(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance of each sequence with each, and the moments of all, by one reading of the data.

    Args:
        x: (K,T,C) float32, float16, bfloat16 or float64, any strides.
        y: (J,T,C) of the same dtype.

    Returns:
        Covariances (K,J,C), and mean and variance of x (K,2,C) and of y (J,2,C): float64, T in the denominator. A channel that is constant
        has a variance and covariances of exactly 0. It is a measure, not a loss: a gradient is refused.

    Raises:
        TypeError, ValueError: an argument is not as above, or requires a gradient; the text names it.
    """
    for name, value in (("x", x), ("y", y)):
        check_tensor(name, value)
        if value.dim() != 3 or 0 in value.shape[1:]:
            shape = tuple(value.shape)
            raise ValueError(f"{name} must have shape (sequences, frames, channels) with at least one frame and channel, got {shape}")
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and cross_covariance has none: it is a measure; pass {name}.detach()")
    if y.shape[1:] != x.shape[1:]:
        raise ValueError(f"y must have the frames and channels of x, {tuple(x.shape[1:])}, got {tuple(y.shape[1:])}")
    if y.dtype != x.dtype:
        raise TypeError(f"y must have the dtype of x, {x.dtype}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x, {x.device}, got {y.device}")
    if _backend.choose("cross_covariance", x.device, x.dtype) == "reference":
        return reference.cross_covariance(x, y)
    with torch.no_grad():
        return torch.ops.emc_fast.cross_covariance(x.float(), y.float())
