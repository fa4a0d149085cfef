"""A small evaluation that every test here can share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray


@dataclass
class Example:
    pred: NDArray[np.float32]  # (N,K,T,25)
    target: NDArray[np.float32]  # (N,T,25)
    speaker: NDArray[np.float32]
    appropriate: NDArray[np.bool_]  # (N,N)

    @property
    def arguments(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        return self.pred, self.target, self.speaker, self.appropriate


@pytest.fixture
def example() -> Example:
    """20 clips, more than are looked at together, with binary action units that are partly constant."""
    rng = np.random.default_rng(0)
    n, k, t = 20, 3, 60
    speaker = rng.standard_normal((n, t, 25)).cumsum(axis=1).astype(np.float32) / 5
    target = np.roll(speaker, 5, axis=1) + 0.3 * rng.standard_normal((n, t, 25)).astype(np.float32)
    pred = target[:, None] + 0.5 * rng.standard_normal((n, k, t, 25)).astype(np.float32)
    for signal in (speaker, target, pred):
        signal[..., :15] = signal[..., :15] > 0.5
    return Example(pred.astype(np.float32), target.astype(np.float32), speaker, np.eye(n, dtype=bool) | (rng.random((n, n)) < 0.2))
