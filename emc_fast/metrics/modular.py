"""The measures as torchmetrics classes: fed batch by batch, synchronised across processes, used in any training loop.

Needs torchmetrics (``pip install 'emc_fast[metrics]'``). Figures are those of the functions of :mod:`emc_fast.metrics`, to the last bit
for all but :class:`FRDvs`, whatever the batches and the number of processes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EmcError
from ._inputs import Protocol, as_appropriate, as_clips, as_predictions, check_finite, check_protocol, mean_over_clips, over_clips
from .diversity import between_draws, over_time
from .frcorr import best_concordance
from .frdist import nearest_warped
from .frsyn import synchrony_offsets

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise EmcError("emc_fast.metrics.modular needs torchmetrics, which is not installed: pip install 'emc_fast[metrics]'") from error

__all__ = ["FRCorr", "FRDist", "FRDiv", "FRDvs", "FRSyn", "FRVar"]


class _PerClip(Metric):
    """A mean over clips. The clips' values are kept, so that the mean is rounded once and depends on no order."""

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]

    def __init__(self, *, protocol: Protocol = "official", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_protocol(protocol)
        self.protocol = protocol
        self.set_dtype(torch.float64)  # also of what a process without a clip sends
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def _add(self, values: NDArray[np.float64]) -> None:
        self.values.append(torch.from_numpy(np.asarray(values, dtype=np.float64)).to(self.device))

    def compute(self) -> Tensor:
        """The figure over everything seen since the last reset, a float64 scalar."""
        values = self.values if isinstance(self.values, Tensor) else torch.cat(self.values) if self.values else torch.zeros(0)
        if not values.numel():
            raise EmcError(f"{type(self).__name__} has seen no clip yet: call update before compute")
        return torch.tensor(mean_over_clips(values.numpy(force=True)), dtype=torch.float64, device=self.device)


def _checked(pred: Tensor) -> NDArray[Any]:
    p = as_predictions("pred", pred)
    check_finite("pred", p)
    return p


def _with_listeners(pred: Tensor, target: Tensor, appropriate: Tensor) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    p, g = _checked(pred), as_clips("target", target)
    if g.shape[1] != p.shape[2]:
        raise EmcError(f"target: has {g.shape[1]} frames, pred has {p.shape[2]}; cut both to the same frames")
    check_finite("target", g)
    return p, g, as_appropriate(appropriate, len(p), len(g))


class FRCorr(_PerClip):
    """:func:`emc_fast.metrics.frcorr`. ``update(pred (B,K,T,25), target (M,T,25), appropriate (B,M))``: a batch and a pool of listeners."""

    higher_is_better = True

    def update(self, pred: Tensor, target: Tensor, appropriate: Tensor) -> None:
        """Add the clips of a batch."""
        best = best_concordance(*_with_listeners(pred, target, appropriate), protocols=(self.protocol,))[self.protocol]
        self._add(over_clips(best, self.protocol))


class FRDist(_PerClip):
    """:func:`emc_fast.metrics.frdist`. ``update(pred (B,K,T,25), target (M,T,25), appropriate (B,M))``: a batch and a pool of listeners."""

    higher_is_better = False

    def update(self, pred: Tensor, target: Tensor, appropriate: Tensor) -> None:
        """Add the clips of a batch."""
        least = nearest_warped(*_with_listeners(pred, target, appropriate))
        self._add(over_clips(least, self.protocol))


class FRDiv(_PerClip):
    """:func:`emc_fast.metrics.frdiv`. ``update(pred (B,K,T,25))``."""

    higher_is_better = True

    def update(self, pred: Tensor) -> None:
        """Add the clips of a batch."""
        self._add(between_draws(_checked(pred)))


class FRVar(_PerClip):
    """:func:`emc_fast.metrics.frvar`. ``update(pred (B,K,T,25))``."""

    higher_is_better = True

    def update(self, pred: Tensor) -> None:
        """Add the clips of a batch."""
        self._add(over_time(_checked(pred)).mean(axis=1))


class FRSyn(_PerClip):
    """:func:`emc_fast.metrics.frsyn`. ``update(pred (B,K,T,25), speaker (B,T,25))``."""

    higher_is_better = False

    def __init__(self, *, protocol: Protocol = "official", fps: int = 25, **kwargs: Any) -> None:
        super().__init__(protocol=protocol, **kwargs)
        self.fps = fps

    def update(self, pred: Tensor, speaker: Tensor) -> None:
        """Add the clips of a batch."""
        p = _checked(pred)
        s = as_clips("speaker", speaker, p)
        check_finite("speaker", s)
        p = p[:, :1] if self.protocol == "official" else p
        self._add(synchrony_offsets(p, s, fps=self.fps, protocols=(self.protocol,))[self.protocol].mean(axis=1))


def _two_sum(a: Tensor, b: Tensor) -> Tensor:
    """(2,...), (2,...) -> (2,...): sum of two numbers that are each kept as a float64 and what its rounding left, about 32 digits."""
    high = a[0] + b[0]
    part = high - a[0]
    low = (a[0] - (high - part)) + (b[0] - part) + (a[1] + b[1])
    whole = high + low
    return torch.stack((whole, low - (whole - high)))


def _two_product(a: Tensor, b: Tensor | int) -> tuple[Tensor, Tensor]:
    """Product and what its rounding left (Dekker's splitting: halves of 26 bits multiply exactly)."""
    b = torch.as_tensor(b, dtype=a.dtype, device=a.device)
    high = a * b
    tops = [v * (2.0**27 + 1.0) - (v * (2.0**27 + 1.0) - v) for v in (a, b)]
    ends = [v - top for v, top in zip((a, b), tops, strict=True)]
    return high, (tops[0] * tops[1] - high) + tops[0] * ends[1] + ends[0] * tops[1] + ends[0] * ends[1]


class FRDvs(Metric):
    """:func:`emc_fast.metrics.frdvs`. ``update(pred (B,K,T,25))``, with the same K and T in every batch.

    Keeps sums over clips, not the clips: of every entry (K,T,25) and of its square, with twice the digits of float64, so that the figure
    depends neither on the batches nor on the processes.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    clips: Tensor
    entries: Tensor
    sums: list[Tensor]

    def __init__(self, *, protocol: Protocol = "official", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_protocol(protocol)
        self.set_dtype(torch.float64)  # of what a process without a clip sends; it would turn integers that stand already
        self.add_state("clips", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("entries", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")
        # Parts of 4 K T 25 numbers, flat so that a process without a clip has none: sum, its rest, sum of squares, its rest.
        self.add_state("sums", default=[], dist_reduce_fx="cat")
        self._shape: tuple[int, ...] = ()

    def _folded(self) -> Tensor:
        """(4,E): all parts added."""
        sums = self.sums if isinstance(self.sums, Tensor) else torch.cat(self.sums)
        first, *others = sums.view(-1, 2, 2, int(self.entries))
        for part in others:
            first = torch.stack([_two_sum(a, b) for a, b in zip(first, part, strict=True)])
        return first.reshape(4, -1)

    def update(self, pred: Tensor) -> None:
        """Add the clips of a batch."""
        p = torch.from_numpy(_checked(pred).astype(np.float64)).to(self.device)
        if not int(self.entries):
            self._shape = tuple(p.shape[1:])
            self.entries = torch.tensor(p[0].numel(), device=self.device)
            self.sums = [p.new_zeros(4 * p[0].numel())]
        elif self._shape != tuple(p.shape[1:]):
            raise EmcError(f"pred: has shape {tuple(p.shape)}, batches before had (B,{','.join(map(str, self._shape))})")
        total, squares = self._folded().view(2, 2, -1)
        for clip in p.flatten(1):
            nothing = torch.zeros_like(clip)
            total = _two_sum(total, torch.stack((clip, nothing)))
            squares = _two_sum(squares, torch.stack((clip * clip, nothing)))  # the square of a float32 is exact
        self.sums = [torch.cat((total.flatten(), squares.flatten()))]
        self.clips = self.clips + len(p)

    def compute(self) -> Tensor:
        """The figure over everything seen since the last reset, a float64 scalar; 0 for one clip."""
        n = int(self.clips)
        if n == 0:
            raise EmcError("FRDvs has seen no clip yet: call update before compute")
        if n == 1:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        total, total_rest, squares, squares_rest = self._folded()
        # Entry by entry n squares - total^2, which is n times the sum of squares around the mean.
        of_squares, of_total = _two_product(squares, n), _two_product(total, total)
        rest = (of_squares[1] + n * squares_rest) - (of_total[1] + 2.0 * total * total_rest)
        apart = (of_squares[0] - of_total[0]) + rest
        figure = 2.0 * math.fsum(apart.tolist()) / (n * (n - 1) * len(apart))
        return torch.tensor(max(figure, 0.0), dtype=torch.float64, device=self.device)
