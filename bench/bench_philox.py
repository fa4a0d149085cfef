"""philox_normal against its definition and against torch's own generator, which makes no promise about places or back ends."""

from __future__ import annotations

import torch

from emc_fast.ops import philox_normal

from .race import Case, reference

SIZES = ([(1, 128), (48000, 128)], [(1, 128), (256, 128), (7500, 128), (48000, 128), (48000, 360)])


def test_philox_normal(race, size) -> None:
    def ours(seed: torch.Tensor) -> torch.Tensor:
        return philox_normal(size, seed)

    seed = torch.tensor([7])

    def gate() -> None:
        got, truth = ours(seed), reference(ours)(seed=seed)
        step = torch.nextafter(truth.abs(), torch.tensor(torch.inf)) - truth.abs()
        assert ((got - truth).abs() <= 4 * step).all(), "normals differ from the definition by more than 4 ulp"

    race(
        Case(
            "philox_normal",
            f"{size[0]} x {size[1]}",
            ours,
            {"seed": seed},
            {"definition": reference(ours), "torch.randn": lambda seed: torch.randn(size)},
            bytes_moved=(4.0 * size[0] * size[1],) * 2,
            gate=gate,
            alike=False,
        )
    )
