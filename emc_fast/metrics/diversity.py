"""FRDiv, FRVar and FRDvs: how much reactions differ between draws, over time, and between clips; in float64 and linear time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._inputs import ArrayLike, Protocol, checked_predictions, mean_over_clips

__all__ = ["between_clips", "between_draws", "clip_mean", "frdiv", "frdvs", "frvar", "over_time"]


def between_draws(pred: NDArray[Any]) -> NDArray[np.float64]:
    """(N,): mean squared difference of two different draws of a clip; 0 where there is one draw.

    sum_{a,b} |p_a - p_b|^2 / (K (K - 1)) = 2 sum_a |q_a - mean q|^2 / (K - 1), where q_a = p_a - p_0 keeps the digits of close draws.
    """
    n, k = pred.shape[:2]
    out = np.zeros(n)
    for i in range(n if k > 1 else 0):
        draws = np.asarray(pred[i], dtype=np.float64).reshape(k, -1)
        apart = draws - draws[0]
        apart -= apart.mean(axis=0)
        out[i] = 2.0 * np.square(apart).sum() / ((k - 1) * draws.shape[1])
    return out


def over_time(pred: NDArray[Any]) -> NDArray[np.float64]:
    """(N,K): variance over time with T - 1 in the denominator, mean over channels; 0 for a single frame."""
    n, k, t = pred.shape[:3]
    out = np.zeros((n, k))
    for i in range(n if t > 1 else 0):
        signal = np.asarray(pred[i], dtype=np.float64)
        signal = signal - signal[:, :1]
        out[i] = np.square(signal - signal.mean(axis=1, keepdims=True)).sum(axis=(1, 2)) / ((t - 1) * signal.shape[2])
    return out


def clip_mean(pred: NDArray[Any], clips: Sequence[int] | NDArray[np.integer], frames: slice = slice(None)) -> NDArray[np.float64]:
    """(K,T',25): mean over these clips in these frames. Clips are added one after the other: cutting time in pieces changes no bit."""
    total = np.zeros(pred[0, :, frames].shape)
    for n in clips:
        total += pred[n, :, frames]
    return total / len(clips)


def between_clips(pred: NDArray[Any], mean: NDArray[np.float64], clips: int) -> NDArray[np.float64]:
    """(N',): what each clip adds to the mean squared difference of two different clips; their mean over all clips is FRDvs.

    sum_{n,m} |p_n - p_m|^2 / (N (N - 1)) = mean_n of 2 |p_n - mean|^2 N / (N - 1), mean over draws, frames and channels. `pred` may be a
    part of the clips that `mean` (K,T,25) and `clips` are of.
    """
    out = np.zeros(len(pred))
    for i in range(len(pred) if clips > 1 else 0):
        out[i] = 2.0 * np.square(pred[i] - mean).sum() / mean.size * (clips / (clips - 1))
    return out


def frdiv(pred: ArrayLike, *, protocol: Protocol = "official") -> float:
    """FRDiv (higher is more diverse): mean squared difference between two draws for the same clip; 0 with a single draw.

    Args:
        pred: (N,K,T,25) predicted emotion.
        protocol: the figure is the same in both.

    Raises:
        DataError: a wrong shape or a value that is not finite (with its place).
    """
    return mean_over_clips(between_draws(checked_predictions(pred, protocol)))


def frvar(pred: ArrayLike, *, protocol: Protocol = "official") -> float:
    """FRVar (higher is livelier): variance over time (T - 1 in the denominator), mean over clips, draws and channels.

    Args:
        pred: (N,K,T,25) predicted emotion.
        protocol: the figure is the same in both.

    Raises:
        DataError: a wrong shape or a value that is not finite (with its place).
    """
    return mean_over_clips(over_time(checked_predictions(pred, protocol)).mean(axis=1))


def frdvs(pred: ArrayLike, *, protocol: Protocol = "official") -> float:
    """FRDvs (higher is more diverse): mean squared difference between the reactions to two different clips, draw by draw; 0 for one clip.

    Args:
        pred: (N,K,T,25) predicted emotion.
        protocol: the figure is the same in both.

    Raises:
        DataError: a wrong shape or a value that is not finite (with its place).
    """
    p = checked_predictions(pred, protocol)
    return mean_over_clips(between_clips(p, clip_mean(p, range(len(p))), len(p)))
