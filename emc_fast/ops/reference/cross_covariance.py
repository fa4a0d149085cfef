"""Definition of cross covariance in plain PyTorch; the truth of every test of :func:`emc_fast.ops.cross_covariance`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_covariance"]


def cross_covariance(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (K,T,C), y (J,T,C) -> covariance over time of each with each (K,J,C), and mean and variance of each, (K,2,C) and (J,2,C).

    All in float64 with T in the denominator.
    """
    x, y = x.to(torch.float64), y.to(torch.float64)
    mean_x, mean_y = x.mean(dim=1), y.mean(dim=1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    covariance = torch.einsum("ktc,jtc->kjc", x, y) / x.shape[1]
    x_moments = torch.stack([mean_x, x.square().mean(dim=1)], dim=1)
    y_moments = torch.stack([mean_y, y.square().mean(dim=1)], dim=1)
    return covariance, x_moments, y_moments
