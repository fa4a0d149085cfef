"""Matrices of appropriate reactions: loading, and cutting a split out of the whole corpus."""

from __future__ import annotations

import numpy as np
import pytest

from emc_fast.data import appropriateness_of_split, load_appropriateness
from emc_fast.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Five clips in the index; a split of three of them in another order."""
    rows = [("NOXI", "s1", "1"), ("NOXI", "s1", "2"), ("UDIVA", "s2", "1"), ("RECOLA", "group-1", "3"), ("NOXI", "s3", "1")]
    (tmp_path / "data_indices.csv").write_text("site,session,clip\n" + "\n".join(",".join(row) for row in rows) + "\n")
    pairs = [("RECOLA/group-1", "P25", "P26", 3), ("NoXI/s1", "Expert_video", "Novice_video", 2), ("NoXI/s3", "P1", "P2", 1)]
    lines = [f"{i},{stem}/{a}/{clip},{stem}/{b}/{clip}" for i, (stem, a, b, clip) in enumerate(pairs)]
    (tmp_path / "val.csv").write_text(",speaker,listener\n" + "\n".join(lines) + "\n")
    matrix = np.random.default_rng(0).integers(0, 2, (10, 10)).astype(float)
    np.save(tmp_path / "Approprirate_facial_reaction.npy", matrix)
    return tmp_path, matrix


def test_cut_from_the_whole_corpus(root):
    folder, matrix = root
    index = [3, 1, 4, 3 + 5, 1 + 5, 4 + 5]
    part = appropriateness_of_split(folder, "val")
    np.testing.assert_array_equal(part, matrix[np.ix_(index, index)] == 1)
    np.testing.assert_array_equal(load_appropriateness(folder, "val", 3), part)


def test_cut_faults(root):
    folder, matrix = root
    (folder / "val.csv").write_text(",s,l\n0,NoXI/s9/P1/1,NoXI/s9/P2/1\n")
    with pytest.raises(DataError, match=r"line 2: NoXI/s9/P1/1 is not in data_indices\.csv"):
        appropriateness_of_split(folder, "val")
    np.save(folder / "Approprirate_facial_reaction.npy", matrix[:9, :9])
    with pytest.raises(DataError, match=r"shape \(9, 9\); data_indices.csv lists 5"):
        appropriateness_of_split(folder, "val")
    (folder / "data_indices.csv").write_text("a,b,c\nNOXI,s1\n")
    with pytest.raises(DataError, match="line 2 has fewer"):
        appropriateness_of_split(folder, "val")
    (folder / "Approprirate_facial_reaction.npy").unlink()
    with pytest.raises(DataError, match="organisers"):
        appropriateness_of_split(folder, "val")
    assert not list(folder.glob("neighbour*"))


def test_only_ones_are_appropriate(tmp_path):
    np.save(tmp_path / "neighbour_emotion_val.npy", np.array([[1, 0.5], [0, 1]]))
    np.testing.assert_array_equal(load_appropriateness(tmp_path, "val", 1), np.eye(2, dtype=bool))


def test_names_of_forks(tmp_path):
    np.save(tmp_path / "neighbour_emotion_new_test.npy", np.eye(4))
    assert load_appropriateness(tmp_path, "test", 2).sum() == 4


def test_absent_or_of_another_size(tmp_path):
    with pytest.raises(DataError, match=r"absent\. Get it from the organisers .* or put .*appropriateness_of_split"):
        load_appropriateness(tmp_path, "val", 2)
    np.save(tmp_path / "neighbour_emotion_val.npy", np.eye(3))
    with pytest.raises(DataError, match=r"shape \(3, 3\); val.csv lists 2 pairs, which take \(4, 4\)"):
        load_appropriateness(tmp_path, "val", 2)
