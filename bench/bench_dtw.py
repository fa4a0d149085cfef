"""dtw against tslearn, dtaidistance's program in C, and its definition.

A rival warps four pairs at the most, and its time is put down for all. Peers warp a pair at a time on one thread, so they are given their
pairs ready: float64, dense.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emc_fast.ops import dtw
from emc_fast.ops.reference.dtw import dtw as definition

from .peers import warpings
from .race import Case

# (sequences on either side, each warped to each; frames; channels). Lanes of a vector are pairs: a pair by itself fills one of sixteen.
SIZES = ([(10, 750, 15)], [(1, 750, 25), (10, 750, 2), (10, 750, 8), (10, 750, 15), (30, 256, 25)])


def case_of(count: int, frames: int, channels: int) -> Case:
    x, y = (torch.rand(count, frames, channels) for _ in range(2))
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    some = pairs[:4]
    dense = [(x[n].double().numpy(), y[m].double().numpy()) for n, m in some.tolist()]
    here, missing = warpings()

    def by(warping):
        return lambda **_: [warping(a, b) for a, b in dense]

    rivals = {name: by(warping) for name, warping in here.items()}
    rivals["eager"] = lambda x, y: definition(x, y, some)

    def gate() -> None:
        ours = dtw(x, y, pairs)
        torch.testing.assert_close(ours[: len(some)], definition(x.double(), y.double(), some), rtol=3e-7, atol=1e-9)
        for name, rival in rivals.items():
            np.testing.assert_allclose(rival(x=x, y=y), ours[: len(some)], rtol=1e-6, atol=1e-7, err_msg=name)

    return Case(
        "dtw",
        f"{count} x {count} pairs of {frames} x {channels}",
        lambda x, y: dtw(x, y, pairs),
        {"x": x, "y": y},
        rivals,
        gate=gate,
        alike=False,  # they warp fewer pairs; the gate has compared these
        shares=dict.fromkeys(rivals, len(some) / len(pairs)),
        missing=missing,
        kind="measure",
    )


def test_dtw(race, size) -> None:
    race(case_of(*size))


def test_a_peer_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from . import peers

    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    case = case_of(1, 8, 2)
    assert set(case.rivals) == {"eager"}
    assert set(case.missing) == {"tslearn", "dtaidistance"}
    assert all("pip install" in reason for reason in case.missing.values())
