"""Clips of unequal lengths: the 2025/26 protocol."""

from __future__ import annotations

import numpy as np
import pytest

from emc_fast.errors import DataError
from emc_fast.metrics import evaluate, evaluate_lists
from emc_fast.metrics.lists import resample

from .conftest import Example
from .test_frcorr import published_ccc
from .test_frdist import published_distance


def test_equal_lengths_give_the_figures_of_arrays(example: Example) -> None:
    pred, target, speaker, appropriate = example.arguments
    targets = [list(target[row]) for row in appropriate]
    for protocol in ("official", "fixed"):
        arrays = evaluate(*example.arguments, protocol=protocol)
        lists = evaluate_lists(list(pred), targets, list(speaker), protocol=protocol)
        del arrays["frdvs"]
        mae = np.mean([np.mean([np.abs(p[:, :, :15] - g[:, :15]).mean() for g in some]) for p, some in zip(pred, targets, strict=True)])
        assert lists == pytest.approx({**arrays, "mae": mae}, rel=1e-12)


def test_unequal_lengths() -> None:
    rng = np.random.default_rng(1)
    lengths, listeners = (70, 120), ((70, 64), (200, 55, 120))
    pred = [rng.random((2, t, 25)) for t in lengths]
    target = [[rng.random((s, 25), np.float32) for s in some] for some in listeners]
    speaker = [rng.random((t, 25), np.float32) for t in lengths]
    official = evaluate_lists(pred, target, speaker)
    fixed = evaluate_lists(pred, target, speaker, protocol="fixed")
    assert official["frdiv"] == pytest.approx(1 / 6, rel=0.05)
    assert all(np.isfinite(value) for value in (*official.values(), *fixed.values()))
    silent = evaluate_lists(pred, target, speaker, align=lambda listener, frames: np.zeros((frames, 25)))
    assert silent["frcorr"] == 0.0


@pytest.mark.parametrize("kind", ["random", "constant_channel", "binary", "single_draw", "single_neighbour"])
def test_unequal_lengths_are_the_published_figures(kind: str) -> None:
    """Aligned listeners by tslearn and NumPy's corrcoef, pair by pair; mended, tslearn on the listeners as they are."""
    rng = np.random.default_rng(4)
    draws = 1 if kind == "single_draw" else 2
    listeners = ((41,), (29,)) if kind == "single_neighbour" else ((41, 33), (29, 52, 40))
    pred = [rng.random((draws, t, 25), np.float32) for t in (33, 40)]
    target = [[rng.random((s, 25), np.float32) for s in some] for some in listeners]
    if kind == "constant_channel":
        pred[0][..., 16], target[0][0][:, 3], target[1][1][:, 20] = 0.5, 1.0, 0.25
    if kind == "binary":
        for signal in (*pred, *(listener for some in target for listener in some)):
            signal[..., :15] = signal[..., :15] > 0.5
    speaker = [draw[0] for draw in pred]
    aligned = [[resample(listener, p.shape[1]) for listener in some] for p, some in zip(pred, target, strict=True)]
    corr = np.mean([sum(max(published_ccc(g, d) for g in some) for d in p) for p, some in zip(pred, aligned, strict=True)])
    official, mended = (
        np.mean([sum(min(published_distance(d, g) for g in some) for d in p) for p, some in zip(pred, truth, strict=True)])
        for truth in (aligned, target)
    )
    figures = evaluate_lists(pred, target, speaker)
    assert figures["frcorr"] == pytest.approx(corr, rel=1e-6)
    assert figures["frdist"] == pytest.approx(official, rel=1e-6)
    assert evaluate_lists(pred, target, speaker, protocol="fixed")["frdist"] == pytest.approx(mended / draws, rel=1e-6)


def test_resampling_keeps_what_the_channels_mean() -> None:
    target = np.zeros((3, 25), np.float32)
    target[:, 0], target[:, 15] = (0, 1, 1), (-1.0, 0.0, 1.0)
    target[:, 17:] = np.eye(8)[:3]
    out = resample(target, 5)
    np.testing.assert_array_equal(out[:, 0], [0, 1, 1, 1, 1])
    np.testing.assert_allclose(out[:, 15], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(out[:, 17:].sum(axis=1), 1.0)
    np.testing.assert_allclose(out[1, 17:20], [0.5, 0.5, 0.0])
    assert resample(target[:1], 4).shape == (4, 25)
    np.testing.assert_array_equal(resample(target, 3), target)


def test_bad_lists_are_named() -> None:
    pred, target, speaker = [np.zeros((1, 9, 25))], [[np.zeros((5, 25))]], [np.zeros((9, 25))]
    with pytest.raises(DataError, match="lists of one length, got 1, 1 and 2"):
        evaluate_lists(pred, target, speaker * 2)
    with pytest.raises(DataError, match=r"target\[0\]: names no listener"):
        evaluate_lists(pred, [[]], speaker)
    with pytest.raises(DataError, match=r"speaker\[0\]: has 9 frames, pred\[0\] has 8"):
        evaluate_lists([pred[0][:, :8]], target, speaker)
    with pytest.raises(DataError, match=r"pred\[0\]: got shape \(9, 25\)"):
        evaluate_lists([pred[0][0]], target, speaker)
    target[0][0][3, 2] = np.nan
    with pytest.raises(DataError, match=r"target\[0\]\[0\]: nan at clip 0, frame 3, channel 2"):
        evaluate_lists(pred, target, speaker)
