"""Sinusoidal positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_positions(length: int, d_model: int, *, device: torch.device | None = None) -> Tensor:
    """The table of "Attention is all you need": channel 2i is sin(t / 10000^(2i/d)), channel 2i+1 its cosine.

    Returns:
        (length, d_model) float32; `d_model` is even.
    """
    position = torch.arange(length, dtype=torch.float32, device=device)[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32, device=device) * (-math.log(10000.0) / d_model))
    return torch.stack((torch.sin(position * rate), torch.cos(position * rate)), dim=-1).reshape(length, d_model)


class SinusoidalPositions(nn.Module):
    """A table of `max_length` positions, made once and not saved; longer sequences compute theirs.

    Args:
        d_model: even width.
        max_length: rows of the table.
    """

    table: Tensor

    def __init__(self, d_model: int, max_length: int = 5000) -> None:
        super().__init__()
        self.d_model = d_model
        self.register_buffer("table", sinusoidal_positions(max_length, d_model), persistent=False)

    def forward(self, length: int, *, offset: int = 0) -> Tensor:
        """Rows `offset` to `offset + length` as (length, d_model)."""
        if offset + length <= self.table.shape[0]:
            return self.table[offset : offset + length]
        return sinusoidal_positions(offset + length, self.d_model, device=self.table.device)[offset:]
