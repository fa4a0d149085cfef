"""The protocol of REACT 2025 and 2026: clips of any length, each with a list of appropriate listeners of any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ._inputs import (
    CHANNELS,
    PROTOCOLS,
    ArrayLike,
    Protocol,
    as_predictions,
    check_finite,
    check_protocol,
    mean_over_clips,
    over_clips,
    to_tensor,
)
from ._sharing import gathered, world_and_rank
from .diversity import between_draws, over_time
from .frcorr import best_concordance
from .frdist import least_warped
from .frsyn import synchrony_offsets

__all__ = ["LIST_NAMES", "ListTable", "evaluate_lists", "measure_lists", "resample"]

#: The measures in the order of the tables of 2025 and 2026.
LIST_NAMES = ("frcorr", "frdist", "frdiv", "frvar", "frsyn", "mae")

_UNITS = slice(0, 15)
_EXPRESSIONS = slice(17, 25)


def resample(target: NDArray[Any], frames: int) -> NDArray[np.float32]:
    """Bring a reaction (S,25) to another number of frames by linear interpolation over time.

    As the published post-processing does by a trained autoencoder, action units become 0 or 1 (threshold 0.5) and expressions sum to one.
    """
    if len(target) == frames:
        return np.asarray(target, dtype=np.float32)
    places = np.linspace(0.0, len(target) - 1.0, frames)
    below = np.minimum(places.astype(np.int64), max(len(target) - 2, 0))
    share = (places - below)[:, None]
    above = np.minimum(below + 1, len(target) - 1)
    out = (1.0 - share) * np.asarray(target, dtype=np.float64)[below] + share * np.asarray(target, dtype=np.float64)[above]
    out[:, _UNITS] = out[:, _UNITS] >= 0.5
    total = out[:, _EXPRESSIONS].sum(axis=1, keepdims=True)
    np.divide(out[:, _EXPRESSIONS], total, out=out[:, _EXPRESSIONS], where=total > 0)
    return out.astype(np.float32)


def _sequence(name: str, value: ArrayLike) -> NDArray[Any]:
    return as_predictions(name, value[None, None])[0, 0] if getattr(value, "ndim", 0) == 2 else as_predictions(name, value)[0, 0]


def _checked_clip(
    n: int, pred: ArrayLike, targets: Sequence[ArrayLike], speaker: ArrayLike
) -> tuple[NDArray[Any], list[NDArray[Any]], NDArray[Any]]:
    name = f"pred[{n}]"
    if getattr(pred, "ndim", 0) != 3:
        raise DataError(f"{name}: got shape {tuple(getattr(pred, 'shape', ()))}, takes (K,T,{CHANNELS})")
    p = as_predictions(name, pred[None])
    if not len(targets):
        raise DataError(f"target[{n}]: names no listener; each clip needs at least one appropriate reaction")
    g = [_sequence(f"target[{n}][{j}]", target) for j, target in enumerate(targets)]
    s = _sequence(f"speaker[{n}]", speaker)
    if len(s) != p.shape[2]:
        raise DataError(f"speaker[{n}]: has {len(s)} frames, {name} has {p.shape[2]}; they must be the same")
    check_finite(name, p)
    for label, values in ((f"speaker[{n}]", s), *((f"target[{n}][{j}]", target) for j, target in enumerate(g))):
        check_finite(label, values[None])
    return np.asarray(p[0], dtype=np.float32), g, s


def _least(pred: NDArray[Any], targets: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """(K,): distance of each draw to the nearest of listeners of any lengths."""
    lengths = torch.tensor([len(target) for target in targets])
    y = np.zeros((len(targets), int(lengths.max()), CHANNELS), dtype=np.float32)
    for row, target in zip(y, targets, strict=True):
        row[: len(target)] = target
    pairs = torch.cartesian_prod(torch.arange(len(pred)), torch.arange(len(targets)))
    return least_warped(to_tensor(pred), torch.from_numpy(y), pairs, y_lengths=lengths).numpy()


@dataclass
class ListTable:
    """Measures of N clips of any lengths; what :class:`ClipTable` is for clips of one length."""

    values: dict[Protocol, dict[str, NDArray[np.float64]]]  # (N,) for each protocol and measure
    draws: int

    def __len__(self) -> int:
        return len(self.values["official"]["frcorr"])

    def per_clip(self, protocol: Protocol) -> dict[str, NDArray[np.float64]]:
        """(N,) values of each measure, whose mean over clips is its figure."""
        return self.values[protocol]

    def figures(self, protocol: Protocol) -> dict[str, float]:
        """Each measure's figure, the mean over clips."""
        return {name: mean_over_clips(values) for name, values in self.values[protocol].items()}


def _measure_clip(
    pred: NDArray[Any], targets: list[NDArray[Any]], speaker: NDArray[Any], align: Callable[[NDArray[Any], int], NDArray[Any]], fps: int
) -> dict[Protocol, dict[str, float]]:
    aligned = np.stack([align(listener, pred.shape[1]) for listener in targets]).astype(np.float32)
    best = best_concordance(pred[None], aligned, np.ones((1, len(aligned)), dtype=bool))
    least: dict[Protocol, NDArray[np.float64]] = {"official": _least(pred, list(aligned))}
    unequal = any(len(target) != pred.shape[1] for target in targets)
    least["fixed"] = _least(pred, targets) if unequal else least["official"]
    offsets = synchrony_offsets(pred[None], speaker[None], fps=fps)
    units = pred[:, :, _UNITS].astype(np.float64)
    same = {
        "frdiv": float(between_draws(pred[None])[0]),
        "frvar": float(over_time(pred[None]).mean()),
        "mae": float(np.mean([np.abs(units - listener[:, _UNITS]).mean() for listener in aligned])),
    }
    out: dict[Protocol, dict[str, float]] = {}
    for protocol in PROTOCOLS:
        out[protocol] = {
            "frcorr": float(over_clips(best[protocol], protocol)[0]),
            "frdist": float(over_clips(least[protocol][None], protocol)[0]),
            "frsyn": float(offsets[protocol][0, : 1 if protocol == "official" else None].mean()),
            **same,
        }
    return out


def measure_lists(
    pred: Sequence[ArrayLike],
    target: Sequence[Sequence[ArrayLike]],
    speaker: Sequence[ArrayLike],
    *,
    align: Callable[[NDArray[Any], int], NDArray[Any]] = resample,
    fps: int = 25,
    progress: Callable[[int], None] | None = None,
) -> ListTable:
    """Everything about every clip, from which both protocols' figures follow; arguments as :func:`evaluate_lists` takes them.

    The sequences are indexed clip by clip, so that they may read files when asked. Where torch.distributed is initialised with several
    processes the clips are shared out, and every process gets the whole table, the same to the last bit.

    Raises:
        DataError: as :func:`evaluate_lists`.
    """
    if not len(pred) == len(target) == len(speaker):
        raise DataError(f"pred, target and speaker must be lists of one length, got {len(pred)}, {len(target)} and {len(speaker)}")
    if not len(pred):
        raise DataError("pred: an empty list holds nothing to measure")
    world, rank = world_and_rank()
    mine = []
    for n in range(rank, len(pred), world):  # in turns: lengths differ, and often by folder
        p, g, s = _checked_clip(n, pred[n], target[n], speaker[n])
        mine.append((len(p), _measure_clip(p, g, s, align, fps)))
        if progress is not None:
            progress(1)
    shares = gathered(mine)
    rows = [shares[n % world][n // world] for n in range(len(pred))]
    draws = rows[0][0]
    for n, (other, _) in enumerate(rows):
        if other != draws:
            raise DataError(f"pred[{n}]: has {other} draws, pred[0] has {draws}; every clip needs as many")
    return ListTable(
        {protocol: {name: np.array([row[protocol][name] for _, row in rows]) for name in LIST_NAMES} for protocol in PROTOCOLS}, draws
    )


def evaluate_lists(
    pred: Sequence[ArrayLike],
    target: Sequence[Sequence[ArrayLike]],
    speaker: Sequence[ArrayLike],
    *,
    protocol: Protocol = "official",
    align: Callable[[NDArray[Any], int], NDArray[Any]] = resample,
    fps: int = 25,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """FRCorr, FRDist, FRDiv, FRVar, FRSyn and MAE of clips of unequal lengths, by their lower-case names.

    Every clip counts alike, however long. FRDvs is not defined between clips of unequal lengths; the published code refuses it too.

    Args:
        pred: N arrays (K,T_n,25) of predicted emotion.
        target: for each clip its appropriate listeners, arrays (S,25) of any length; 10 of them in the challenge.
        speaker: N arrays (T_n,25).
        protocol: ``official`` aligns every listener to the prediction's length first, also for FRDist; ``fixed`` mends what it mends in
            :func:`emc_fast.metrics.evaluate`, and gives FRDist the listeners as they are, since warping needs no equal lengths.
        align: brings a listener (S,25) to T frames. The challenge uses a trained autoencoder; pass it here if you have it.
        fps: frames a second, for the lags of FRSyn; the published code keeps 25 though this corpus has 30.
        progress: called with 1 after each clip.

    Returns:
        The measures; ``mae`` is the mean absolute error of the 15 action units over all pairs of a draw and a listener.

    Raises:
        DataError: lists of different lengths, a wrong shape, a value that is not finite, or a clip without any listener; each is named.
    """
    check_protocol(protocol)
    return measure_lists(pred, target, speaker, align=align, fps=fps, progress=progress).figures(protocol)
