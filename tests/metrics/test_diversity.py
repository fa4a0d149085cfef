"""FRDiv, FRVar and FRDvs against the published double sums, and against what noise must give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emc_fast.metrics import frdiv, frdvs, frvar


def published(pred: np.ndarray) -> tuple[float, float, float]:
    n, k, t, c = pred.shape
    p = pred.astype(np.float64).reshape(n, k, -1)
    div = np.mean([sum(np.square(a - b).sum() for a in draws for b in draws) / max(k * (k - 1), 1) / (t * c) for draws in p])
    dvs = sum(np.square(p[i, j] - p[m, j]).sum() for i in range(n) for m in range(n) for j in range(k)) / (n * (n - 1) * k * t * c)
    return float(div), float(pred.astype(np.float64).var(axis=2, ddof=1).mean()), float(dvs)


@pytest.mark.parametrize(("n", "k", "t", "scale"), [(4, 3, 17, 1.0), (3, 1, 9, 1.0), (5, 2, 12, 1e-5)])
def test_are_the_published_figures(n: int, k: int, t: int, scale: float) -> None:
    """Also where reactions differ in the fifth digit only, as Trans-VAE's do: there float32 sums of squares would lose everything."""
    rng = np.random.default_rng(n)
    pred = (1.0 + scale * rng.standard_normal((n, k, t, 25))).astype(np.float32)
    assert (frdiv(pred), frvar(pred), frdvs(pred)) == pytest.approx(published(pred), rel=1e-9)
    assert frdvs(torch.from_numpy(pred), protocol="fixed") == frdvs(pred)


def test_uniform_noise() -> None:
    """The 'random' row of the challenge: variance 1/12, and twice that between any two of them."""
    pred = np.random.default_rng(0).random((12, 10, 300, 25), np.float32)
    assert frvar(pred) == pytest.approx(1 / 12, rel=3e-3)
    assert frdiv(pred) == pytest.approx(1 / 6, rel=3e-3)
    assert frdvs(pred) == pytest.approx(1 / 6, rel=3e-3)


def test_equal_reactions_differ_by_exactly_nothing() -> None:
    pred = np.full((3, 4, 10, 25), 0.1, np.float32)
    assert frdiv(pred) == frvar(pred) == 0.0
    assert frdvs(pred) == pytest.approx(0.0, abs=1e-30)
    assert frdvs(pred[:1]) == 0.0
