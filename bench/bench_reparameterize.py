"""reparameterize against plain PyTorch with torch's own noise, eager and compiled."""

from __future__ import annotations

import torch

from emc_fast.ops import reparameterize

from .race import Case
from .rivals import reparameterize as plain

SIZES = ([(4, 1, 128), (64, 750, 128)], [(4, 1, 128), (16, 256, 128), (64, 750, 64), (64, 750, 128)])


def case_of(*size: int) -> Case:
    traffic = 4.0 * size[0] * size[1] * size[2]
    seed = torch.tensor([7])
    return Case(
        "reparameterize",
        " x ".join(map(str, size)),
        lambda mu, logvar: reparameterize(mu, logvar, seed=seed),
        {"mu": torch.randn(size), "logvar": torch.randn(size)},
        {"eager": plain},
        differentiate=("mu", "logvar"),
        bytes_moved=(3 * traffic, 8 * traffic),  # two in, one out; backward three in, two out
        alike=False,
    )


def test_reparameterize(race, size, direction) -> None:
    case = case_of(*size)
    case.compiled = ("eager",)
    race(case, direction)
