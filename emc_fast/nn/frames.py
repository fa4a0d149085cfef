"""Cutting frames out of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Spans = Sequence[tuple[int, int]]
"""First frame and one past the last, of one window or of several of the same length."""


def cut_frames(x: Tensor, spans: Spans) -> Tensor:
    """The spans of `x` (B, T, ...), stacked along the batch: (len(spans) * B, frames, ...), span by span; a single one is no copy."""
    parts = [x[:, first:stop] for first, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
