"""Definition of dynamic time warping in plain PyTorch; the truth of every test of :func:`emc_fast.ops.dtw`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dtw", "squared_distances", "warp"]

_CELLS = 1 << 23  # cells of local distances held at once (64 MiB in float64)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(P,T,C), (P,S,C) -> (P,T,S): squared Euclidean distance of every frame of x to every frame of y, in float64."""
    gaps = torch.zeros((x.shape[0], x.shape[1], y.shape[1]), dtype=torch.float64, device=x.device)
    for c in range(x.shape[2]):  # channel by channel: no (P,T,S,C) tensor, and no cancellation as |x|^2 + |y|^2 - 2 x.y has
        gaps += (x[:, :, None, c].to(torch.float64) - y[:, None, :, c].to(torch.float64)).square()
    return gaps


def warp(distances: Tensor) -> Tensor:
    """(P,T,S) local distances -> (P,T,S): D[t,s] = d[t,s] + min(D[t-1,s], D[t,s-1], D[t-1,s-1]), the least cost of a path to each cell.

    Cells of an anti-diagonal do not depend on each other and are computed together.
    """
    p, t, s = distances.shape
    costs = distances.new_full((p, t + 1, s + 1), float("inf"))
    costs[:, 0, 0] = 0.0
    for diagonal in range(t + s - 1):
        rows = torch.arange(max(0, diagonal - s + 1), min(t, diagonal + 1), device=distances.device)
        columns = diagonal - rows
        best = torch.minimum(torch.minimum(costs[:, rows, columns + 1], costs[:, rows + 1, columns]), costs[:, rows, columns])
        costs[:, rows + 1, columns + 1] = distances[:, rows, columns] + best
    return costs[:, 1:, 1:]


def _look_up(sequences: Tensor, lengths: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) each: a sequence's number and that of its last frame, made fit for indexing, and whether they were fit."""
    number = index.clamp(0, len(sequences) - 1)
    length = torch.full_like(number, sequences.shape[1]) if lengths is None else lengths[number]
    last = (length - 1).clamp(0, sequences.shape[1] - 1)
    return number, last, (number == index) & (last == length - 1)


def dtw(
    x: Tensor, y: Tensor, pairs: Tensor, *, x_lengths: Tensor | None = None, y_lengths: Tensor | None = None, bound: Tensor | None = None
) -> Tensor:
    """Root of the least summed squared distance along a monotone path from (0,0) to (T-1,S-1): (P,) float64.

    x (N,T,C), y (M,S,C), pairs (P,2) int64 of indices into x and y, lengths (N,) and (M,) int64, bound (P,): a pair farther apart than its
    bound comes back as infinity. A pair that names no sequence, or one whose length is not in [1,T] or [1,S], is NaN.
    """
    out = torch.empty(len(pairs), dtype=torch.float64, device=x.device)
    step = max(1, _CELLS // max(1, x.shape[1] * y.shape[1]))
    if 0 in (len(x), len(y)):
        return out.fill_(float("nan"))
    for start in range(0, len(pairs), step):
        chosen = pairs[start : start + step]
        n, last_t, known_x = _look_up(x, x_lengths, chosen[:, 0])
        m, last_s, known_y = _look_up(y, y_lengths, chosen[:, 1])
        costs = warp(squared_distances(x[n], y[m]))
        found = costs[torch.arange(len(n), device=x.device), last_t, last_s].sqrt()
        out[start : start + step] = torch.where(known_x & known_y, found, float("nan"))
    return out if bound is None else torch.where(out > bound, float("inf"), out)
