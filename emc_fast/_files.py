"""Writing that leaves either the whole file or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what stands there in the end is renamed into place, and removed if writing failed.

    An OSError of the system that names no file, as that of a full disk, is given the name of ``path``.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_array(path: Path, array: NDArray) -> None:
    """Write an npy file, whole or not at all."""
    with whole_file(path) as aside, open(aside, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8, lines as they are), whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
