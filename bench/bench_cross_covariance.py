"""cross_covariance against its definition in plain PyTorch, eager and compiled."""

from __future__ import annotations

import torch

from emc_fast.ops import cross_covariance
from emc_fast.ops.reference.cross_covariance import cross_covariance as definition

from .race import Case

# (K, J, T, C): the draws and listeners of a clip; all draws of ten clips and as many listeners
SIZES = ([(10, 10, 750, 25)], [(10, 10, 750, 25), (100, 100, 750, 25)])


def test_cross_covariance(race, size) -> None:
    draws, listeners, frames, channels = size
    inputs = {"x": torch.rand(draws, frames, channels), "y": torch.rand(listeners, frames, channels)}

    def gate() -> None:
        truth = definition(**inputs)
        for value, expected in zip(cross_covariance(**inputs), truth, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)

    race(
        Case(
            "cross_covariance",
            " x ".join(map(str, size)),
            cross_covariance,
            inputs,
            {"eager": definition},
            compiled=("eager",),
            gate=gate,
            kind="measure",
        )
    )
