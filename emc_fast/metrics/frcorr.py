"""FRCorr: how well a reaction agrees with the best of its appropriate listeners, by the concordance correlation coefficient (CCC)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.cross_covariance import cross_covariance
from ._inputs import ArrayLike, Protocol, checked_with_listeners, mean_over_clips, over_clips, to_tensor

__all__ = ["best_concordance", "channel_concordance", "concordance", "frcorr"]

_EPSILON = 1e-8  # in the published denominator


class _Agreement:
    """What the CCC of every prediction (K,T,C) with every listener (J,T,C) is made of, in float64 and by one reading.

    CCC = 2 rho s s' / (s^2 + s'^2 + (m - m')^2 + e) with rho clipped to [-1, 1] and moments over time. ``official``: e = 1e-8, and a
    channel that is constant in either signal counts as 0. ``fixed``: e = 0, and a channel that is constant in both signals says nothing
    about agreement and is left out of the mean.
    """

    def __init__(self, pred: Tensor, target: Tensor) -> None:
        covariance, x, y = cross_covariance(pred, target)
        mean_p, var_p = x[:, None].unbind(dim=2)  # (K,1,C)
        mean_g, var_g = y[None].unbind(dim=2)  # (1,J,C)
        deviations = (var_p * var_g).sqrt()
        self.covariance = torch.minimum(torch.maximum(covariance, -deviations), deviations)  # rho in [-1, 1]
        self.spread = var_p + var_g + (mean_p - mean_g).square()
        self.varies = (var_p > 0.0) | (var_g > 0.0)

    def mean(self, protocol: Protocol) -> Tensor:
        """(K,J): mean over channels."""
        if protocol == "official":
            return (2.0 * self.covariance / (self.spread + _EPSILON)).mean(dim=2)
        return self.channels().nansum(dim=2) / self.varies.sum(dim=2).clamp(min=1)

    def channels(self) -> Tensor:
        """(K,J,C): the CCC of each channel without epsilon; NaN where neither signal varies."""
        return torch.where(self.varies, 2.0 * self.covariance / self.spread, torch.nan)


def concordance(pred: Tensor, target: Tensor, *, protocol: Protocol = "official") -> Tensor:
    """Mean CCC over channels of every prediction (K,T,C) with every listener (J,T,C), in float64: (K,J)."""
    return _Agreement(pred, target).mean(protocol)


def best_concordance(
    pred: NDArray[Any], target: NDArray[Any], appropriate: NDArray[np.bool_], *, protocols: tuple[Protocol, ...] = ("official", "fixed")
) -> dict[Protocol, NDArray[np.float64]]:
    """For each protocol (N,K): each draw's best mean CCC among its appropriate listeners.

    pred (N,K,T,25), target (M,T,25), appropriate (N,M), checked by the caller.
    """
    best: dict[Protocol, NDArray[np.float64]] = {protocol: np.empty(pred.shape[:2]) for protocol in protocols}
    for n, row in enumerate(appropriate):
        mine = to_tensor(pred[n])
        theirs = to_tensor(target[np.flatnonzero(row)])
        agreement = _Agreement(mine, theirs)
        for protocol, values in best.items():
            values[n] = agreement.mean(protocol).amax(dim=1).numpy()
    return best


def channel_concordance(
    pred: NDArray[Any], target: NDArray[Any], appropriate: NDArray[np.bool_], clips: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(25,): each channel's CCC with the listener that agrees best overall, mean over clips and draws where the channel varies.

    Arrays as :func:`emc_fast.metrics.measure_clips` takes them, checked by the caller. NaN for a channel that varies nowhere.
    """
    total, count = np.zeros(pred.shape[-1]), np.zeros(pred.shape[-1])
    for n, row in zip(clips, appropriate, strict=True):
        mine = to_tensor(pred[n])
        theirs = to_tensor(target[np.flatnonzero(row)])
        agreement = _Agreement(mine, theirs)
        best = agreement.mean("fixed").argmax(dim=1)
        ccc = agreement.channels()[torch.arange(len(best)), best].numpy()
        total += np.nansum(ccc, axis=0)
        count += np.isfinite(ccc).sum(axis=0)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def frcorr(pred: ArrayLike, target: ArrayLike, appropriate: ArrayLike, *, protocol: Protocol = "official") -> float:
    """FRCorr (higher is better): mean over clips of the draws' best CCC with an appropriate listener.

    Args:
        pred: (N,K,T,25) predicted emotion, K draws for each clip.
        target: (N,T,25) the listeners' true emotion.
        appropriate: (N,N) bool, entry (n,m) says that listener m's reaction suits clip n.
        protocol: ``official`` sums over the K draws, so that a perfect score is K; ``fixed`` takes their mean, and leaves out channels that
            vary in neither signal.

    Raises:
        DataError: a wrong shape, a value that is not finite (with its place), or a clip without any appropriate listener.
    """
    p, g, a = checked_with_listeners(pred, target, appropriate, protocol)
    return mean_over_clips(over_clips(best_concordance(p, g, a, protocols=(protocol,))[protocol], protocol))
