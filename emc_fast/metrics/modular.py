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
from ._inputs import Protocol, as_appropriate, as_clips, as_predictions, check_finite, check_protocol
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
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def _add(self, values: NDArray[np.float64]) -> None:
        self.values.append(torch.from_numpy(np.asarray(values, dtype=np.float64)).to(self.device))

    def compute(self) -> Tensor:
        """The figure over everything seen since the last reset, a float64 scalar."""
        values = self.values if isinstance(self.values, Tensor) else torch.cat(self.values) if self.values else torch.zeros(0)
        if not values.numel():
            raise EmcError(f"{type(self).__name__} has seen no clip yet: call update before compute")
        return torch.tensor(math.fsum(values.tolist()) / values.numel(), dtype=torch.float64, device=self.device)


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
        self._add(best.sum(axis=1) if self.protocol == "official" else best.mean(axis=1))


class FRDist(_PerClip):
    """:func:`emc_fast.metrics.frdist`. ``update(pred (B,K,T,25), target (M,T,25), appropriate (B,M))``: a batch and a pool of listeners."""

    higher_is_better = False

    def update(self, pred: Tensor, target: Tensor, appropriate: Tensor) -> None:
        """Add the clips of a batch."""
        least = nearest_warped(*_with_listeners(pred, target, appropriate))
        self._add(least.sum(axis=1) if self.protocol == "official" else least.mean(axis=1))


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


class FRDvs(Metric):
    """:func:`emc_fast.metrics.frdvs`. ``update(pred (B,K,T,25))``, with the same K and T in every batch.

    Keeps the sum (K,T,25) and the sum of squares in float64, not the clips: right to about 1e-15 |p|^2, and every process needs a batch.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    clips: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, *, protocol: Protocol = "official", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_protocol(protocol)
        self.add_state("clips", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, pred: Tensor) -> None:
        """Add the clips of a batch."""
        p = torch.from_numpy(_checked(pred).astype(np.float64)).to(self.device)
        if self.total.dim() and self.total.shape != p.shape[1:]:
            raise EmcError(f"pred: has shape {tuple(p.shape)}, batches before had (B,{','.join(map(str, self.total.shape))})")
        self.clips = self.clips + len(p)
        self.total = self.total + p.sum(dim=0)
        self.squares = self.squares + p.square().sum()

    def compute(self) -> Tensor:
        """The figure over everything seen since the last reset, a float64 scalar; 0 for one clip."""
        n = int(self.clips)
        if n == 0:
            raise EmcError("FRDvs has seen no clip yet: call update before compute")
        if n == 1:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        return (2.0 * (self.squares - self.total.square().sum() / n) / ((n - 1) * self.total.numel())).clamp(min=0.0)
