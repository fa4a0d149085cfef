"""FRCorr against NumPy's own corrcoef, channel by channel, as the published code computes it."""

from __future__ import annotations

import numpy as np
import pytest

from emc_fast.errors import DataError
from emc_fast.metrics import frcorr


def published_ccc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    values = []
    for c in range(y_true.shape[1]):
        a, b = y_true[:, c].astype(np.float64), y_pred[:, c].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.nan_to_num(np.corrcoef(a, b)[0, 1])
        values.append(2 * rho * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2 + 1e-8))
    return float(np.mean(values))


def published_frcorr(pred: np.ndarray, target: np.ndarray, appropriate: np.ndarray) -> float:
    return float(
        np.mean(
            [
                sum(max(published_ccc(target[j], draw) for j in np.flatnonzero(row)) for draw in draws)
                for draws, row in zip(pred, appropriate, strict=True)
            ]
        )
    )


@pytest.mark.parametrize("kind", ["random", "constant_channel", "binary", "single_draw", "single_neighbour"])
def test_official_is_the_published_figure(kind: str) -> None:
    rng = np.random.default_rng(7)
    n, k, t = 5, 1 if kind == "single_draw" else 3, 60
    pred = rng.standard_normal((n, k, t, 25)).cumsum(axis=2).astype(np.float32)
    target = (pred[:, 0] + rng.standard_normal((n, t, 25))).astype(np.float32)
    appropriate = np.eye(n, dtype=bool) | (rng.random((n, n)) < 0.5) if kind != "single_neighbour" else np.eye(n, dtype=bool)
    if kind == "constant_channel":
        pred[..., 3], target[..., 5], target[..., 3] = 0.1, 0.7, 0.1
    if kind == "binary":
        pred[..., :15], target[..., :15] = pred[..., :15] > 0, target[..., :15] > 0
    assert frcorr(pred, target, appropriate) == pytest.approx(published_frcorr(pred, target, appropriate), rel=1e-6)


def test_truth_against_itself_shows_the_quirk() -> None:
    """A channel that never moves counts as 0 in the published figure, so that even the truth misses the maximum; the mended one is 1."""
    rng = np.random.default_rng(1)
    target = rng.random((3, 50, 25), dtype=np.float32)
    target[..., 4] = 0.0
    pred = np.repeat(target[:, None], 10, axis=1)
    eye = np.eye(3, dtype=bool)
    assert frcorr(pred, target, eye) == pytest.approx(10 * 24 / 25, rel=1e-6)
    assert frcorr(pred, target, eye, protocol="fixed") == pytest.approx(1.0, rel=1e-12)


def test_bad_input_is_named() -> None:
    pred = np.zeros((2, 1, 8, 25), np.float32)
    target = np.zeros((2, 8, 25), np.float32)
    eye = np.eye(2, dtype=bool)
    with pytest.raises(DataError, match=r"pred: got shape \(2, 8, 25\)"):
        frcorr(target, target, eye)
    with pytest.raises(DataError, match="2 clips of 7 frames"):
        frcorr(pred, target[:, :7], eye)
    with pytest.raises(DataError, match="row 1"):
        frcorr(pred, target, np.array([[1, 0], [0, 0]]))
    pred[1, 0, 3, 2] = np.nan
    with pytest.raises(DataError, match="clip 1, draw 0, frame 3, channel 2"):
        frcorr(pred, target, eye)
    with pytest.raises(ValueError, match="protocol"):
        frcorr(pred, target, eye, protocol="best")  # type: ignore[arg-type]
