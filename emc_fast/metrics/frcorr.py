"""FRCorr: how well a reaction agrees with the best of its appropriate listeners, by the concordance correlation coefficient (CCC)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._inputs import ArrayLike, Protocol, as_appropriate, as_clips, as_predictions, check_finite, check_protocol, chunks

__all__ = ["best_concordance", "concordance", "frcorr"]

_EPSILON = 1e-8  # in the published denominator


def concordance(pred: Tensor, target: Tensor, *, protocol: Protocol = "official") -> Tensor:
    """Mean CCC over channels of every prediction (K,T,C) against every listener (J,T,C), in float64: (K,J).

    CCC = 2 rho s s' / (s^2 + s'^2 + (m - m')^2 + e) with rho clipped to [-1, 1] and moments over time. ``official``: e = 1e-8, and a
    channel that is constant in
    either signal counts as 0. ``fixed``: e = 0, and a channel that is constant in both signals says nothing about agreement and is left out
    of the mean.
    """
    frames = pred.shape[1]
    pred, target = pred.to(torch.float64), target.to(torch.float64)
    mean_p, mean_g = pred.mean(dim=1), target.mean(dim=1)  # (K,C), (J,C)
    pred, target = pred - mean_p[:, None], target - mean_g[:, None]
    var_p, var_g = pred.square().mean(dim=1)[:, None], target.square().mean(dim=1)[None]
    covariance = torch.einsum("ktc,jtc->kjc", pred, target) / frames  # one matrix product a channel
    deviations = (var_p * var_g).sqrt()
    rho_ss = torch.minimum(torch.maximum(covariance, -deviations), deviations)
    gap = (mean_p[:, None] - mean_g[None]).square()
    if protocol == "official":
        return (2.0 * rho_ss / (var_p + var_g + gap + _EPSILON)).mean(dim=2)
    varies = (var_p > 0.0) | (var_g > 0.0)
    ccc = torch.where(varies, 2.0 * rho_ss / torch.where(varies, var_p + var_g + gap, 1.0), 0.0)
    return ccc.sum(dim=2) / varies.sum(dim=2).clamp(min=1)


def best_concordance(
    pred: NDArray[Any], target: NDArray[Any], appropriate: NDArray[np.bool_], *, protocol: Protocol = "official"
) -> NDArray[np.float64]:
    """(N,K): for each draw the best mean CCC among the appropriate listeners.

    pred (N,K,T,25), target (M,T,25), appropriate (N,M), checked by the caller.
    """
    best = np.empty(pred.shape[:2])
    for n, row in enumerate(appropriate):
        mine = torch.from_numpy(np.asarray(pred[n], dtype=np.float32))
        theirs = torch.from_numpy(np.asarray(target[np.flatnonzero(row)], dtype=np.float32))
        best[n] = concordance(mine, theirs, protocol=protocol).amax(dim=1).numpy()
    return best


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
    check_protocol(protocol)
    p = as_predictions("pred", pred)
    g = as_clips("target", target, p)
    a = as_appropriate(appropriate, len(p))
    check_finite("target", g)
    for part in chunks(len(p)):
        check_finite("pred", p[part], part.start)
    per_draw = best_concordance(p, g, a, protocol=protocol)
    per_clip = per_draw.sum(axis=1) if protocol == "official" else per_draw.mean(axis=1)
    return math.fsum(per_clip) / len(per_clip)
