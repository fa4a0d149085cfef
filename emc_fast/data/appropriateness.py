"""Which listener's reaction is appropriate for which speaker.

The challenge measures a prediction against every appropriate reaction. The relation is a square 0/1 matrix over the mirrored list of a
split: ``n`` pairs give ``2n`` items, first speaker -> listener, then the same with the roles swapped, hence four quadrants. It is cut
from a matrix over the whole corpus (same four quadrants) by an index file that names the site, session and clip of each row.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .readers import load_array


class MatrixAbsentError(DataError):
    """The matrix of appropriate reactions is not there at all."""


#: Names under which published forks keep the same matrix.
MATRIX_NAMES = (
    "neighbour_emotion_{split}.npy",
    "neighbour_emotion_new_{split}.npy",
    "person_specific_masked_neighbour_emotion_{split}.npy",
)
#: The matrix of the whole corpus; the first spelling is the published one.
GLOBAL_MATRIX_NAMES = ("Approprirate_facial_reaction.npy", "Appropriate_facial_reaction.npy")
INDEX_NAME = "data_indices.csv"


def load_appropriateness(root: str | Path, split: str, num_pairs: int) -> NDArray[np.bool_]:
    """Load the matrix of a split.

    Args:
        root: the corpus.
        split: ``train``, ``val`` or ``test``.
        num_pairs: rows of the split's list.

    Returns:
        bool ``(2 * num_pairs, 2 * num_pairs)``.

    Raises:
        MatrixAbsentError: it is absent (says how to get it).
        DataError: it is damaged, or of another size than the list.
    """
    root = Path(root)
    for name in MATRIX_NAMES:
        path = root / name.format(split=split)
        if path.is_file():
            matrix = load_array(path, "0/1 matrices of appropriate reactions")
            wanted = (2 * num_pairs, 2 * num_pairs)
            if matrix.shape != wanted:
                raise DataError(f"{path}: has shape {matrix.shape}; {split}.csv lists {num_pairs} pairs, which take {wanted} (both roles)")
            return matrix == 1
    path = root / MATRIX_NAMES[0].format(split=split)
    raise MatrixAbsentError(
        f"{path}: the matrix of appropriate reactions is absent. Get it from the organisers of the challenge, or put "
        f"{GLOBAL_MATRIX_NAMES[0]} and {INDEX_NAME} into {root} and run emc_fast.data.appropriateness_of_split({str(root)!r}, {split!r})"
    )


def appropriateness_of_split(root: str | Path, split: str, *, write: bool = True) -> NDArray[np.bool_]:
    """Cut the matrix of a split from the matrix of the whole corpus.

    Reads ``<root>/Approprirate_facial_reaction.npy`` (2N x 2N, four mirrored quadrants), ``<root>/data_indices.csv`` (a header, then
    site, session, clip of each of the N rows) and ``<root>/<split>.csv``.

    Args:
        root: the corpus.
        split: ``train``, ``val`` or ``test``.
        write: also write ``<root>/neighbour_emotion_<split>.npy``.

    Returns:
        bool ``(2n, 2n)`` for the ``n`` pairs of the split.

    Raises:
        DataError: a file is absent or damaged, sizes disagree, or a clip of the list is not in the index file.
    """
    from .react2024 import read_list

    root = Path(root)
    found = [root / name for name in GLOBAL_MATRIX_NAMES if (root / name).is_file()]
    if not found:
        raise DataError(f"{root / GLOBAL_MATRIX_NAMES[0]}: the matrix of the whole corpus is absent; the organisers give it")
    matrix = load_array(found[0], "2N x 2N matrices of appropriate reactions")
    rows = _read_index(root / INDEX_NAME)
    if matrix.shape != (2 * len(rows), 2 * len(rows)):
        raise DataError(f"{found[0]}: has shape {matrix.shape}; {INDEX_NAME} lists {len(rows)} clips, which take {(2 * len(rows),) * 2}")
    place = {row: i for i, row in enumerate(rows)}
    picked = []
    for line, (speaker, _) in read_list(root / f"{split}.csv"):
        parts = speaker.split("/")
        key = (parts[0].upper(), parts[1], parts[-1])
        if key not in place:
            raise DataError(f"{root / f'{split}.csv'}: line {line}: {speaker} is not in {INDEX_NAME} by site, session, clip")
        picked.append(place[key])
    index = np.array(picked + [i + len(rows) for i in picked])
    part = np.ascontiguousarray(matrix[np.ix_(index, index)])
    if write:
        from .._files import write_array

        write_array(root / MATRIX_NAMES[0].format(split=split), part)
    return part == 1


def _read_index(path: Path) -> list[tuple[str, str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); a csv of site, session, clip with a header row is taken") from error
    bad = next((i for i, row in enumerate(rows, start=2) if row and len(row) < 3), None)
    if bad is not None:
        raise DataError(f"{path}: line {bad} has fewer than the three cells site, session, clip")
    return [(row[0].strip().upper(), row[1].strip(), row[2].strip()) for row in rows if row]
