"""The reactions of all appropriate listeners, beside the clip's own."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from emc_fast.data import REACTDataset, collate, synthesize_corpus
from emc_fast.errors import DataError

FRAMES = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("listeners")
    synthesize_corpus(place, train=6, val=1, test=1, frames=FRAMES, seed=2, neighbours=3)
    return place


def known(dataset, clip):
    """Emotion of the listener of item `clip`, whole."""
    return REACTDataset(dataset.corpus, dataset.split, mean_face=dataset.mean_face)[clip]["target_emotion"]


def test_listeners_are_the_appropriate_ones_in_the_same_frames(root):
    data = REACTDataset(root, "train", listeners=5, clip_length=8, random_crop=True, swap_roles=True, seed=1)
    plain = REACTDataset(root, "train", clip_length=8, random_crop=True, swap_roles=True, seed=1)
    for clip in range(len(data)):
        item = data[clip]
        assert all(torch.equal(item[name], value) for name, value in plain[clip].items() if isinstance(value, torch.Tensor))  # same draws
        emotion, there = item["appropriate_emotion"], item["appropriate_available"]
        assert emotion.shape == (8, 5, 25)
        assert there.all(0).tolist() == [True] * 3 + [False] * 2
        assert (emotion[:, 3:] == 0).all()
        whole = [known(data, int(j)) for j in data.appropriate[item["index"]].nonzero()]
        start = next(s for s in range(FRAMES) if any(torch.equal(g[s : s + 8], item["target_emotion"]) for g in whole))
        for column in range(3):
            assert any(torch.equal(g[start : start + 8], emotion[:, column]) for g in whole)
        assert any(torch.equal(item["target_emotion"], emotion[:, column]) for column in range(3))
        assert len({emotion[:, column].numpy().tobytes() for column in range(3)}) == 3


def test_more_listeners_than_wanted_are_drawn_anew_in_each_epoch(root):
    data = REACTDataset(root, "train", listeners=2, seed=1)
    drawn = {epoch: [data.at(clip, epoch=epoch)["appropriate_emotion"] for clip in range(12)] for epoch in (0, 1)}
    assert all(torch.equal(a, data.at(clip, epoch=0)["appropriate_emotion"]) for clip, a in enumerate(drawn[0]))
    assert any(not torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert all(item["appropriate_available"].all() for item in data)


def test_a_listener_that_ends_early_or_has_holes_is_there_where_he_is(root, tmp_path):
    import shutil

    place = tmp_path / "corpus"
    shutil.copytree(root, place)
    data = REACTDataset(place, "train")
    item = int(data.appropriate[0].nonzero()[-1])
    listener = data.corpus.clips[data.corpus.pairs[item][1]]
    lines = listener.emotion.read_text().splitlines()[: 1 + 12]
    lines[3] = ",".join(["nan"] * 25)
    listener.emotion.write_text("\n".join(lines) + "\n")
    there = REACTDataset(place, "train", listeners=3)[0]["appropriate_available"]
    column = int((~there[2]).nonzero())
    assert there[:, column].tolist() == [t not in (2, *range(12, FRAMES)) for t in range(FRAMES)]
    assert there[:, [c for c in range(3) if c != column]].all()


def test_batches_are_padded(root):
    data = REACTDataset(root, "train", listeners=2)
    short = {name: value[:5] if isinstance(value, torch.Tensor) else value for name, value in data[1].items()} | {"length": 5}
    batch = collate([data[0], short])
    assert batch["appropriate_emotion"].shape == (2, FRAMES, 2, 25)
    assert batch["appropriate_available"][1].sum() == 10


def test_without_a_matrix_the_own_listener_is_the_only_one_and_that_is_said(root, tmp_path, caplog):
    import shutil

    place = tmp_path / "corpus"
    shutil.copytree(root, place)
    (place / "neighbour_emotion_train.npy").unlink()
    with caplog.at_level(logging.WARNING):
        data = REACTDataset(place, "train", listeners=3)
    assert "own listener is the only appropriate one" in caplog.text
    assert "neighbour_emotion_train.npy" in caplog.text
    item = data[2]
    assert item["appropriate_available"].all(0).tolist() == [True, False, False]
    assert torch.equal(item["appropriate_emotion"][:, 0], item["target_emotion"])
    np.save(place / "neighbour_emotion_train.npy", np.ones((3, 3)))
    with pytest.raises(DataError, match=r"has shape \(3, 3\)"):
        REACTDataset(place, "train", listeners=3)


def test_swapped_roles_that_the_matrix_does_not_know_keep_their_own_listener(root):
    data = REACTDataset(root, "train", listeners=3, mirror=False, swap_roles=True, seed=4)
    counts = [int(data.at(clip, epoch=epoch)["appropriate_available"].all(0).sum()) for clip in range(6) for epoch in range(4)]
    assert set(counts) == {1, 3}
    with pytest.raises(ValueError, match="listeners must be 0 or more, got -1"):
        REACTDataset(root, "train", listeners=-1)
