"""The harness itself: what it measures of memory, who runs in a rival's place, and that the compiler is stopped in time."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
import torch

from emc_fast.nn import EmotionAwareAttention
from emc_fast.ops import use_backend

from .costs import CLEAR, dispatched, peak_bytes
from .limits import exponentials
from .race import Case, OutOfTime, Settings, deadline, run_race
from .rivals import PLAIN

MIB = 2**20


@pytest.mark.parametrize("mib", [4, 64])
def test_peak_memory_is_what_was_allocated(mib: int) -> None:
    if not CLEAR.exists():
        pytest.skip("needs Linux")

    def call() -> torch.Tensor:
        kept = torch.ones(mib * MIB // 8)
        return kept + torch.ones(mib * MIB // 8)[0]  # half stays, as much again was there for a while, and the sum

    call()
    peak = peak_bytes(call)
    assert peak is not None
    assert 1.4 * mib * MIB <= peak <= 1.6 * mib * MIB + 2 * MIB


def test_operators_are_counted() -> None:
    x = torch.ones(4, 4)
    assert dispatched(lambda: (x.t() @ x).relu()) == 2


def test_the_compiler_is_stopped_in_time() -> None:
    begin = time.monotonic()

    def compiler() -> None:
        with deadline(0.2):
            while time.monotonic() < begin + 10:
                with suppress(Exception):  # it goes on without what failed
                    time.sleep(1)

    with pytest.raises(OutOfTime):
        compiler()
    assert time.monotonic() < begin + 5
    with deadline(0.2):
        pass
    time.sleep(0.3)  # and not afterwards


def test_rivals_run_on_none_of_our_kernels() -> None:
    module = EmotionAwareAttention(32, 2).eval()
    x = torch.randn(1, 8, 32)

    def ran() -> bool:
        with torch.profiler.profile() as profile, torch.no_grad():
            module(x, x)
        return any("emc_fast" in event.key for event in profile.key_averages())

    for context in PLAIN.values():
        with context(), use_backend("cpu"):
            assert not ran()
    assert ran(), "ours again, once the rivals are done"


def test_both_exponentials_are_exponentials() -> None:
    for ours in (False, True):
        pair = exponentials(ours=ours)
        if pair is None:
            pytest.skip("needs a C++ compiler")
        call, amount = pair
        call()
        assert amount > 0


class Rounds:
    """Enough of pytest-benchmark's fixture for a race that goes into no file."""

    disabled = False

    def __init__(self) -> None:
        self.group, self.extra_info = "", {}

    def pedantic(self, function, setup, rounds, warmup_rounds) -> None:
        for _ in range(rounds):
            setup()
            function()


def test_a_share_of_the_work_is_put_down_for_all_of_it() -> None:
    case = Case(
        "op",
        "1",
        lambda: time.sleep(2e-3),
        {},
        {"peer": lambda: time.sleep(2e-3)},
        gate=lambda: None,
        alike=False,
        shares={"peer": 0.1},
        missing={"other": "is not installed"},
        kind="measure",
    )
    race = run_race(case, "forward", Settings(0.1, False, 1.0, 1), Rounds())
    assert 7 < race.ratio("peer") < 14
    assert all(7 < value < 14 for value in race.quartiles["peer"])
    assert race.unmeasured == {"other": "is not installed"}


def test_a_compiler_that_loses_the_alarm_is_stopped_by_the_next() -> None:
    begin = time.monotonic()

    def compiler() -> None:
        with deadline(0.2):
            with suppress(OutOfTime):  # as in a finalizer
                time.sleep(10)
            time.sleep(10)

    with pytest.raises(OutOfTime):
        compiler()
    assert time.monotonic() < begin + 5
