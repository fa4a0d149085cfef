"""What a data set needs from a corpus, whatever its folders look like.

:class:`~emc_fast.data.REACTDataset` knows nothing of paths. It takes an object with the attributes of :class:`Corpus`: single-person
clips, the pairs (speaker, listener) among them, a frame rate, and a matrix that says whose reaction is appropriate for whom. A reader of
another edition of the challenge (other folders, 30 fps, clips of any length) is one class with these attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RoleClip:
    """The files of one person in one clip; a path is None where the corpus has a hole.

    Attributes:
        name: unique within the corpus, the path in the list for REACT (``NoXI/<session>/Expert_video/8``).
        emotion: csv of 25 columns.
        coefficients: npy of 58 3DMM coefficients.
        audio: sound file.
        frames: folder of numbered png images.
        speech_emotion: npy of 10 columns, precomputed.
    """

    name: str
    emotion: Path | None = None
    coefficients: Path | None = None
    audio: Path | None = None
    frames: Path | None = None
    speech_emotion: Path | None = None


@runtime_checkable
class Corpus(Protocol):
    """One split of a corpus.

    Attributes:
        fps: video frames per second.
        clips: every single-person clip, each once.
        pairs: (speaker, listener) as positions in ``clips``.
        mirrored: whether the second half of ``pairs`` is the first with the roles swapped.
    """

    @property
    def fps(self) -> float: ...  # noqa: D102

    @property
    def clips(self) -> Sequence[RoleClip]: ...  # noqa: D102

    @property
    def pairs(self) -> Sequence[tuple[int, int]]: ...  # noqa: D102

    @property
    def mirrored(self) -> bool: ...  # noqa: D102

    def mean_face(self) -> NDArray[np.float32] | None:
        """The mean of the 58 coefficients that comes with the corpus, or None."""

    def training_clips(self) -> Sequence[RoleClip]:
        """The clips over which a mean face may be computed where none comes with the corpus."""

    def appropriate(self) -> NDArray[np.bool_]:
        """(N, N) for N pairs: entry (i, j) says that the listener of pair j reacts appropriately to the speaker of pair i."""
