"""Definition of lagged correlation in plain PyTorch; the truth of every test of :func:`emc_fast.ops.lagged_correlation`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lagged_correlation"]


def lagged_correlation(x: Tensor, y: Tensor, max_lag: int) -> Tensor:
    """Pearson's coefficient of x[t + l] and y[t] over the frames where both exist, for l = -max_lag ... max_lag.

    x (N,K,T,C), y (N,T,C) -> (N,K,2 max_lag + 1,C) float64. A channel that is constant in either overlap, or an overlap of fewer than two
    frames, gives NaN.
    """
    frames = x.shape[2]
    out = x.new_full((*x.shape[:2], 2 * max_lag + 1, x.shape[3]), float("nan"), dtype=torch.float64)
    y = y[:, None]
    for lag in range(-max_lag, max_lag + 1):
        if frames - abs(lag) < 2:
            continue
        a, b = (x[:, :, lag:], y[:, :, : frames - lag]) if lag >= 0 else (x[:, :, :lag], y[:, :, -lag:])
        constant = (a == a[:, :, :1]).all(dim=2) | (b == b[:, :, :1]).all(dim=2)
        a, b = a.to(torch.float64), b.to(torch.float64)
        a, b = a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True)
        r = (a * b).sum(dim=2) / (a.square().sum(dim=2).sqrt() * b.square().sum(dim=2).sqrt())
        out[:, :, lag + max_lag] = torch.where(constant, float("nan"), r.clamp(-1.0, 1.0))
    return out
