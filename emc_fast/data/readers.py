"""The per-clip files of the REACT layout, each read whole or refused with a reason.

A value that is absent (an empty csv cell, a NaN) is a hole: it comes back as NaN and the data set marks the frame unavailable. Anything
else that is not as documented is a :class:`~emc_fast.errors.DataError`.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .names import COEFFICIENT_DIM, EMOTION_DIM, EMOTION_NAMES, SPEECH_EMOTION_DIM


def read_emotion(path: str | Path) -> NDArray[np.float32]:
    """Read an emotion csv: one header row, then a row of 25 numbers per frame.

    Where the header holds all the names of :data:`~emc_fast.data.EMOTION_NAMES` (whatever their case, spaces and signs, and AU01 for
    AU1), they say which column is which. Columns under names of other kinds count by their place, as in the published loader.

    Returns:
        float32 ``(T, 25)`` in the order of :data:`~emc_fast.data.EMOTION_NAMES`; empty cells are NaN.

    Raises:
        DataError: the file is unreadable or empty, a row has another width, a cell is not a number (line and column are named), or
            the header gives a known name to another's column and lacks names to order the columns by.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read().splitlines()
        header = next(csv.reader(lines[:1]), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as csv text ({error})") from error
    if not lines:
        raise DataError(f"{path}: is empty; a header row and one row of {EMOTION_DIM} numbers per frame are taken")
    if len(header) != EMOTION_DIM:
        raise DataError(
            f"{path}: has {len(header)} columns; the {EMOTION_DIM} columns {EMOTION_NAMES[0]} ... {EMOTION_NAMES[-1]} are taken"
        )
    if _is_data(header):
        raise DataError(f"{path}: line 1 holds numbers; a header row with the names of the columns is taken there")
    order = _column_order(path, header)
    rows = [line for line in lines[1:] if line.strip()]
    if not rows:
        raise DataError(f"{path}: has a header and no rows; one row per frame is needed")
    try:
        values = np.loadtxt(rows, delimiter=",", dtype=np.float32, ndmin=2, comments=None)
    except (ValueError, OverflowError):
        values = _read_slowly(path, lines, header)
    if values.shape[1] != EMOTION_DIM:
        values = _read_slowly(path, lines, header)
    return _mark_infinite(values.take(order, axis=1))


def _is_data(cells: list[str]) -> bool:
    """Whether a row holds numbers and holes alone, so that it is a frame and no header."""
    try:
        for cell in cells:
            float(cell if cell.strip() else "nan")
    except ValueError:
        return False
    return True


def _key(name: str) -> str:
    """A column's name without that in which files differ: case, spaces, signs, and the zero of AU01."""
    return re.sub(r"^au0+", "au", re.sub(r"[\W_]+", "", name.casefold()))


_EMOTION_KEYS = [_key(name) for name in EMOTION_NAMES]


def _column_order(path: str | Path, header: list[str]) -> list[int]:
    """Where in the file each of the 25 columns stands."""
    keys = [_key(cell) for cell in header]
    missing = [name for name, key in zip(EMOTION_NAMES, _EMOTION_KEYS, strict=True) if key not in keys]
    if not missing:
        return [keys.index(key) for key in _EMOTION_KEYS]
    for column, key in enumerate(keys):
        # Foreign names say nothing about the order, but a known one in another's place says that it is not ours.
        if key in _EMOTION_KEYS and key != _EMOTION_KEYS[column]:
            raise DataError(
                f"{path}: line 1 calls column {column + 1} {header[column].strip()[:40]!r}, the name of column "
                f"{_EMOTION_KEYS.index(key) + 1}; columns in another order are taken where all names are there, and these are not: "
                f"{', '.join(missing)}"
            )
    return list(range(EMOTION_DIM))


def _read_slowly(path: str | Path, lines: list[str], header: list[str]) -> NDArray[np.float32]:
    """The csv again, cell by cell: takes empty and quoted cells, and knows where the fault is."""
    rows: list[list[float]] = []
    reader = csv.reader(lines)
    try:
        for cells in reader:
            if reader.line_num == 1 or not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            if len(cells) != EMOTION_DIM:
                raise DataError(f"{path}: line {reader.line_num} has {len(cells)} cells, {EMOTION_DIM} are taken")
            row = []
            for column, cell in enumerate(cells, start=1):
                try:
                    row.append(float(cell) if cell.strip() else np.nan)
                except ValueError:
                    where = f"line {reader.line_num}, column {column} ({header[column - 1].strip()[:40]})"
                    raise DataError(f"{path}: {where} holds {cell[:40]!r}, a number is taken") from None
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not csv ({error})") from error
    if not rows:
        raise DataError(f"{path}: has a header and no rows; one row per frame is needed")
    return np.array(rows, dtype=np.float32)


def map_array(path: str | Path, what: str) -> NDArray:
    """Map an npy file into memory, read-only; never unpickles, and says in one sentence what is wrong with the file.

    Raises:
        DataError: the file is absent, truncated, not an npy array, or of a type that is not a number or a truth value.
    """
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise DataError(f"{path}: is not an npy file; {what} are taken")
        # Mapped, not read: a damaged header that promises terabytes is checked against the file's size and nothing is allocated.
        array: NDArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # the header is parsed as a Python literal: a damaged one can fail in any way
        raise DataError(f"{path}: is damaged or truncated ({error}); {what} are taken") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: holds values of type {array.dtype}; {what} are taken")
    return array


def load_array(path: str | Path, what: str) -> NDArray:
    """:func:`map_array`, read whole."""
    return np.array(map_array(path, what))


def read_coefficients(path: str | Path) -> NDArray[np.float32]:
    """Read 3DMM coefficients: npy of shape ``(T, 1, 58)`` or ``(T, 58)``.

    Returns:
        float32 ``(T, 58)`` in the order of :data:`~emc_fast.data.COEFFICIENT_NAMES`, the mean face still in it.

    Raises:
        DataError: unreadable or truncated, of another shape, or without frames.
    """
    return _rows_of(path, COEFFICIENT_DIM, "3DMM coefficients of shape (T, 1, 58) or (T, 58)")


def read_speech_emotion(path: str | Path) -> NDArray[np.float32]:
    """Read precomputed speech emotion: npy ``(T, 10)``; otherwise as :func:`read_coefficients`."""
    return _rows_of(path, SPEECH_EMOTION_DIM, "speech emotion of shape (T, 10)")


def read_mean_face(path: str | Path) -> NDArray[np.float32]:
    """Read a mean face: 58 finite numbers in an npy of any shape that holds exactly them.

    Raises:
        DataError: unreadable, of another size, or not finite.
    """
    what = "the 58 coefficients of the mean face"
    array = load_array(path, what)
    if array.size != COEFFICIENT_DIM or not np.isfinite(array).all():
        raise DataError(f"{path}: has shape {array.shape} or values that are not finite; {what} are taken")
    return array.reshape(-1).astype(np.float32)


def _rows_of(path: str | Path, width: int, what: str) -> NDArray[np.float32]:
    array = load_array(path, what)
    if array.ndim == 3 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 2 or array.shape[1] != width or len(array) == 0:
        raise DataError(f"{path}: has shape {array.shape}; {what} with at least one frame are taken")
    with np.errstate(over="ignore"):
        return _mark_infinite(np.ascontiguousarray(array, dtype=np.float32))


def _mark_infinite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """An infinity is a hole like a NaN: one mark for both."""
    values[~np.isfinite(values)] = np.nan
    return values
