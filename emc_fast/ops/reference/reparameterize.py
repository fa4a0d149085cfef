"""Definition of the reparameterised draw and its divergence to the standard normal (Kingma and Welling, 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import philox_normal


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: Tensor | None = None,
    stream: int = 0,
    frame_offset: int | Tensor = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``z = mu + exp(logvar / 2) * eps`` in the dtype of ``mu``, and ``KL = 1/2 sum_d(mu^2 + exp(logvar) - 1 - logvar)``.

    Half types are computed in float32; the divergence is never less than float32.
    """
    compute = torch.float64 if mu.dtype == torch.float64 else torch.float32
    m, v = mu.to(compute), logvar.to(compute)
    if noise is None:
        if seed is None:
            raise ValueError("reparameterize needs a seed or noise")
        eps = philox_normal(tuple(mu.shape), seed, stream=stream, frame_offset=frame_offset, dtype=compute)
    else:
        eps = noise.to(compute)
    z = m + torch.exp(0.5 * v) * eps
    kl = 0.5 * (m * m + (torch.exp(v) - 1.0 - v)).sum(dim=-1)
    return z.to(mu.dtype), kl
