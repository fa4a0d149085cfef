"""The emulator that runs the CUDA kernels on the CPU: it computes what CUDA would, and it sees the faults that it is there to see."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from cuda_emulator import build

from emc_fast.ops import dropout, philox_normal


@pytest.fixture(params=build.ORDERS)
def emulator(request: pytest.FixtureRequest) -> ctypes.CDLL:
    library = build.load()
    library.emc_emulator_sum.restype = ctypes.c_double
    library.emc_emulator_copied_sum.restype = ctypes.c_double
    for name in ("deadlock", "divergence", "partial_mask", "odd_block", "unwaited", "misaligned_copy"):
        getattr(library, f"emc_emulator_{name}").restype = ctypes.c_char_p
    library.emc_emulator_order(build.ORDERS.index(request.param))
    return library


def test_barriers_and_warp_operations(emulator: ctypes.CDLL) -> None:
    assert emulator.emc_emulator_warp_operations() == 1
    for threads in (32, 96, 1024):
        assert emulator.emc_emulator_sum(threads, 1) == threads * (threads - 1) / 2


def test_a_missing_barrier_shows(emulator: ctypes.CDLL) -> None:
    """Whatever the order, a thread reads what another has not yet written: shared memory is NaN before."""
    assert math.isnan(emulator.emc_emulator_sum(1024, 0))


@pytest.mark.parametrize("threads", [32, 256])
def test_a_copy_arrives_when_it_is_waited_for(emulator: ctypes.CDLL, threads: int) -> None:
    """Not before, in none of the orders; a group that is not closed, or a thread that has not waited, has nothing to show."""
    expected = sum(i for i in range(threads) if i % 4)
    emulator.emc_emulator_capability(90)
    for commit, left in ((1, 0), (1, 1), (0, 0)):
        assert emulator.emc_emulator_copied_sum(threads, commit, left, 1) == expected
    for commit, left, barrier in ((1, 2, 1), (0, 1, 1), (1, 0, 0)):  # no wait; one for a group that the copy is not in; no barrier
        assert math.isnan(emulator.emc_emulator_copied_sum(threads, commit, left, barrier))
    emulator.emc_emulator_capability(75)  # by way of registers: it needs the barrier alone
    assert emulator.emc_emulator_copied_sum(threads, 1, 2, 1) == expected


def test_faults_are_named(emulator: ctypes.CDLL) -> None:
    assert b"deadlock" in emulator.emc_emulator_deadlock()
    assert b"lanes of a warp wait in different operations" in emulator.emc_emulator_divergence()
    assert b"full warp masks only" in emulator.emc_emulator_partial_mask()
    assert b"whole warps" in emulator.emc_emulator_odd_block()
    emulator.emc_emulator_capability(90)
    assert b"ended before its copies" in emulator.emc_emulator_unwaited()
    assert b"not aligned to its size" in emulator.emc_emulator_misaligned_copy()


def test_it_takes_the_place_of_the_cpu_and_leaves_it() -> None:
    launches = build.load().emc_emulator_launches
    x = torch.ones(4, 300)
    before, count = philox_normal((4, 300), 1), launches()
    with build.enabled("forward"):
        philox_normal((4, 300), 1)
        kept = dropout(x, 0.5, seed=1)
    assert launches() == count + 2
    assert torch.equal(philox_normal((4, 300), 1), before)
    assert torch.equal(dropout(x, 0.5, seed=1), kept)
    assert launches() == count + 2
