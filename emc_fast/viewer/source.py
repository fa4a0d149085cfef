"""One clip of a generation: its reactions, what the model had to go by, and its speaker where that can still be found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.readers import map_array
from ..errors import DataError
from .pack import COEFFICIENT_DIM, EMOTION_DIM

Array = npt.NDArray[Any]


@dataclass
class Clip:
    """What :func:`emc_fast.viewer.write_html` takes, in its shapes; ``notes`` says in words what could not be found.

    ``draws`` are the indices along K that were asked for, ``recording`` the sound file that the reactions were made from, if it is
    still there.
    """

    name: str
    index: int
    draws: list[int]
    reaction_emotion: Array
    reaction_3dmm: Array | None = None
    speaker_emotion: Array | None = None
    speaker_3dmm: Array | None = None
    face_available: Array | None = None
    speech_available: Array | None = None
    fps: float = 25.0
    length: int | None = None
    recording: Path | None = None
    notes: list[str] = field(default_factory=list)


def load_clip(
    path: str | os.PathLike[str],
    *,
    clip: str | int | None = None,
    draws: Sequence[int] | None = None,
    data: str | os.PathLike[str] | None = None,
) -> Clip:
    """Read one clip of a generation directory, or of any ``.npy`` of shape (N, K, T, 25) or (K, T, 25).

    Args:
        path: the directory that ``emc-fast generate`` wrote, or an npy file.
        clip: a clip's name, an unambiguous end of it, or its index; None = the first.
        draws: the reactions wanted, as indices along K; None = all.
        data: the corpus to take the speaker from, if it no longer lies where it lay when the reactions were made.

    Raises:
        DataError: naming the file, what was found and what is taken.
    """
    place = Path(path)
    if place.is_dir():
        return _from_directory(place, clip, draws, data)
    if not place.is_file():
        raise DataError(f"{place}: there is no such file or directory; give what 'emc-fast generate' wrote, or an .npy file")
    array = _load(place)
    if array.ndim == 3:
        array = array[None]
    _shape(place, array, (None, None, None, EMOTION_DIM))
    index = _choose(clip, [f"{place.stem} {n}" for n in range(len(array))])
    wanted = _draws(draws, array.shape[1])
    name = place.stem if len(array) == 1 else f"{place.stem}, clip {index}"
    return Clip(name, index, wanted, np.asarray(array[index][wanted]), notes=["no speaker and no masks: an array has only reactions"])


def _from_directory(place: Path, clip: str | int | None, draws: Sequence[int] | None, data: str | os.PathLike[str] | None) -> Clip:
    about = read_description(place / "generation.json")
    emotion = _load(place / "prediction_emotion.npy")
    _shape(place / "prediction_emotion.npy", emotion, (len(about["names"]), None, None, EMOTION_DIM))
    count, samples, frames = emotion.shape[:3]
    index = _choose(clip, about["names"])
    wanted, length = _draws(draws, samples), about["lengths"][index]
    if not 1 <= length <= frames:
        raise DataError(f"{place / 'generation.json'}: clip {index} has length {length}, but the arrays have {frames} frames")

    found = Clip(about["names"][index], index, wanted, np.asarray(emotion[index][wanted]), fps=about["fps"], length=length)
    if (place / "prediction_3dmm.npy").exists():
        shape = _load(place / "prediction_3dmm.npy")
        _shape(place / "prediction_3dmm.npy", shape, (count, samples, frames, COEFFICIENT_DIM))
        found.reaction_3dmm = np.asarray(shape[index][wanted])
    for key in ("face_available", "speech_available"):
        if (file := place / f"{key}.npy").exists():
            mask = _load(file)
            _shape(file, mask, (count, frames))
            setattr(found, key, np.asarray(mask[index]))

    source = about["source"]
    recording = source.get("wav")
    if recording and Path(recording).is_file():
        found.recording = Path(recording)
    if (tree := data or source.get("data")) is not None:
        _speaker_from_tree(found, Path(tree), about)
    else:
        _speaker_from_files(found, place, frames)
    return found


def read_description(file: Path) -> dict[str, Any]:
    """What ``emc-fast generate`` says of its reactions: names, lengths and source checked; a `DataError` names what is wrong."""
    if not file.is_file():
        raise DataError(
            f"{file}: not found; the directory is not one that 'emc-fast generate' wrote (give the .npy file itself to view just that)"
        )
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}); generate the reactions again") from error
    about = {"fps": 25.0, "source": {}, "mean_face_added": False} | (about if isinstance(about, dict) else {})
    names, lengths = about.get("names"), about.get("lengths")
    if not (isinstance(names, list) and isinstance(lengths, list) and names and len(names) == len(lengths)):
        raise DataError(f"{file}: takes 'names' and 'lengths', one of each per clip; generate the reactions again")
    if not (all(isinstance(n, str) for n in names) and all(isinstance(n, int) for n in lengths) and isinstance(about["source"], dict)):
        raise DataError(f"{file}: takes texts as names, integers as lengths and a mapping as source; generate the reactions again")
    return about


def _speaker_from_tree(found: Clip, tree: Path, about: dict[str, Any]) -> None:
    if not tree.is_dir():
        found.notes.append(f"the corpus {tree} is not there, so the speaker is not shown; say where it is with --data")
        return
    from ..data import REACTDataset

    # Reactions with the mean face added are absolute, and then so must the speaker be: nothing is subtracted.
    mean = np.zeros(COEFFICIENT_DIM, np.float32) if about["mean_face_added"] else None
    corpus = REACTDataset(tree, about["source"].get("split", "val"), progress=False, mean_face=mean)
    other = f"{tree} is not the corpus that the reactions were made from; say which is with --data"
    if len(corpus) <= found.index:
        raise DataError(f"{tree}: has {len(corpus)} clips, clip {found.index} ({found.name}) is wanted; {other}")
    sample = corpus[found.index]
    if str(sample["name"]) != found.name:
        raise DataError(f"{tree}: its clip {found.index} is {sample['name']}, the reactions are to {found.name}; {other}")
    if int(sample["length"]) != found.length:
        raise DataError(f"{tree}: {found.name} has {int(sample['length'])} frames, the reactions have {found.length}; {other}")
    frames, own = found.reaction_emotion.shape[1], sample["face_available"].numpy().astype(bool)
    if not own.any():
        found.notes.append(f"{found.name} has no face in the corpus")
    hidden = found.face_available
    if hidden is not None and (hidden[: len(own)].astype(bool) & ~own).any():
        raise DataError(f"{tree}: the face of {found.name} has holes where the reactions were made from a face; {other}")
    found.face_available = _padded(own, frames) if hidden is None else hidden
    found.speaker_emotion = _padded(sample["face_emotion"].numpy(), frames)
    found.speaker_3dmm = _padded(sample["face"].numpy(), frames)


def _speaker_from_files(found: Clip, place: Path, frames: int) -> None:
    for key, width in (("speaker_emotion", EMOTION_DIM), ("speaker_3dmm", COEFFICIENT_DIM)):
        if not (file := place / f"{key}.npy").exists():
            continue
        rows = _load(file)
        _shape(file, rows, (None, width))
        if len(rows) < (found.length or frames):
            raise DataError(f"{file}: has {len(rows)} frames, the reactions have {found.length}")
        setattr(found, key, _padded(np.asarray(rows)[:frames], frames))


def _padded(rows: Array, frames: int) -> Array:
    """The rows with zeros behind them up to ``frames``; only the clip's length is ever shown."""
    out = np.zeros((frames, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows[:frames]
    return out


def _load(file: Path) -> Array:
    """Map an npy file; one that is absent is missing from a generation."""
    if not file.is_file():
        raise DataError(f"{file}: not found; the directory is not a whole generation")
    return map_array(file, "npy arrays of numbers")


def _shape(file: Path, array: Array, wanted: tuple[int | None, ...]) -> None:
    if array.ndim != len(wanted) or any(n is not None and n != m for n, m in zip(wanted, array.shape, strict=True)):
        text = ", ".join("any" if n is None else str(n) for n in wanted)
        raise DataError(f"{file}: has shape {array.shape}, takes ({text})")


def _choose(clip: str | int | None, names: list[str]) -> int:
    """The index of a clip by its name, by an end of its name that only it has, or by its number."""
    if clip is None:
        return 0
    text = str(clip)
    same = [i for i, name in enumerate(names) if name == text]
    ends = same or [i for i, name in enumerate(names) if name.endswith(f"/{text}")]
    if len(ends) == 1 and not (isinstance(clip, int) or (text.isdigit() and not same)):
        return ends[0]
    if text.isdigit():
        if int(text) < len(names):
            return int(text)
        raise DataError(f"clip {text}: there are {len(names)} clips, 0 to {len(names) - 1}")
    if ends:
        raise DataError(f"clip {text!r}: fits {len(ends)} clips, {', '.join(f'{i} ({names[i]})' for i in ends[:4])}; give the index")
    few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    raise DataError(f"clip {text!r}: no such clip; there are {len(names)}: {few}")


def _draws(draws: Sequence[int] | None, samples: int) -> list[int]:
    if draws is None:
        return list(range(samples))
    wanted = list(draws)
    if not wanted or len(set(wanted)) != len(wanted) or not all(0 <= k < samples for k in wanted):
        raise DataError(f"draws: got {wanted}, takes different indices from 0 to {samples - 1}")
    return wanted
