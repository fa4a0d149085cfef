"""The folders and lists of REACT 2024.

``<root>/{train,val,test}/{Video_files,Audio_files,Emotion,3D_FV_files}/<site>/<session>/<person>/<clip>[.ext]`` and, per split,
``<root>/<split>.csv``: a header, then index, speaker path, listener path (relative, no extension). The emotion folders of one release
call the persons P1 and P2 where the other folders have Expert_video and Novice_video or numbered participants; both are found.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .appropriateness import load_appropriateness
from .corpus import RoleClip
from .readers import read_mean_face

SPLITS = ("train", "val", "test")

_FIRST_PERSON = ("Expert_video", "P25", "P41", "P45")
_SECOND_PERSON = ("Novice_video", "P26", "P42", "P46")
#: Other names of a person's folder, tried in this order where the listed one is absent.
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_FIRST_PERSON, ("P1",)),
    **dict.fromkeys(_SECOND_PERSON, ("P2",)),
    "P1": _FIRST_PERSON,
    "P2": _SECOND_PERSON,
}
_KINDS = {  # attribute of RoleClip -> (folder, ending)
    "emotion": ("Emotion", ".csv"),
    "coefficients": ("3D_FV_files", ".npy"),
    "audio": ("Audio_files", ".wav"),
    "frames": ("Video_files", ""),
    "speech_emotion": ("Speech_emotion", ".npy"),
}


def read_list(path: str | Path) -> list[tuple[int, tuple[str, str]]]:
    """Read the list of a split.

    Returns:
        for each row its line number and (speaker path, listener path), in the order of the file.

    Raises:
        DataError: absent, unreadable, without header or rows, or a row is not ``index, speaker, listener`` (the line is named).
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, cells) for cells in reader]
    except FileNotFoundError as error:
        raise DataError(f"{path}: the list of the split is absent; a csv of index, speaker path, listener path is taken") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as csv ({error})") from error
    unheaded = next((cell for _, cells in rows[:1] for cell in cells if _clip_name(cell)), None)
    if unheaded is not None:
        raise DataError(f"{path}: line 1 names the clip {unheaded[:80]!r}; a header is taken there; put 'index,speaker,listener' above it")
    pairs = []
    for line, cells in rows[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != 3:
            raise DataError(f"{path}: line {line} has {len(cells)} cells, three are taken: index, speaker path, listener path")
        speaker, listener = (_checked(path, line, cell) for cell in cells[1:])
        if speaker == listener:
            raise DataError(f"{path}: line {line} names {speaker} as both speaker and listener")
        pairs.append((line, (speaker, listener)))
    if not pairs:
        raise DataError(f"{path}: lists no pairs; a header row and one row per pair are taken")
    return pairs


def _clip_name(cell: str) -> str | None:
    """The clip that a cell names, or None where it holds no path of a clip."""
    name = cell.strip().replace("\\", "/").strip("/")
    parts = name.split("/")
    return None if len(parts) < 4 or any(part in ("", ".", "..") or "\0" in part for part in parts) else name


def _checked(path: Path, line: int, cell: str) -> str:
    name = _clip_name(cell)
    if name is None:
        raise DataError(f"{path}: line {line} holds {cell[:80]!r}; a relative path site/session/person/clip is taken")
    return name


class React2024:
    """One split of a REACT 2024 tree (a :class:`~emc_fast.data.Corpus`).

    Args:
        root: the folder that holds the lists.
        split: ``train``, ``val`` or ``test``.
        mirror: also take every pair with the roles swapped, after all the listed ones (the order of the published matrices).
        fps: video frames per second; 25 in the corpus as published.

    Raises:
        DataError: the tree or list is absent or malformed, or a listed clip has no file at all.
    """

    def __init__(self, root: str | Path, split: str, *, mirror: bool = True, fps: float = 25.0) -> None:
        self.fps = fps
        self.root = Path(root)
        self.split = split
        self.mirrored = mirror
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not known; {', '.join(SPLITS)} are taken")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: is not a folder; the root of a REACT 2024 tree (it holds {split}.csv) is taken")
        listing = read_list(self.root / f"{split}.csv")
        self._num_listed = len(listing)
        place: dict[str, int] = {}
        self.clips: list[RoleClip] = []
        listed = []
        for line, names in listing:
            for name in names:
                if name not in place:
                    place[name] = len(self.clips)
                    self.clips.append(self._find(name, line))
            listed.append((place[names[0]], place[names[1]]))
        self.pairs: list[tuple[int, int]] = listed + [(b, a) for a, b in listed] if mirror else listed

    def _find(self, name: str, line: int) -> RoleClip:
        *stem, person, clip = name.split("/")
        found: dict[str, Path] = {}
        for kind, (folder, ending) in _KINDS.items():
            for candidate in (person, *ALIASES.get(person, ())):
                path = Path(self.root, self.split, folder, *stem, candidate, clip + ending)
                if path.is_file() if ending else path.is_dir():
                    found[kind] = path
                    break
        if not found:
            folders = ", ".join(folder for folder, _ in _KINDS.values())
            others = f" (person also as {', '.join(ALIASES[person])})" if person in ALIASES else ""
            raise DataError(
                f"{self.root / f'{self.split}.csv'}: line {line}: the clip {name} exists nowhere; "
                f"looked for it under {self.root / self.split} in {folders}{others}"
            )
        return RoleClip(name=name, **found)

    def mean_face(self) -> NDArray[np.float32] | None:
        """The mean of the 58 coefficients, from ``mean_face.npy`` of the tree or None."""
        for path in (self.root / "mean_face.npy", self.root / "external" / "FaceVerse" / "mean_face.npy"):
            if path.is_file():
                return read_mean_face(path)
        return None

    def training_clips(self) -> Sequence[RoleClip]:
        """Clips over which a mean face is computed where none comes with the tree."""
        return self.clips if self.split == "train" else React2024(self.root, "train", mirror=False, fps=self.fps).clips

    def appropriate(self) -> NDArray[np.bool_]:
        """The matrix of the split, cut to the listed roles if ``mirror`` is off; DataError where it is absent or of another size."""
        matrix = load_appropriateness(self.root, self.split, self._num_listed)
        return matrix if self.mirrored else matrix[: self._num_listed, : self._num_listed]
