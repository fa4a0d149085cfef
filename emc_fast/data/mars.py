"""The emotion files of REACT 2025 and 2026 (the MARS corpus): clips of any length in folders by role and session.

``<root>/<split>/facial-attributes/{speaker,listener}/<session>/<clip>.npy``, each (T,25) without a header, in the order of
:data:`~emc_fast.data.EMOTION_NAMES`. A clip has the same name on both sides. Every listener of a session has heard the same
speaker's topic, so all of them react appropriately to any clip of the session.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .names import EMOTION_DIM, EMOTION_NAMES
from .readers import load_array

__all__ = ["ATTRIBUTES", "MarsClip", "list_clips", "read_attributes"]

ATTRIBUTES = "facial-attributes"


@dataclass(frozen=True)
class MarsClip:
    """One speaker's clip and the listeners that it is measured against.

    Attributes:
        name: ``<session>/<clip>``.
        speaker: npy (T,25).
        listeners: npy files of appropriate listeners, the clip's own first.
    """

    name: str
    speaker: Path
    listeners: tuple[Path, ...]


def list_clips(root: str | Path, split: str, *, listeners: int = 10, seed: int = 0) -> list[MarsClip]:
    """List the clips of a split, each with its own listener and others of the same session.

    As published, the others are drawn without repetition where the session has enough of them, else with repetition. Here the draw depends
    on `seed` and the clip's name alone, so that it is the same on every machine and whatever other clips there are.

    Args:
        root: the folder that holds the splits.
        split: one of them.
        listeners: appropriate listeners of each clip, 10 in the challenge.
        seed: of the drawing.

    Returns:
        the clips, sorted by name.

    Raises:
        DataError: a folder is absent or empty, or a speaker's clip has no listener's of the same name (the file is named).
    """
    if listeners < 1:
        raise DataError(f"listeners must be at least 1, got {listeners}")
    home = Path(root) / split / ATTRIBUTES
    speakers, heard = (_files(home / role) for role in ("speaker", "listener"))
    clips = []
    for name, path in speakers.items():
        session = name.split("/")[0]
        if name not in heard:
            raise DataError(f"{path}: has no listener; {home / 'listener' / f'{name}.npy'} is taken")
        others = [file for other, file in heard.items() if other != name and other.split("/")[0] == session] or [heard[name]]
        rng = np.random.default_rng([seed, crc32(name.encode())])
        drawn = rng.choice(len(others), size=listeners - 1, replace=len(others) < listeners - 1)
        clips.append(MarsClip(name, path, (heard[name], *(others[i] for i in drawn))))
    return clips


def _files(folder: Path) -> dict[str, Path]:
    """``<session>/<clip>`` -> file, sorted; what other systems leave behind (``._clip.npy``) is ignored."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; <split>/{ATTRIBUTES}/{{speaker,listener}}/<session>/<clip>.npy is taken")
    found = {f"{path.parent.name}/{path.stem}": path for path in folder.glob("*/*.npy") if not path.name.startswith(".")}
    if not found:
        raise DataError(f"{folder}: holds no <session>/<clip>.npy")
    return dict(sorted(found.items()))


def read_attributes(path: str | Path) -> NDArray[np.float32]:
    """Read one person's emotion: npy ``(T, 25)`` of finite numbers.

    Returns:
        float32 ``(T, 25)``.

    Raises:
        DataError: unreadable, truncated, of another shape, without frames, or not finite (frame and channel are named).
    """
    what = f"facial attributes of shape (T, {EMOTION_DIM})"
    array = load_array(path, what)
    if array.ndim != 2 or array.shape[1] != EMOTION_DIM or not len(array):
        raise DataError(f"{path}: has shape {array.shape}; {what} with at least one frame are taken")
    if not np.isfinite(array).all():
        frame, channel = map(int, np.argwhere(~np.isfinite(array))[0])
        where = f"frame {frame}, channel {channel} ({EMOTION_NAMES[channel]})"
        raise DataError(f"{path}: {array[frame, channel]} at {where}; finite numbers are taken")
    return np.ascontiguousarray(array, dtype=np.float32)
