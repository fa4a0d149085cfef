"""FRDist: how far a reaction is from the nearest of its appropriate listeners, under the best warping of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.dtw import dtw, estimate_error
from ._inputs import ArrayLike, Protocol, checked_with_listeners, chunks, mean_over_clips, over_clips, to_tensor

__all__ = ["GROUPS", "frdist", "least_warped", "nearest_warped"]

#: Channels and weight of each group of the published distance: valence and arousal, expressions, action units; each is warped by itself.
#: They stand in the order in which they pay: the first is the cheapest and has by far the largest share of the sum.
GROUPS = ((slice(15, 17), 1.0), (slice(17, 25), 1.0 / 8.0), (slice(0, 15), 1.0 / 15.0))
_ROUND = 4  # candidates of a prediction, after the best guess, that are looked at together before the rest
_CLIPS = 16  # clips whose candidates are gone through together


class _Candidates:
    """Pairs (prediction, listener) of many predictions at once, narrowed down until only what may be a nearest listener is left.

    `low` is a certain lower bound of each pair's whole distance and grows as groups become known; `high` is a certain upper bound of each
    prediction's least distance. A pair whose `low` exceeds its prediction's `high` can never be the nearest.
    """

    def __init__(self, x: Tensor, y: Tensor, pairs: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> None:
        # Each group by itself and dense: the kernel reads it once for every sixteen pairs.
        self.x, self.y = ([v[..., channels].contiguous() for channels, _ in GROUPS] for v in (x, y))
        self.pairs, self.x_lengths, self.y_lengths = pairs, x_lengths, y_lengths
        self.low = torch.zeros(len(pairs), dtype=torch.float64)
        self.high = torch.full((len(x),), torch.inf, dtype=torch.float64)
        self.known_high = torch.zeros_like(self.low)  # upper bound of the groups known so far
        self.norms = [max(float(v[g].square().sum(dim=-1).max()) for v in (self.x, self.y)) for g in range(len(GROUPS))]
        self.frames = x.shape[1] + y.shape[1]

    def group(self, g: int, which: Tensor, *, exact: bool, bound: Tensor | None = None) -> Tensor:
        """Weighted distance in one group of the pairs `which`.

        Pairs with little room go together: the kernel stops a handful of pairs when all of them are beyond their bounds.
        """
        weight = GROUPS[g][1]
        order = torch.arange(len(which)) if bound is None else torch.argsort(bound)
        value = dtw(
            self.x[g],
            self.y[g],
            self.pairs[which[order]],
            x_lengths=self.x_lengths,
            y_lengths=self.y_lengths,
            bound=None if bound is None else bound[order] / weight,
            exact=exact,
        )
        return torch.empty_like(value).index_copy_(0, order, weight * value)

    def error(self, g: int, estimate: Tensor) -> Tensor:
        channels, weight = GROUPS[g]
        return weight * estimate_error(self.frames, channels.stop - channels.start, self.norms[g], estimate / weight)

    def estimate(self, which: Tensor, groups: tuple[int, ...]) -> None:
        """Raise `low` of the pairs `which` by what the groups add at least; what goes beyond its prediction's `high` becomes infinite."""
        high = self.known_high[which]
        for g in groups:
            alive = self.low[which] <= self.high[self.pairs[which, 0]]
            which, high = which[alive], high[alive]
            if not len(which):
                return
            room = self.high[self.pairs[which, 0]] - self.low[which]
            bound = room + self.error(g, room) if bool(room.isfinite().all()) else None
            value = self.group(g, which, exact=False, bound=bound)
            error = self.error(g, torch.where(value.isinf(), 0.0, value))
            self.low[which] += (value - error).clamp(min=0.0)
            high = high + value + error
        if groups[-1] == len(GROUPS) - 1:  # the whole distance is known now
            self.high.scatter_reduce_(0, self.pairs[which, 0], high, "amin")
        else:
            self.known_high[which] = high

    def measure(self, which: Tensor) -> None:
        """The distances that count, of squared differences: `low` of the pairs `which` becomes their whole distance."""
        total = torch.zeros(len(which), dtype=torch.float64)
        for g in sorted(range(len(GROUPS)), key=lambda g: GROUPS[g][0].start):
            total += self.group(g, which, exact=True)
        self.low[which] = total
        self.high.scatter_reduce_(0, self.pairs[which, 0], total, "amin")
        self.measured[which] = True

    def least(self) -> Tensor:
        """(X,) exact least distance of each prediction."""
        everyone = torch.arange(len(self.pairs))
        self.measured = torch.zeros(len(self.pairs), dtype=torch.bool)
        self.estimate(everyone, (0,))
        # The candidates of a prediction from the most to the least promising, each with its place in that order.
        by_low = torch.argsort(self.low, stable=True)
        order = by_low[torch.argsort(self.pairs[by_low, 0], stable=True)]
        owner = self.pairs[order, 0]
        place = everyone - torch.searchsorted(owner, owner)  # where the candidates of each one's prediction begin
        # The best guess is mostly right: it is measured at once, and whatever cannot be nearer is left out.
        self.measure(order[place == 0])
        for now in (order[(place > 0) & (place <= _ROUND)], order[place > _ROUND]):
            if len(now):
                self.estimate(now, (1, 2))
        self.measure((~self.measured & (self.low <= self.high[self.pairs[:, 0]])).nonzero()[:, 0])
        least = torch.full((len(self.high),), torch.inf, dtype=torch.float64)
        return least.scatter_reduce_(0, self.pairs[self.measured, 0], self.low[self.measured], "amin")


def least_warped(x: Tensor, y: Tensor, pairs: Tensor, *, x_lengths: Tensor | None = None, y_lengths: Tensor | None = None) -> Tensor:
    """(X,): for each sequence of x (X,T,25) the least distance to the listeners y (Y,S,25) that `pairs` (P,2) names with it, exact.

    The distance of two sequences is DTW(action units)/15 + DTW(valence, arousal) + DTW(expressions)/8. Distances that cannot be the least
    are never computed to the end: see docs/metrics.md. A sequence that no pair names gets infinity.
    """
    return _Candidates(x, y, pairs, x_lengths, y_lengths).least()


def nearest_warped(pred: NDArray[Any], target: NDArray[Any], appropriate: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,K): for each draw the distance to its nearest appropriate listener. Arrays as :func:`frdist` takes them, checked by the caller."""
    n, k = pred.shape[:2]
    out = np.empty((n, k))
    for part in chunks(n, _CLIPS):
        x = to_tensor(pred[part]).flatten(0, 1)
        clips, listeners = np.nonzero(appropriate[part])
        used, columns = np.unique(listeners, return_inverse=True)
        y = to_tensor(target[used])
        rows = clips[:, None] * k + np.arange(k)
        pairs = torch.from_numpy(np.stack([rows, np.broadcast_to(columns[:, None], rows.shape)], axis=-1).reshape(-1, 2))
        out[part] = least_warped(x, y, pairs.to(torch.int64)).reshape(-1, k).numpy()
    return out


def frdist(pred: ArrayLike, target: ArrayLike, appropriate: ArrayLike, *, protocol: Protocol = "official") -> float:
    """FRDist (lower is better): mean over clips of the draws' distance to the nearest appropriate listener.

    The distance is DTW(action units)/15 + DTW(valence, arousal) + DTW(expressions)/8, three warpings of their own, each the root of the
    least summed squared distance.

    Args:
        pred: (N,K,T,25) predicted emotion, K draws for each clip.
        target: (N,T,25) the listeners' true emotion.
        appropriate: (N,N) bool, entry (n,m) says that listener m's reaction suits clip n.
        protocol: ``official`` sums over the K draws, ``fixed`` takes their mean.

    Raises:
        DataError: a wrong shape, a value that is not finite (with its place), or a clip without any appropriate listener.
    """
    p, g, a = checked_with_listeners(pred, target, appropriate, protocol)
    return mean_over_clips(over_clips(nearest_warped(p, g, a), protocol))
