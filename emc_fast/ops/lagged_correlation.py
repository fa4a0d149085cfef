"""Pearson's coefficient of two sequences at every lag of a range, for many pairs in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backend, _library
from ._checks import check_tensor
from .reference import lagged_correlation as reference

__all__ = ["lagged_correlation"]

_library.define("lagged_correlation(Tensor x, Tensor y, int max_lag) -> Tensor")
_library.register_fake(
    "lagged_correlation",
    lambda x, y, max_lag: x.new_empty((x.shape[0], x.shape[1], 2 * max_lag + 1, x.shape[3]), dtype=torch.float64),
)
_backend.register_operator("lagged_correlation")


def lagged_correlation(x: Tensor, y: Tensor, max_lag: int) -> Tensor:
    """Pearson's coefficient of x[t + l] and y[t] over the frames where both exist, for l = -max_lag ... max_lag.

    Args:
        x: (N,K,T,C) float32, float16, bfloat16 or float64, any strides: K sequences to be compared with each of y.
        y: (N,T,C) of the same dtype.
        max_lag: largest lag in frames, at least 0.

    Returns:
        (N,K,2 max_lag + 1,C) float64, summed in float64. NaN where a channel is constant in either overlap, or where fewer than two frames
        overlap. It is a measure, not a loss: a gradient is refused.

    Raises:
        TypeError, ValueError: an argument is not as above, or requires a gradient; the text names it.
    """
    check_tensor("x", x)
    check_tensor("y", y)
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise ValueError(f"x must have shape (N,K,frames,channels) with at least one frame and channel, got {tuple(x.shape)}")
    if y.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(f"y must have shape {(x.shape[0], *x.shape[2:])} to go with x, got {tuple(y.shape)}")
    if y.dtype != x.dtype:
        raise TypeError(f"y must have the dtype of x, {x.dtype}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x, {x.device}, got {y.device}")
    if isinstance(max_lag, bool) or not isinstance(max_lag, int) or max_lag < 0:
        raise ValueError(f"max_lag must be an int of at least 0, got {max_lag!r}")
    for name, value in (("x", x), ("y", y)):
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and lagged_correlation has none: it is a measure; pass {name}.detach() or use torch.no_grad()"
            )
    if _backend.choose("lagged_correlation", x.device, x.dtype) == "reference":
        return reference.lagged_correlation(x, y, max_lag)
    with torch.no_grad():
        return torch.ops.emc_fast.lagged_correlation(x.float(), y.float(), max_lag)
