"""What ``emc-fast evaluate`` reads for 2025 and 2026: clips of any length, one array of predictions for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..data.mars import ATTRIBUTES, MarsClip, list_clips, read_attributes
from ..data.readers import load_array
from ..errors import DataError

__all__ = ["ListTruth", "is_list_tree", "read_list_truth", "read_predictions"]

_Item = TypeVar("_Item")
_UNITS = 15


class _Read(Sequence[_Item]):
    """A sequence whose items are read when they are asked for, so that only the clip at hand is in memory."""

    def __init__(self, length: int, read: Callable[[int], _Item]) -> None:
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | Sequence[_Item]:
        if isinstance(index, slice):
            return [self._read(n) for n in range(*index.indices(self._length))]
        return self._read(index)


class ListTruth:
    """Speakers and appropriate listeners of a split, each read when it is asked for."""

    def __init__(self, clips: list[MarsClip]) -> None:
        self.clips = clips
        self.names = [clip.name for clip in clips]
        self.speaker: Sequence[NDArray[np.float32]] = _Read(len(clips), lambda n: read_attributes(clips[n].speaker))
        self.target: Sequence[list[NDArray[np.float32]]] = _Read(
            len(clips), lambda n: [read_attributes(file) for file in clips[n].listeners]
        )


def is_list_tree(root: Path, split: str) -> bool:
    """Whether a tree is in the layout of 2025 and 2026.

    Raises:
        DataError: it is, but has not this split.
    """
    if (root / split / ATTRIBUTES).is_dir():
        return True
    others = sorted(folder.parent.name for folder in root.glob(f"*/{ATTRIBUTES}") if folder.is_dir())
    if others and not (root / f"{split}.csv").is_file():
        raise DataError(
            f"{root}: has no split {split}, no folder {split}/{ATTRIBUTES}; it has {', '.join(others)}: give --split {others[0]}"
        )
    return False


def read_list_truth(root: Path, split: str, listeners: int, seed: int) -> ListTruth:
    """List a split in the layout of 2025 and 2026; see :func:`emc_fast.data.list_clips`."""
    return ListTruth(list_clips(root, split, listeners=listeners, seed=seed))


def read_predictions(path: Path, truth: ListTruth, *, round_units: bool) -> Sequence[NDArray[np.float32]]:
    """Predictions (K,T,25) for every clip of a split, each read and checked when it is asked for.

    Args:
        path: a folder of ``<session>/<clip>.npy``; an ``.npz`` of arrays by these names; or a ``.pt`` of tensors, as a mapping by these
            names, as a list in the order of the sorted names, or as either under the key ``PRED``.
        truth: the split.
        round_units: action units become 0 or 1, as the published test does.

    Raises:
        DataError: a prediction is absent, not as above, or of another length than its speaker; the file and clip are named.
    """
    one = _reader(path, truth)

    def read(n: int) -> NDArray[np.float32]:
        where, array = one(n)
        if array.ndim != 3 or array.shape[2] != 25 or 0 in array.shape or array.dtype.kind != "f":
            raise DataError(
                f"{where}: has shape {array.shape} and dtype {array.dtype}; floating (K,T,25) is taken: draws, frames, and 15 AU, valence, "
                "arousal, 8 expressions"
            )
        frames = len(truth.speaker[n])
        if array.shape[1] != frames:
            raise DataError(f"{where}: has {array.shape[1]} frames, the speaker {truth.clips[n].speaker} has {frames}")
        if not np.isfinite(array).all():
            draw, frame, channel = map(int, np.argwhere(~np.isfinite(array))[0])
            raise DataError(f"{where}: {array[draw, frame, channel]} at draw {draw}, frame {frame}, channel {channel}")
        out = np.array(array, dtype=np.float32)
        if round_units:
            out[..., :_UNITS] = np.round(out[..., :_UNITS])
        return out

    return _Read(len(truth.names), read)


def _reader(path: Path, truth: ListTruth) -> Callable[[int], tuple[str, NDArray[Any]]]:
    if path.is_dir():
        _all_there(path, {name for name in truth.names if (path / f"{name}.npy").is_file()}, truth, ".npy")

        def from_folder(n: int) -> tuple[str, NDArray[Any]]:
            file = path / f"{truth.names[n]}.npy"
            return str(file), load_array(file, "predictions of shape (K, T, 25)")

        return from_folder
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder; a folder of <session>/<clip>.npy, an .npz or a .pt is taken")
    arrays = _named_arrays(path, truth)
    return lambda n: (f"{path}: {truth.names[n]}", arrays(truth.names[n]))


def _named_arrays(path: Path, truth: ListTruth) -> Callable[[str], NDArray[Any]]:
    if path.suffix == ".npz":
        try:
            archive = np.load(path, allow_pickle=False)
        except Exception as error:  # a damaged zip can fail in any way
            raise DataError(f"{path}: is not an .npz of arrays, or is damaged") from error
        _all_there(path, set(archive.files), truth, "")

        def member(name: str) -> NDArray[Any]:
            try:
                return np.asarray(archive[name])
            except Exception as error:
                raise DataError(f"{path}: {name} is not an array of numbers, or is damaged") from error

        return member
    if path.suffix not in (".pt", ".pth"):
        raise DataError(f"{path}: clips of any length are taken as a folder of <session>/<clip>.npy, an .npz or a .pt")
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: is not a .pt of tensors alone, or is damaged") from error
    # NumPy's and torch's own words on these files advise to load them unsafely, so they are not repeated.
    loaded = loaded["PRED"] if isinstance(loaded, dict) and "PRED" in loaded else loaded
    if isinstance(loaded, (list, tuple)):
        if len(loaded) != len(truth.names):
            raise DataError(f"{path}: holds a list of {len(loaded)}, the split has {len(truth.names)} clips (in the order of their names)")
        loaded = dict(zip(truth.names, loaded, strict=True))
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(f"{path}: a list or a mapping of tensors is taken, got {type(loaded).__name__}")
    _all_there(path, set(loaded), truth, "")

    def tensor(name: str) -> NDArray[Any]:
        value = loaded[name].detach()  # saved by a model in training it may ask for a gradient
        return np.asarray(value.float().numpy() if value.is_floating_point() else value.numpy())

    return tensor


def _all_there(path: Path, found: set[str], truth: ListTruth, ending: str) -> None:
    missing = [name for name in truth.names if name not in found]
    if missing:
        raise DataError(f"{path}: lacks {len(missing)} of {len(truth.names)} clips; the first is {missing[0]}{ending}")
