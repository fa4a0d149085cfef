from __future__ import annotations

import numpy as np
import pytest

from emc_fast.training.order import StepSampler, epoch_order, steps_per_epoch
from emc_fast.training.seeds import TRAIN, VALIDATE, clip_seeds, derive, derive_signed


@pytest.mark.parametrize(("clips", "batch"), [(1, 1), (7, 3), (8, 4), (2, 5)])
def test_every_clip_is_seen_and_every_step_is_full(clips, batch):
    order = epoch_order(clips, batch, seed=1, epoch=0)
    assert order.shape == (steps_per_epoch(clips, batch), batch)
    assert set(order.ravel()) == set(range(clips))
    counts = np.bincount(order.ravel())
    assert counts.max() - counts.min() <= 1


def test_the_order_differs_between_epochs_and_seeds():
    first = epoch_order(50, 5, seed=1, epoch=0)
    assert (epoch_order(50, 5, seed=1, epoch=0) == first).all()
    assert (epoch_order(50, 5, seed=1, epoch=1) != first).any()
    assert (epoch_order(50, 5, seed=2, epoch=0) != first).any()


@pytest.mark.parametrize("first", [0, 1, 3, 4, 7, 12])
def test_resuming_gives_the_rest_of_the_run(first):
    whole = list(StepSampler(11, batch=3, epochs=3, seed=5))
    rest = StepSampler(11, batch=3, epochs=3, seed=5, first=first)
    assert list(rest) == whole[first:]
    assert len(rest) == len(whole) - first


def test_processes_share_the_steps_of_one_with_the_larger_batch():
    whole = list(StepSampler(11, batch=4, epochs=2, seed=5))
    shares = [list(StepSampler(11, batch=2, epochs=2, seed=5, rank=rank, processes=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_seeds_depend_on_every_word_and_on_nothing_else():
    seen = {derive(seed, *words) for seed in (0, 1, -1) for words in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**64 - 1,))}
    assert len(seen) == 3 * 7
    assert all(0 <= value < 2**64 for value in seen)
    assert derive_signed(3, 4) % 2**64 == derive(3, 4)


def test_the_seed_of_a_clip_does_not_depend_on_its_batch():
    alone, together = clip_seeds(1, TRAIN, [7], 20), clip_seeds(1, TRAIN, [3, 7], 20)
    assert alone[0] == together[1] != together[0]
    assert clip_seeds(1, TRAIN, [7], 21)[0] != alone[0] != clip_seeds(1, VALIDATE, [7], 20)[0]
