"""Features computed once, then mapped from disk.

One folder holds, for all clips of a split, one file of float32 rows per stream, and an index with each clip's place in them. A reader
maps the files, so that the processes of a training run share one copy in memory and a crop costs the pages it touches.

Layout: ``index.json`` names the current generation, a folder ``gen-*`` beside it with ``<stream>.f32``. A build writes a new generation
and then renames a new index into place, so there is a whole cache at every moment: the old one or the new one. Entries are keyed by the
size and modification time of the clip's files, and the folder by a digest of the options.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from .._files import write_text
from ..errors import DataError
from .corpus import RoleClip
from .jobs import extract_all, refuse_in_unguarded_script
from .streams import SOURCES, FeatureOptions, Streams

_FORMAT = 1
_INDEX = "index.json"


def default_cache_dir(root: str | Path) -> Path:
    """Where the command line keeps the features of the corpus at ``root``."""
    return Path(root) / "emc-cache"


def split_cache_dir(cache_dir: str | Path, split: str, options: FeatureOptions) -> Path:
    """Folder of one split's features under ``cache_dir``; DataError where the recogniser has no ``cache_name``."""
    return Path(cache_dir) / f"{split}-{options.digest()}"


def signature_of(clip: RoleClip) -> dict[str, list[int]]:
    """Size and modification time of every file that a stream is made from."""
    signature = {}
    for kind in sorted({kind for kinds in SOURCES.values() for kind in kinds}):
        path = getattr(clip, kind)
        if path is not None:
            try:
                status = os.stat(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error})") from error
            signature[kind] = [status.st_size, status.st_mtime_ns]
    return signature


class FeatureCache:
    """Read access to the cached streams of a set of clips; made by :meth:`build`.

    Safe to hand to worker processes: the maps are opened anew in each.
    """

    def __init__(self, directory: Path, index: dict[str, Any]) -> None:
        self.directory = directory
        self._index = index
        self._maps: dict[str, NDArray[np.float32]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a map would be copied whole into the pickle

    def __len__(self) -> int:
        return len(self._index["clips"])

    def __contains__(self, clip: RoleClip) -> bool:
        return clip.name in self._index["clips"]

    def _is_fresh(self, name: str, signature: dict[str, list[int]]) -> bool:
        return self._index["clips"].get(name, {}).get("signature") == signature

    def streams(self, clip: RoleClip) -> Streams:
        """The streams of a clip as read-only views of the mapped files (see :func:`~emc_fast.data.streams.read_streams`).

        Raises:
            KeyError: the clip is not in the cache.
        """
        rows = self._index["clips"][clip.name]["rows"]
        return {stream: self._map(stream)[start : start + count] for stream, (start, count) in rows.items()}

    def _map(self, stream: str) -> NDArray[np.float32]:
        if stream not in self._maps:
            path = self.directory / self._index["generation"] / f"{stream}.f32"
            try:
                flat = np.memmap(path, dtype="<f4", mode="r") if path.stat().st_size else np.zeros(0, np.float32)
            except OSError as error:
                raise DataError(f"{path}: is gone ({error}); another process has renewed the cache, start again") from error
            self._maps[stream] = flat.reshape(-1, self._index["widths"][stream])
        return self._maps[stream]

    def _mapped(self) -> FeatureCache:
        """Itself with all files mapped: who has mapped a generation keeps it, also when another process renews the cache."""
        for stream in self._index["widths"]:
            self._map(stream)
        return self

    @classmethod
    def _open(cls, directory: Path, options: FeatureOptions) -> FeatureCache | None:
        """The cache that lies in ``directory``, or None where there is none that can be trusted."""
        try:
            index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
            if index["format"] != _FORMAT or index["options"] != options.describe() or index["widths"] != options.widths:
                return None
            for stream, width in index["widths"].items():
                rows = 0
                for clip in index["clips"].values():  # in the order in which their rows were written
                    start, count = clip["rows"].get(stream, (rows, 0))
                    if start != rows or count < 0:
                        return None
                    rows += count
                if (directory / index["generation"] / f"{stream}.f32").stat().st_size != 4 * rows * width:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        try:
            return cls(directory, index)._mapped()
        except DataError:
            return None

    @classmethod
    def build(
        cls,
        directory: str | Path,
        clips: Sequence[RoleClip],
        options: FeatureOptions | None = None,
        *,
        processes: int = 1,
        progress: bool = True,
        console: Console | None = None,
        title: str = "features",
    ) -> FeatureCache:
        """Open the cache in ``directory``, computing what is absent or older than its files.

        Two processes that build the same cache wait for each other. Stopped by Ctrl-C, the clips done so far are kept; the next call
        goes on from there.

        Args:
            directory: made if need be; belongs to one split and one set of options.
            clips: the clips that must be in it.
            options: what the features depend on.
            processes: worker processes; more than one needs a recogniser that can be pickled.
            progress: show a bar with the time left.
            console: where to show it.
            title: the bar's text.

        Raises:
            DataError: files of clips cannot be used (up to ten are named; the good clips are kept), or the disk is full.
        """
        options = options or FeatureOptions()
        directory = Path(directory)
        if processes > 1:
            refuse_in_unguarded_script()
        wanted = {clip.name: (clip, signature_of(clip)) for clip in clips}
        ready = cls._open(directory, options)
        if ready and all(ready._is_fresh(name, signature) for name, (_, signature) in wanted.items()):
            return ready  # without the lock, so that a cache on a read-only disk serves too
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory):
                old = cls._open(directory, options)
                todo = [clip for name, (clip, signature) in wanted.items() if not (old and old._is_fresh(name, signature))]
                if old and not todo:
                    return old
                writer = _Generation(directory, options)
                try:
                    for name, (clip, signature) in wanted.items():
                        if old and old._is_fresh(name, signature):
                            writer.add(name, signature, old.streams(clip))
                    faults: list[str] = []
                    try:
                        for clip, result in extract_all(
                            todo, options, processes=processes, progress=progress, console=console, title=title
                        ):
                            if isinstance(result, str):
                                faults.append(result)
                            else:
                                writer.add(clip.name, wanted[clip.name][1], result)
                    except OSError:
                        raise
                    except BaseException:  # Ctrl-C: the clips that are whole are worth keeping
                        writer.commit()
                        raise
                    index = writer.commit()
                finally:
                    writer.discard_unless_committed()
                _sweep(directory, index["generation"])
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{directory}: the disk is full; the feature cache needs about 0.5 MB per clip, {len(wanted)} clips"
                ) from error
            raise DataError(f"{directory}: the feature cache cannot be written ({error})") from error
        if faults:
            more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise DataError(f"{len(faults)} of {len(wanted)} clips cannot be used:\n" + "\n".join(faults[:10]) + more)
        return cls(directory, index)._mapped()


class _Generation:
    """The files of a cache that is being written; nothing refers to them before :meth:`commit`."""

    def __init__(self, directory: Path, options: FeatureOptions) -> None:
        self._directory = directory
        self._options = options
        self._folder = directory / f"gen-{uuid.uuid4().hex[:12]}"
        self._clips: dict[str, Any] = {}
        self._rows = dict.fromkeys(options.widths, 0)
        self._committed = False
        self._files: dict[str, BinaryIO] = {}
        self._folder.mkdir()
        for stream in options.widths:
            self._files[stream] = open(self._folder / f"{stream}.f32", "wb")  # noqa: SIM115  # closed by commit or discard

    def add(self, name: str, signature: dict[str, list[int]], streams: Streams) -> None:
        rows = {}
        for stream, values in streams.items():
            self._files[stream].write(np.ascontiguousarray(values, dtype="<f4").data)
            rows[stream] = (self._rows[stream], len(values))
        for stream, (start, count) in rows.items():
            self._rows[stream] = start + count
        self._clips[name] = {"signature": signature, "rows": rows}

    def commit(self) -> dict[str, Any]:
        for stream, file in self._files.items():
            file.flush()
            file.truncate(4 * self._rows[stream] * self._options.widths[stream])  # an interrupt may have left part of a clip
            os.fsync(file.fileno())
            file.close()
        index = {
            "format": _FORMAT,
            "options": self._options.describe(),
            "widths": self._options.widths,
            "generation": self._folder.name,
            "clips": self._clips,
        }
        write_text(self._directory / _INDEX, json.dumps(index))
        self._committed = True
        return index

    def discard_unless_committed(self) -> None:
        if not self._committed:
            for file in self._files.values():
                with suppress(OSError):  # a full disk shows again when the last buffer is flushed
                    file.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def _sweep(directory: Path, generation: str) -> None:
    """Remove generations that the index no longer names; who has them mapped keeps them until done."""
    for folder in directory.glob("gen-*"):
        if folder.name != generation:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it however the process ends."""
    import fcntl

    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
