"""What predictions are measured against: the emotion of speakers and listeners of a split, and who suits whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.readers import load_array
from ..errors import DataError

__all__ = ["Truth", "read_truth"]


@dataclass
class Truth:
    """Emotion (N,T,25) of listeners and speakers of the N clips of a split, their matrix, names, and which clips can be used."""

    target: NDArray[np.float32]
    speaker: NDArray[np.float32]
    appropriate: NDArray[np.bool_]
    names: list[str]
    clips: NDArray[np.int64]  # indices in the split of the rows above; without the clips that lack a file
    total: int  # clips of the split


def read_truth(
    root: Path, split: str, *, frames: int, matrix: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Truth:
    """Read the emotion files of a split, cut to the frames that predictions have.

    A clip whose speaker or listener has no emotion file is left out, as a clip and as a listener.

    Args:
        root: a tree in the REACT 2024 layout.
        split: its split.
        frames: T; a clip may have more, but not fewer.
        matrix: another appropriateness matrix than the split's own.
        progress: called with (files read, files).

    Raises:
        DataError: a file is not as documented, is shorter than the predictions, or no clip is left.
    """
    from ..data import React2024, read_emotion

    corpus = React2024(root, split)
    pairs = np.array(corpus.pairs)
    rows: dict[int, NDArray[np.float32]] = {}
    wanted = np.unique(pairs)
    for done, index in enumerate(wanted):
        clip = corpus.clips[index]
        if clip.emotion is not None:
            emotion = read_emotion(clip.emotion)
            if len(emotion) < frames:
                raise DataError(
                    f"{clip.emotion}: has {len(emotion)} frames, the predictions have {frames}; cut the predictions, or measure clips of "
                    "unequal lengths with emc_fast.metrics.evaluate_lists"
                )
            rows[int(index)] = emotion[:frames]
        if progress is not None:
            progress(done + 1, len(wanted))
    clips = np.array([i for i, (s, g) in enumerate(pairs) if s in rows and g in rows], dtype=np.int64)
    if not len(clips):
        raise DataError(f"{root}: no clip of split {split} has the emotion of both speaker and listener")
    appropriate = _matrix(matrix, len(pairs)) if matrix is not None else np.asarray(corpus.appropriate())
    return Truth(
        target=np.stack([rows[g] for _, g in pairs[clips]]),
        speaker=np.stack([rows[s] for s, _ in pairs[clips]]),
        appropriate=appropriate[np.ix_(clips, clips)],
        names=[corpus.clips[s].name for s, _ in pairs[clips]],
        clips=clips,
        total=len(pairs),
    )


def _matrix(path: Path, clips: int) -> NDArray[np.bool_]:
    matrix = load_array(path, "0/1 matrices of appropriate reactions")
    if matrix.shape != (clips, clips):
        raise DataError(f"{path}: has shape {matrix.shape}; the split has {clips} clips, so ({clips}, {clips}) is taken")
    return np.asarray(matrix == 1)
