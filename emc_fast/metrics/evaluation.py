"""All measures of a set of predictions in one go, on one process or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ._inputs import ArrayLike, Protocol, as_appropriate, as_clips, as_predictions, check_finite, check_protocol, chunks
from ._sharing import gathered, world_and_rank
from .diversity import between_clips, between_draws, clip_mean, over_time
from .frcorr import best_concordance
from .frdist import nearest_warped
from .frsyn import synchrony_offsets
from .table import ClipTable

__all__ = ["evaluate", "measure_clips"]

_CLIPS = 16  # looked at together: all that is held in memory of the predictions


def _measure_part(
    pred: NDArray[Any],
    target: NDArray[Any],
    speaker: NDArray[Any],
    appropriate: NDArray[np.bool_],
    mean: NDArray[np.float64],
    clips: NDArray[np.int64],
    part: slice,
    fps: int,
) -> ClipTable:
    # In its own type: rounded to float32, the clips would not be those that the mean is of.
    mine = pred[clips[part]]
    check_finite("pred", mine, clips[part])
    best = best_concordance(mine, target, appropriate[part])
    offsets = synchrony_offsets(mine, speaker[part], fps=fps)
    return ClipTable(
        concordance_official=best["official"],
        concordance_fixed=best["fixed"],
        distance=nearest_warped(mine, target, appropriate[part]),
        between_draws=between_draws(mine),
        over_time=over_time(mine),
        between_clips=between_clips(mine, mean, len(clips)),
        offset_official=offsets["official"],
        offset_fixed=offsets["fixed"],
    )


def measure_clips(
    pred: ArrayLike,
    target: ArrayLike,
    speaker: ArrayLike,
    appropriate: ArrayLike,
    *,
    clips: NDArray[np.int64] | None = None,
    fps: int = 25,
    progress: Callable[[int], None] | None = None,
) -> ClipTable:
    """Everything about every clip, from which both protocols' figures follow.

    Where torch.distributed is initialised with several processes (gloo), each must call this with the same arguments; the clips are shared
    out and every process gets the whole table. It is the same table to the last bit, however many processes there are.

    Args:
        pred: (N,K,T,25) predicted emotion; a memory map is read part by part and never held as a whole.
        target: (N,T,25) the listeners' true emotion.
        speaker: (N,T,25) the speakers' emotion.
        appropriate: (N,N) bool.
        clips: (N,) ascending numbers of the clips of `pred` that are measured, where it has more than the others; None: all. Errors name
            clips of `pred` and rows of `appropriate` by these numbers.
        fps: frames a second, for the range of lags of FRSyn.
        progress: called with the number of clips just done, on every process.

    Raises:
        DataError: as the single measures.
    """
    p = as_predictions("pred", pred)
    numbers = np.arange(len(p)) if clips is None else np.asarray(clips)
    if numbers.ndim != 1 or numbers.dtype.kind != "i" or not numbers.size or (np.diff(numbers, prepend=-1, append=len(p)) < 1).any():
        got = np.array2string(numbers, threshold=10)
        raise DataError(f"clips: got {got}, takes ascending whole numbers of clips of pred, from 0 to {len(p) - 1}")
    like, of = p[: len(numbers)], "pred" if clips is None else "pred[clips]"
    g, s = as_clips("target", target, like, of), as_clips("speaker", speaker, like, of)
    a = as_appropriate(appropriate, len(numbers), numbers=clips)
    check_finite("target", g)
    check_finite("speaker", s)
    world, rank = world_and_rank()

    # The mean over clips is shared out by frames, not by clips: each entry is then one sum in one order, whoever makes it.
    frames = p.shape[2]
    slab = slice(frames * rank // world, frames * (rank + 1) // world)
    mean = np.concatenate(gathered(clip_mean(p, numbers, slab)), axis=1)

    parts = list(chunks(len(numbers), _CLIPS))
    tables = []
    for part in parts[len(parts) * rank // world : len(parts) * (rank + 1) // world]:
        tables.append(_measure_part(p, g, s, a, mean, numbers, part, fps))
        if progress is not None:
            progress(part.stop - part.start)
    return ClipTable.concatenate([table for tables_of_one in gathered(tables) for table in tables_of_one])


def evaluate(
    pred: ArrayLike,
    target: ArrayLike,
    speaker: ArrayLike,
    appropriate: ArrayLike,
    *,
    protocol: Protocol = "official",
    fps: int = 25,
) -> dict[str, float]:
    """FRCorr, FRDist, FRDiv, FRVar, FRDvs and FRSyn of a set of predictions, by their lower-case names.

    Args:
        pred: (N,K,T,25) predicted emotion, K draws for each clip; NumPy (memory-mapped too) or tensor.
        target: (N,T,25) the listeners' true emotion.
        speaker: (N,T,25) the speakers' emotion.
        appropriate: (N,N) bool, entry (n,m) says that listener m's reaction suits clip n.
        protocol: ``official`` for the figures that the published code prints, ``fixed`` for the mended ones.
        fps: frames a second, for the range of lags of FRSyn.

    Raises:
        DataError: a wrong shape, a value that is not finite (with its place), or a clip without any appropriate listener.
    """
    check_protocol(protocol)
    return measure_clips(pred, target, speaker, appropriate, fps=fps).figures(protocol)
