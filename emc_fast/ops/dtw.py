"""Batched exact dynamic time warping: many pairs of sequences in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backend, _library
from ._checks import check_tensor
from .reference import dtw as reference

__all__ = ["dtw"]

_library.define(
    "dtw(Tensor x, Tensor y, Tensor pairs, Tensor? x_lengths, Tensor? y_lengths, Tensor? bound, bool exact) -> Tensor",
)
_library.register_fake("dtw", lambda x, y, pairs, x_lengths, y_lengths, bound, exact: x.new_empty((pairs.shape[0],), dtype=torch.float64))
_backend.register_operator("dtw")


def _check_index(name: str, value: object, like: Tensor, shape: tuple[int | None, ...], text: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {got}")
    if value.dim() != len(shape) or any(want is not None and want != have for want, have in zip(shape, value.shape, strict=True)):
        raise ValueError(f"{name} must have shape {text}, got {tuple(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of x, {like.device}, got {value.device}")


def _check_range(name: str, value: Tensor, low: int, high: int) -> None:
    """Values of a CPU tensor; those of another device would have to be waited for, and compiled code has none to look at."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if value.numel() and (int(value.min()) < low or int(value.max()) > high):
        raise ValueError(f"{name} must be in [{low}, {high}], got values from {int(value.min())} to {int(value.max())}")


def dtw(
    x: Tensor,
    y: Tensor,
    pairs: Tensor,
    *,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    bound: Tensor | None = None,
    exact: bool = True,
) -> Tensor:
    """Distance of pairs of sequences under the best warping of time.

    D[t,s] = ||x_t - y_s||^2 + min(D[t-1,s], D[t,s-1], D[t-1,s-1]); the result is sqrt(D[T-1,S-1]) (Sakoe and Chiba 1978, full window).

    Args:
        x: (N,T,C) float32, float16, bfloat16 or float64, any strides.
        y: (M,S,C) of the same dtype.
        pairs: (P,2) int64; row p asks for the distance of x[pairs[p,0]] and y[pairs[p,1]].
        x_lengths: (N,) int64 in [1,T], frames beyond a length do not count; None: all frames count.
        y_lengths: (M,) int64 in [1,S], likewise.
        bound: (P,) float64. A pair farther apart than its bound comes back as infinity; work on it stops as soon as that is certain.
        exact: squared differences; a frame pair's gaps, squares and their sum over C channels in float32, the path's sum in float64:
            right to (C + 3) 2^-25 (5e-7 for 15 channels), in practice about 1e-8, while |x - y|^2 stays finite in float32.
            ``False`` takes |x|^2 + |y|^2 - 2 x.y accumulated in float32, twice as fast, for telling which pairs deserve the exact
            distance; see :func:`estimate_error`.

    Numbers in ``pairs`` and lengths that are out of range are an error on the CPU. On other devices, and in compiled code, looking at them
    would mean waiting for them: there such a pair comes back as NaN, and nothing beyond a tensor is read.

    Returns:
        (P,) float64. It is a measure, not a loss: a gradient is refused.

    Raises:
        TypeError, ValueError: an argument is not as above (values: on the CPU), or requires a gradient; the text names it.
    """
    check_tensor("x", x)
    check_tensor("y", y)
    for name, value in (("x", x), ("y", y)):
        if value.dim() != 3 or 0 in value.shape[1:]:
            shape = tuple(value.shape)
            raise ValueError(f"{name} must have shape (sequences, frames, channels) with at least one frame and channel, got {shape}")
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and dtw has none: it is a measure; pass {name}.detach() or use torch.no_grad()")
    if y.shape[2] != x.shape[2]:
        raise ValueError(f"y must have the {x.shape[2]} channels of x, got {y.shape[2]}")
    if y.dtype != x.dtype:
        raise TypeError(f"y must have the dtype of x, {x.dtype}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x, {x.device}, got {y.device}")
    _check_index("pairs", pairs, x, (None, 2), "(P,2)")
    if x_lengths is not None:
        _check_index("x_lengths", x_lengths, x, (x.shape[0],), f"({x.shape[0]},)")
        _check_range("x_lengths", x_lengths, 1, x.shape[1])
    if y_lengths is not None:
        _check_index("y_lengths", y_lengths, x, (y.shape[0],), f"({y.shape[0]},)")
        _check_range("y_lengths", y_lengths, 1, y.shape[1])
    if pairs.shape[0]:
        _check_range("the first column of pairs", pairs[:, 0], 0, x.shape[0] - 1)
        _check_range("the second column of pairs", pairs[:, 1], 0, y.shape[0] - 1)
    if bound is not None:
        check_tensor("bound", bound, dtypes=(torch.float64,))
        if bound.shape != pairs.shape[:1] or bound.device != x.device:
            raise ValueError(f"bound must have shape {tuple(pairs.shape[:1])} on {x.device}, got {tuple(bound.shape)} on {bound.device}")
    backend = _backend.choose("dtw", x.device, x.dtype)
    if backend == "reference":
        return reference.dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths, bound=bound)
    with torch.no_grad():
        # Half types widen exactly, and what stands beyond a length need not be finite: the kernel never reads it.
        dense = (None if tensor is None else tensor.contiguous() for tensor in (x_lengths, y_lengths, bound))
        return _library.raw(backend).dtw(x.float(), y.float(), pairs.contiguous(), *dense, exact)


def estimate_error(frames: int, channels: int, largest_norm: float, distance: Tensor) -> Tensor:
    """Largest error that ``dtw(..., exact=False)`` can have.

    Each cell of the path adds a rounding of |x|^2 + |y|^2 - 2 x.y, at most (C + 4) u (|x| + |y|)^2 with u = 2^-24, and one of the running
    sum, u D; a path has fewer than T + S cells.

    Args:
        frames: T + S.
        channels: C.
        largest_norm: the largest |x_t|^2 or |y_s|^2 of the sequences.
        distance: (P,) estimates.

    Returns:
        (P,) float64: bound of the absolute error of each distance.
    """
    unit = frames * 2.0**-24
    squared = unit * ((channels + 4) * 4.0 * largest_norm + distance.square()) * (1.0 + unit)
    return torch.minimum(squared.sqrt(), squared / distance.clamp(min=1e-300))
