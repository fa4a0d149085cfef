"""What the measures take: NumPy arrays or tensors in the field's shapes.

Everything else is refused, with the argument's name and the place of the fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError

__all__ = [
    "CHANNELS",
    "LARGEST",
    "PROTOCOLS",
    "ArrayLike",
    "Protocol",
    "as_appropriate",
    "as_clips",
    "as_predictions",
    "check_finite",
    "check_protocol",
    "checked_predictions",
    "checked_with_listeners",
    "chunks",
    "mean_over_clips",
    "over_clips",
    "to_tensor",
]

ArrayLike = NDArray[Any] | Tensor
Protocol = Literal["official", "fixed"]
PROTOCOLS: tuple[Protocol, ...] = ("official", "fixed")
CHANNELS = 25  # 15 action units, valence, arousal, 8 expressions
#: Largest magnitude that is taken. Warping forms squared gaps in float32, and its first look adds them there along a path: gaps of up to
#: 2e15 make 6e31 a cell of 15 channels, of which five million stay below the 3.4e38 of float32. Beyond, an infinity hides the nearest.
LARGEST = 1e15
_CHUNK = 8  # clips looked at in one go: 8 clips of 10 draws of 750 frames are 6 MB


def chunks(n: int, size: int = _CHUNK) -> Iterator[slice]:
    """Slices of `size` clips starting at multiples of `size`: a sum over clips is grouped alike however the clips are dealt out."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The array in float32 as a tensor; its own memory where that is possible. Read-only memory, a memory map's, is copied."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_protocol(protocol: str) -> None:
    """Refuse a protocol that does not exist."""
    if protocol not in PROTOCOLS:
        raise ValueError(f'protocol: got {protocol!r}, takes "official" or "fixed"')


def _as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = (
            value.detach().cpu().numpy()
            if value.dtype.itemsize >= 4 or not value.is_floating_point()
            else value.detach().cpu().float().numpy()
        )
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: got {type(value).__name__}, takes a NumPy array or a tensor")
    return value


def _as_signal(name: str, value: ArrayLike, shape: str, ndim: int) -> NDArray[Any]:
    array = _as_array(name, value)
    if array.ndim != ndim or array.shape[-1] != CHANNELS:
        raise DataError(
            f"{name}: got shape {array.shape}, takes {shape} with {CHANNELS} channels (15 action units, valence, arousal, 8 expressions)"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{name}: got dtype {array.dtype}, takes a floating dtype; convert it with .astype(numpy.float32)")
    if 0 in array.shape:
        raise DataError(f"{name}: got shape {array.shape}, which holds nothing to measure")
    return array


def as_predictions(name: str, value: ArrayLike) -> NDArray[Any]:
    """(N,K,T,25) floating array, a view where possible (a memory map stays one)."""
    return _as_signal(name, value, "(N,K,T,25)", 4)


def as_clips(name: str, value: ArrayLike, like: NDArray[Any] | None = None, of: str = "pred") -> NDArray[Any]:
    """(N,T,25) floating array; with `like` (N,K,T,25) its N and T must be the same."""
    array = _as_signal(name, value, "(N,T,25)", 3)
    if like is not None and array.shape[:2] != (like.shape[0], like.shape[2]):
        raise DataError(
            f"{name}: got {array.shape[0]} clips of {array.shape[1]} frames, but {of} has {like.shape[0]} clips of {like.shape[2]} frames; "
            "cut both to the same frames (the corpus has 751 pictures for 750 rows of emotion)"
        )
    return array


def as_appropriate(
    value: ArrayLike, clips: int, listeners: int | None = None, numbers: Sequence[int] | NDArray[np.integer] | None = None
) -> NDArray[np.bool_]:
    """(N,M) bool: entry 1 means that listener m is an appropriate reaction to clip n.

    M is N unless `listeners` says otherwise; every row needs at least one listener. `numbers` are those of the rows in a whole of which
    some clips are left out.
    """
    array = _as_array("appropriate", value)
    expected = (clips, clips if listeners is None else listeners)
    if array.shape != expected:
        raise DataError(f"appropriate: got shape {array.shape}, takes {expected}: a row for each clip, a column for each listener")
    matrix = np.asarray(array == 1)
    empty = np.flatnonzero(~matrix.any(axis=1))
    if empty.size:
        first, measured = (empty[0], "") if numbers is None else (numbers[empty[0]], " that is measured")
        raise DataError(
            f"appropriate: {empty.size} of {clips} rows name no listener{measured} (the first is row {first}); "
            f"each clip needs at least one appropriate reaction{measured}"
        )
    return matrix


def check_finite(name: str, array: NDArray[Any], numbers: Sequence[int] | NDArray[np.integer] | None = None) -> None:
    """Refuse NaN, infinity and what is beyond `LARGEST`, with the place of the first; `numbers` are those of the clips in the whole."""
    if float(array.min()) >= -LARGEST and float(array.max()) <= LARGEST:  # NaN is in no range; only a bad array is looked at closely
        return
    needed, wrong = "finite values", ~np.isfinite(array)
    if not wrong.any():
        needed, wrong = f"magnitudes up to {LARGEST:g}, whose squares float32 can add up; scale both signals", np.abs(array) > LARGEST
    bad = np.argwhere(wrong)
    place = (int(bad[0][0] if numbers is None else numbers[bad[0][0]]), *map(int, bad[0][1:]))
    axes = ("clip", "draw", "frame", "channel") if array.ndim == 4 else ("clip", "frame", "channel")
    where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
    raise DataError(f"{name}: {float(array[tuple(bad[0])]):g} at {where} ({len(bad)} such values in this part); the measures need {needed}")


def checked_predictions(pred: ArrayLike, protocol: str) -> NDArray[Any]:
    """(N,K,T,25) finite predictions, none beyond `LARGEST`, and a protocol that exists: what every measure takes."""
    check_protocol(protocol)
    p = as_predictions("pred", pred)
    for part in chunks(len(p)):
        check_finite("pred", p[part], range(part.start, part.stop))
    return p


def checked_with_listeners(
    pred: ArrayLike, target: ArrayLike, appropriate: ArrayLike, protocol: str
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Predictions, listeners (N,T,25) and matrix (N,N): what a measure of appropriateness takes."""
    p = checked_predictions(pred, protocol)
    g = as_clips("target", target, p)
    check_finite("target", g)
    return p, g, as_appropriate(appropriate, len(p))


def over_clips(per_draw: NDArray[Any], protocol: Protocol) -> NDArray[np.float64]:
    """(N,K) -> (N,): ``official`` sums a clip's draws, ``fixed`` takes their mean."""
    return np.asarray(per_draw.sum(axis=1) if protocol == "official" else per_draw.mean(axis=1), dtype=np.float64)


def mean_over_clips(per_clip: NDArray[Any]) -> float:
    """The figure. The sum is rounded once, so that it does not depend on how the clips were dealt out."""
    return math.fsum(per_clip) / len(per_clip)
