"""FRDist against tslearn, pair by pair, as the published code computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tslearn.metrics import dtw

from emc_fast.metrics import frdist
from emc_fast.metrics.frdist import least_warped


def published_distance(a: np.ndarray, b: np.ndarray) -> float:
    return sum(w * dtw(a[:, c], b[:, c]) for c, w in ((slice(0, 15), 1 / 15), (slice(15, 17), 1.0), (slice(17, 25), 1 / 8)))


def published_frdist(pred: np.ndarray, target: np.ndarray, appropriate: np.ndarray) -> float:
    per_clip = [
        sum(min(published_distance(draw, target[j]) for j in np.flatnonzero(row)) for draw in draws)
        for draws, row in zip(pred, appropriate, strict=True)
    ]
    return float(np.mean(per_clip))


@pytest.mark.parametrize(
    "kind", ["random", "smooth", "constant_channel", "binary", "near", "single_draw", "single_neighbour", "odd_length"]
)
def test_official_is_the_published_figure(kind: str) -> None:
    rng = np.random.default_rng(3)
    n, k, t = 6, 1 if kind == "single_draw" else 3, 37 if kind == "odd_length" else 40
    pred = rng.random((n, k, t, 25), np.float32)
    target = rng.random((n, t, 25), np.float32)
    if kind == "smooth":
        pred, target = pred.cumsum(axis=2) / 10, target.cumsum(axis=1) / 10
    if kind == "constant_channel":
        pred[..., 3], target[..., 16] = 0.5, 0.25
    if kind == "binary":
        pred[..., :15], target[..., :15] = pred[..., :15] > 0.5, target[..., :15] > 0.5
    if kind == "near":
        target += 10.0
        pred[:, 0] = target + 1e-3 * pred[:, 0]
    appropriate = np.eye(n, dtype=bool) | (rng.random((n, n)) < (0.0 if kind == "single_neighbour" else 0.7))
    truth = published_frdist(pred, target, appropriate)
    assert frdist(pred, target, appropriate) == pytest.approx(truth, rel=1e-6)
    assert frdist(torch.from_numpy(pred), torch.from_numpy(target), torch.from_numpy(appropriate), protocol="fixed") == pytest.approx(
        truth / k, rel=1e-6
    )


def test_truth_against_itself_is_exactly_zero() -> None:
    target = np.random.default_rng(0).random((3, 30, 25), np.float32)
    assert frdist(np.repeat(target[:, None], 2, axis=1), target, np.ones((3, 3), bool)) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_could_be_nearest_is_passed_over(seed: int) -> None:
    """Many listeners nearly equally far: the narrowing must end at the very least of all distances."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((1, 30, 25)).astype(np.float32)
    y = torch.from_numpy(base + np.float32(1e-6) * rng.standard_normal((12, 30, 25)).astype(np.float32))
    x = torch.from_numpy(rng.standard_normal((3, 30, 25)).astype(np.float32))
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(12))
    truth = [min(published_distance(row.numpy(), other.numpy()) for other in y) for row in x]
    np.testing.assert_allclose(least_warped(x, y, pairs).numpy(), truth, rtol=1e-6)


def test_unequal_lengths() -> None:
    rng = np.random.default_rng(5)
    x, y = (torch.from_numpy(rng.random((2, t, 25), np.float32)) for t in (20, 31))
    x_lengths, y_lengths = torch.tensor([20, 9]), torch.tensor([31, 14])
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    cut_x, cut_y = ([v[:length].numpy() for v, length in zip(*pair, strict=True)] for pair in ((x, x_lengths), (y, y_lengths)))
    truth = [min(published_distance(a, b) for b in cut_y) for a in cut_x]
    np.testing.assert_allclose(least_warped(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths).numpy(), truth, rtol=1e-6)


def test_the_largest_values_have_a_nearest_listener() -> None:
    """The first look, which adds up in float32, is finite up to the limit for a path through frames of the greatest gap."""
    from emc_fast.metrics._inputs import LARGEST

    rng = np.random.default_rng(4)
    pred = (LARGEST * rng.uniform(0.9, 1.0, (2, 2, 300, 25))).astype(np.float32)
    target = -(LARGEST * rng.uniform(0.9, 1.0, (2, 300, 25))).astype(np.float32)
    appropriate = np.ones((2, 2), bool)
    truth = published_frdist(pred.astype(np.float64), target.astype(np.float64), appropriate)
    assert frdist(pred, target, appropriate) == pytest.approx(truth, rel=1e-6)
