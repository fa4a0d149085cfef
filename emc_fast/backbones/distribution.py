"""Z, what a backbone draws from: the interface that EMC's fusion loss and its pick of a fusion need, and the diagonal Gaussian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..losses import masked_mean, mean_divisor

if TYPE_CHECKING:
    from typing_extensions import Self


class Distribution(ABC):
    """Z, what a backbone draws from: the draw axis is the second, (B, J, ...), J = 1 or the number of draws.

    There may be one vector per clip or segment, or one per frame (`per_frame`), then with the frames as the third axis.
    """

    @property
    @abstractmethod
    def per_frame(self) -> bool:
        """True for one per frame, False for one vector."""

    @abstractmethod
    def split(self, parts: int) -> list[Self]:
        """The distributions of `parts` groups stacked along B."""

    @staticmethod
    @abstractmethod
    def join(segments: list[Any]) -> Any:
        """The distributions of a clip's segments as one sequence (B, J, N, ...): N segments, or all their frames."""

    @staticmethod
    @abstractmethod
    def pick(options: list[Any], index: Tensor) -> Any:
        """Per clip the distribution that `index` (B,) names."""

    @abstractmethod
    def fusion_loss(self, comp_face: Self, comp_speech: Self, *, mask: Tensor | None, reduction: str) -> Tensor:
        """The fusion loss (eq. 14) with `self` as the fusion of the real streams.

        `mask` (B,) or (B, N) are the clips, segments or frames that count. `mean` is per element, so that the term stands beside
        the other means whatever the width; `paper_sum` sums all elements of a clip and takes the mean over clips.
        """


@dataclass(frozen=True)
class Gaussian(Distribution):
    """A diagonal Gaussian: `mu` and `logvar` (B, J, d), or (B, J, T, d) per frame; `logvar` None is unit variance."""

    mu: Tensor
    logvar: Tensor | None

    def split(self, parts: int) -> list[Gaussian]:
        """Chunks along B."""
        mu = self.mu.chunk(parts)
        logvar = [None] * parts if self.logvar is None else self.logvar.chunk(parts)
        return [Gaussian(m, v) for m, v in zip(mu, logvar, strict=True)]

    @property
    def per_frame(self) -> bool:
        """True with a frame axis."""
        return self.mu.ndim > 3

    @staticmethod
    def join(segments: list[Gaussian]) -> Gaussian:
        """The distributions of a clip's segments as one sequence (B, J, N, d): N segments, or all their frames."""
        draws = max(g.mu.shape[1] for g in segments)

        def cat(parts: list[Tensor]) -> Tensor:
            parts = [p.expand(-1, draws, *p.shape[2:]) for p in parts]
            return torch.cat(parts, dim=2) if segments[0].per_frame else torch.stack(parts, dim=2)

        logvars = [g.logvar for g in segments if g.logvar is not None]
        return Gaussian(cat([g.mu for g in segments]), cat(logvars) if logvars else None)

    @staticmethod
    def pick(options: list[Gaussian], index: Tensor) -> Gaussian:
        """Per clip the distribution that `index` (B,) names."""
        rows = torch.arange(index.shape[0], device=index.device)
        mu = torch.stack([option.mu for option in options])[index, rows]
        logvars = [option.logvar for option in options if option.logvar is not None]
        return Gaussian(mu, torch.stack(logvars)[index, rows] if logvars else None)

    def fusion_loss(self, comp_face: Gaussian, comp_speech: Gaussian, *, mask: Tensor | None, reduction: str) -> Tensor:
        """See `Distribution.fusion_loss`; an element is one coordinate of the Gaussian."""
        pairs = [(option.mu, option.logvar) for option in (self, comp_face, comp_speech)]
        if mask is not None:
            mask = mask.reshape(mask.shape[0], 1, *mask.shape[1:]).expand(self.mu.shape[:-1])
        total = ops.fusion_kl(*pairs, mask=mask, reduction="sum")
        if reduction == "mean":
            return total / mean_divisor(self.mu.shape[:-1], mask, self.mu.device) / self.mu.shape[-1]
        return total / self.mu.shape[0]

    def prior_kl(self, mask: Tensor | None) -> Tensor:
        """KL to N(0, I), a scalar: the mean per element over what counts, in float32 at least.

        For the loss of a backbone with a Gaussian per frame; `Sample.kl`, which knows no mask, is for one vector.

        Args:
            mask: (B,) or (B, N), as in `fusion_loss`; None = all.
        """
        dtype = torch.promote_types(self.mu.dtype, torch.float32)
        rows = self.mu.to(dtype).square()
        if self.logvar is not None:
            logvar = self.logvar.to(dtype)
            rows = rows + logvar.exp() - 1 - logvar
        return masked_mean(rows.mean(-1) / 2, None if mask is None else mask.unsqueeze(1))
