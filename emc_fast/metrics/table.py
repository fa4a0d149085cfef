"""What an evaluation knows of every clip, and the figures of either protocol that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ._inputs import Protocol, mean_over_clips, over_clips

__all__ = ["NAMES", "ClipTable", "bootstrap_interval"]

#: The measures in the order of the challenge's tables.
NAMES = ("frcorr", "frdist", "frdiv", "frvar", "frdvs", "frsyn")


@dataclass
class ClipTable:
    """Measures of N clips with K draws each. Every figure is a mean over clips of values that depend on no other clip's place."""

    concordance_official: NDArray[np.float64]  # (N,K): best mean CCC with an appropriate listener
    concordance_fixed: NDArray[np.float64]  # (N,K): the same over the channels that vary
    distance: NDArray[np.float64]  # (N,K): least warped distance
    between_draws: NDArray[np.float64]  # (N,)
    over_time: NDArray[np.float64]  # (N,K)
    between_clips: NDArray[np.float64]  # (N,)
    offset_official: NDArray[np.int64]  # (N,K): frames
    offset_fixed: NDArray[np.int64]  # (N,K)

    def __len__(self) -> int:
        return len(self.between_draws)

    @property
    def draws(self) -> int:
        """K."""
        return self.distance.shape[1]

    @classmethod
    def concatenate(cls, parts: list[ClipTable]) -> ClipTable:
        """The table of all clips from those of consecutive parts."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def per_clip(self, protocol: Protocol) -> dict[str, NDArray[np.float64]]:
        """(N,) values of each measure, whose mean over clips is its figure."""
        official = protocol == "official"
        return {
            "frcorr": over_clips(self.concordance_official if official else self.concordance_fixed, protocol),
            "frdist": over_clips(self.distance, protocol),
            "frdiv": self.between_draws,
            "frvar": self.over_time.mean(axis=1),
            "frdvs": self.between_clips,
            "frsyn": self.offset_official[:, 0].astype(np.float64) if official else self.offset_fixed.mean(axis=1),
        }

    def figures(self, protocol: Protocol) -> dict[str, float]:
        """Each measure's figure, the mean over clips."""
        return {name: mean_over_clips(values) for name, values in self.per_clip(protocol).items()}


def bootstrap_interval(values: NDArray[np.float64], *, level: float = 0.95, replicates: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of per-clip values, by drawing clips with replacement.

    The same seed draws the same clips for every array of the same length, so that two files can be compared by the interval of the
    difference of their values. Clips of one conversation are not independent; where many come from few, the interval is too narrow.

    Args:
        values: (N,) values whose mean is the figure.
        level: share of the replicates that the interval holds.
        replicates: number of redrawn means.
        seed: of the drawing.

    Returns:
        Lower and upper end.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(replicates)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
