"""FRSyn: the lag at which a reaction follows the speaker best, by time-lagged correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops.lagged_correlation import lagged_correlation
from ._inputs import ArrayLike, Protocol, as_clips, check_finite, checked_predictions, chunks, mean_over_clips, to_tensor

__all__ = ["frsyn", "max_lag_of", "synchrony_offsets"]

_SECONDS = 2
# The published code rounds the mean over channels to float32. Lags closer together than a few such roundings are compared as it does.
_NEAR = 4e-6


def max_lag_of(fps: int) -> int:
    """Largest lag in frames: just under two seconds, 49 at 25 frames a second."""
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}")
    return _SECONDS * fps - 1


def _published_score(x: NDArray[np.float32], y: NDArray[np.float32], lag: int) -> float:
    """The mean over channels at one lag, rounded as the published code does: corrcoef in float64, each and their mean in float32."""
    a, b = (x[lag:], y[: len(y) - lag]) if lag >= 0 else (x[:lag], y[-lag:])
    return float(torch.tensor([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(x.shape[1])], dtype=torch.float32).mean())


def _official(correlation: NDArray[np.float64], x: NDArray[np.float32], y: NDArray[np.float32]) -> int:
    """|lag| of the published choice: the first lag whose mean is NaN, if there is one (so that any constant channel gives the largest
    lag), else the first of the largest means."""
    max_lag = correlation.shape[0] // 2
    mean = correlation.mean(axis=1)
    undefined = np.flatnonzero(np.isnan(mean))
    if undefined.size:
        return abs(int(undefined[0]) - max_lag)
    near = np.flatnonzero(mean >= mean.max() - _NEAR)
    if near.size > 1:
        scores = [_published_score(x, y, int(i) - max_lag) for i in near]
        return abs(int(near[int(np.argmax(scores))]) - max_lag)
    return abs(int(near[0]) - max_lag)


def _fixed(correlation: NDArray[np.float64]) -> int:
    """|lag| of the largest mean over the channels that vary at that lag; the largest lag if no channel varies at any."""
    max_lag = correlation.shape[0] // 2
    valid = ~np.isnan(correlation)
    count = valid.sum(axis=1)
    total = np.where(valid, correlation, 0.0).sum(axis=1)
    mean = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
    best = mean.max()
    return max_lag if best == -np.inf else abs(int(np.argmax(mean >= best - 1e-12)) - max_lag)


def synchrony_offsets(
    pred: NDArray[Any], speaker: NDArray[Any], *, fps: int = 25, protocols: tuple[Protocol, ...] = ("official", "fixed")
) -> dict[Protocol, NDArray[np.int64]]:
    """For each protocol the (N,K) offsets in frames. pred (N,K,T,25), speaker (N,T,25), checked by the caller."""
    max_lag = max_lag_of(fps)
    offsets: dict[Protocol, NDArray[np.int64]] = {protocol: np.empty(pred.shape[:2], dtype=np.int64) for protocol in protocols}
    for part in chunks(len(pred)):
        x, y = to_tensor(pred[part]), to_tensor(speaker[part])
        curves = lagged_correlation(x, y, max_lag).numpy()
        for n in range(len(x)):
            for k in range(x.shape[1]):
                if "official" in offsets:
                    offsets["official"][part.start + n, k] = _official(curves[n, k], x[n, k].numpy(), y[n].numpy())
                if "fixed" in offsets:
                    offsets["fixed"][part.start + n, k] = _fixed(curves[n, k])
    return offsets


def frsyn(pred: ArrayLike, speaker: ArrayLike, *, protocol: Protocol = "official", fps: int = 25) -> float:
    """FRSyn (lower is better): mean distance in frames between the reaction and the lag at which it correlates best with the speaker.

    At each lag of just under two seconds either way, Pearson's coefficient of reaction and speaker over the frames where both exist, mean
    over channels; the offset is the |lag| of the largest mean.

    Args:
        pred: (N,K,T,25) predicted emotion.
        speaker: (N,T,25) the speaker's emotion.
        protocol: ``official`` reads the first draw only, and a channel that is constant makes the lag undefined, which counts as the
            largest lag (49); ``fixed`` takes all draws, and at each lag the channels that vary.
        fps: frames a second; the published code says 25 for data of every rate.

    Raises:
        DataError: a wrong shape or a value that is not finite (with its place).
    """
    p = checked_predictions(pred, protocol)
    s = as_clips("speaker", speaker, p)
    check_finite("speaker", s)
    p = p[:, :1] if protocol == "official" else p
    return mean_over_clips(synchrony_offsets(p, s, fps=fps, protocols=(protocol,))[protocol].mean(axis=1))
