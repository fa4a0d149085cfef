"""FRSyn against NumPy's corrcoef, lag by lag and channel by channel, as the published code computes it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from emc_fast.metrics import frsyn
from emc_fast.metrics.frsyn import synchrony_offsets


def published_offset(x: np.ndarray, y: np.ndarray) -> int:
    means = []
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        for lag in range(-49, 50):
            a, b = (x[lag:], y[:-lag]) if lag > 0 else (x[:lag], y[-lag:]) if lag < 0 else (x, y)
            means.append(float(torch.mean(torch.Tensor([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(25)]))))
    return abs(49 - int(torch.argmax(torch.Tensor(means))))


def published_frsyn(pred: np.ndarray, speaker: np.ndarray) -> float:
    return float(np.mean([published_offset(draws[0], s) for draws, s in zip(pred, speaker, strict=True)]))


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    white = rng.standard_normal((*shape[:-2], shape[-2] + 8, shape[-1]))
    total = np.cumsum(white, axis=-2)
    return (total[..., 8:, :] - total[..., :-8, :]).astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "mime", "binary", "constant_channel", "constant_at_the_end", "constant_speaker", "offset"])
def test_official_is_the_published_figure(kind: str) -> None:
    rng = np.random.default_rng(11)
    speaker = smooth(rng, 2, 120, 25)
    pred = smooth(rng, 2, 2, 120, 25)
    if kind == "mime":
        pred[:, 0] = speaker
    if kind == "binary":
        pred, speaker = (pred > 0).astype(np.float32), (speaker > 0).astype(np.float32)
    if kind == "constant_channel":
        pred[..., 2] = 0.1
    if kind == "constant_at_the_end":  # constant only in the overlaps of large lags
        pred[..., 30:, 2] = 0.1
    if kind == "constant_speaker":
        speaker[..., 7] = 0.3
    if kind == "offset":  # a large mean over a small variation
        pred += 1000.0
    assert frsyn(pred, speaker) == published_frsyn(pred, speaker)


def test_one_constant_channel_makes_a_perfect_mime_a_total_failure() -> None:
    """The quirk behind the 49.00 of binarised predictions, and its mending."""
    speaker = smooth(np.random.default_rng(0), 3, 120, 25)
    speaker[..., 4] = 0.0
    pred = np.repeat(speaker[:, None], 2, axis=1)
    assert frsyn(pred, speaker) == 49.0
    assert frsyn(pred, speaker, protocol="fixed") == 0.0
    assert frsyn(np.zeros_like(pred), speaker, protocol="fixed") == 49.0


def test_a_known_lag_is_found_in_every_draw() -> None:
    long = smooth(np.random.default_rng(1), 2, 220, 25)
    pred = np.stack([long[:, 60 - lag : 210 - lag] for lag in (0, 7, 30)], axis=1)
    offsets = synchrony_offsets(pred, long[:, 60:210])
    for table in offsets.values():
        np.testing.assert_array_equal(table, [[0, 7, 30]] * 2)
    assert frsyn(pred, long[:, 60:210], protocol="fixed") == pytest.approx(37 / 3)
    assert frsyn(pred[:, 1:], long[:, 60:210]) == 7.0  # official: the first draw only


def test_short_clips() -> None:
    """Lags longer than the clip have no overlap: NaN, as corrcoef of nothing."""
    rng = np.random.default_rng(2)
    pred, speaker = smooth(rng, 1, 1, 30, 25), smooth(rng, 1, 30, 25)
    assert frsyn(pred, speaker) == 49.0
    assert frsyn(speaker[:, None], speaker, protocol="fixed") in range(50)
