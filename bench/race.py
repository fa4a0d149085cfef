"""One race: is it right, then how fast beside its rivals and beside what the machine can do, all in turns.

Times on a shared machine drift by tens of percent within a minute. So every round runs everybody once, in an order that rotates, and the
ratio of medians over the rounds is the claim. What the machine reaches in the same rounds (limits.py) says how much is left. Races run on
the device of their inputs: on a GPU its events are the clock.
"""

from __future__ import annotations

import copy
import math
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emc_fast.ops import use_backend
from emc_fast.ops._backend import OPERATORS, choose
from emc_fast.ops._library import native
from emc_fast.reporting import OURS, Race
from emc_fast.reporting.page import limit, memory, ratio
from emc_fast.reporting.page import ours as in_words
from tests.ops import parity

from .costs import Amounts, dispatched, peak_bytes
from .limits import limits_for, seconds

Function = Callable[..., Any]


@dataclass
class Case:
    """What is raced: `function` and `rivals` all take `inputs` by name.

    `bytes_moved`, `flops` and `exponentials` are what forward, and forward with backward, must move or compute at the least; the
    matching limits of the machine are timed along. `differentiate` names inputs, `parameters` are leaves that are differentiated
    besides. `gate` replaces the usual error rule (tests/ops/parity.py) where that does not fit. Rivals run within their `contexts`;
    those in `compiled` run under `torch.compile` as well. Where rivals are `alike` (they draw nothing), they must give what ours gives.
    `shape` and `series` are those of `Race`; `memory` asks for everybody's peak. `kind` is what is recorded as the direction of what is
    neither a forward pass nor one with its backward pass. A rival in `shares` does only that share of the work, and its time is put down
    for all of it. `missing` says of rivals that are not here why. Rivals in `optional` may be unable to run, and are named with the reason.
    `others` are back ends of ours that run beside the one that `auto` takes. With `graph`, everybody's call is one CUDA graph.
    """

    operator: str
    size: str
    function: Function
    inputs: Mapping[str, Tensor]
    rivals: Mapping[str, Function]
    compiled: tuple[str, ...] = ()
    contexts: Mapping[str, Callable[[], AbstractContextManager[Any]]] = field(default_factory=dict)
    differentiate: tuple[str, ...] = ()
    parameters: tuple[Tensor, ...] = ()
    bytes_moved: Amounts | None = None
    flops: Amounts | None = None
    exponentials: Amounts | None = None
    gate: Callable[[], None] | None = None
    alike: bool = True
    shape: Mapping[str, int] = field(default_factory=dict)
    series: str = ""
    memory: bool = False
    kind: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    graph: bool = False
    compile_mode: str = "default"

    @property
    def device(self) -> str:
        return next((x.device.type for x in self.inputs.values()), "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating input; noise has none but its seed."""
        return next((x.dtype for x in self.inputs.values() if x.is_floating_point()), torch.float32)

    def work(self, direction: str) -> dict[str, float]:
        which = 0 if direction == "forward" else 1
        amounts = {"bytes": self.bytes_moved, "flops": self.flops, "exponentials": self.exponentials}
        return {name: amount[which] for name, amount in amounts.items() if amount}


@dataclass(frozen=True)
class Settings:
    budget: float
    compile: bool
    compile_within: float
    threads: int


@dataclass
class Contestant:
    """A call, the context that it runs in, and the device whose clock times it."""

    run: Callable[[], Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    device: str = "cpu"

    def __call__(self) -> Any:
        with self.context():
            return self.run()

    def seconds(self, count: int) -> float:
        """Time of a call, over so many in a row."""
        with self.context():
            return seconds(self.run, count, self.device)

    def captured(self) -> Contestant:
        """The call as a CUDA graph, after what it does only once has been done; the context is left with the capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with self.context():
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run()
        return Contestant(graph.replay, device=self.device)


class OutOfTime(BaseException):
    """Not an Exception: the compiler catches those and goes on without what failed."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Stop the block by `OutOfTime` once it took so long; again each second, for one that is raised in a finalizer is lost."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(case: Case, direction: str) -> None:
    """Refuse to time what is not right: ours against the float64 definition, by the rule of the tests, on the very inputs."""
    if case.gate is not None:
        case.gate()
        return
    wanted = case.differentiate if direction != "forward" else ()
    parity.assert_parity(case.function, case.inputs, case.dtype, parity.Target("auto", case.device), differentiate=wanted)


def module_gate(outcome: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]], net: Any, inputs: Mapping[str, Tensor]) -> None:
    """The error rule of the tests for all that `outcome` gives: the float64 module on the definitions is the truth."""
    inputs = dict(inputs)
    with use_backend("reference"):
        truth = outcome(copy.deepcopy(net).double(), {n: x.double() for n, x in inputs.items()})
        eager = outcome(copy.deepcopy(net), inputs)
    got = outcome(copy.deepcopy(net), inputs)
    for name in truth:
        parity.assert_close(name, got[name], eager[name], truth[name])


def bound(function: Function, case: Case, direction: str) -> Callable[[], Any]:
    """The function with its inputs: inference, or a forward pass and the gradients of all that is differentiated."""
    if direction == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(**case.inputs)

        return forward

    leaves = {n: x.detach().requires_grad_(n in case.differentiate) for n, x in case.inputs.items()}
    wanted = [*(leaves[n] for n in case.differentiate), *case.parameters]
    grads: list[Tensor] = []

    def both() -> Any:
        outs = parity.outputs_of(function(**leaves))
        if not grads:  # not ones: LayerNorm's gradient of a plain sum is nothing but rounding
            grads.extend(torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out) for out in outs)
        return torch.autograd.grad(outs, wanted, grads)

    return both


def contestants(case: Case, direction: str, settings: Settings, race: Race) -> dict[str, Contestant]:
    """Everybody, warmed up; who cannot run is named in the race with the reason."""
    found = {OURS: Contestant(bound(case.function, case, direction), device=case.device)}
    for backend in case.others:
        context = partial(use_backend, backend)
        found[backend] = Contestant(bound(case.function, case, direction), context, case.device)
    for name, rival in case.rivals.items():
        found[name] = Contestant(bound(rival, case, direction), case.contexts.get(name, nullcontext), case.device)
    for name, contestant in list(found.items()):
        try:
            race.dispatched[name] = dispatched(contestant)  # and warmed up by it
        except Exception as error:
            if name not in case.optional and not isinstance(error, torch.OutOfMemoryError):
                raise
            race.unmeasured[name] = f"{type(error).__name__}, {str(error).partition('.')[0].splitlines()[0][:100]}"
            del found[name]
    if case.alike and direction == "forward":
        near = 1e-3 if case.dtype == torch.float32 else 4 * torch.finfo(case.dtype).eps
        ours = parity.outputs_of(found[OURS]())
        for name in found.keys() & case.rivals.keys():
            for a, b in zip(ours, parity.outputs_of(found[name]()), strict=True):
                torch.testing.assert_close(b, a, rtol=near, atol=near * float(a.abs().max()), msg=lambda m, n=name: f"rival {n}: {m}")
    for name in case.compiled if settings.compile else ():
        torch._dynamo.reset()
        compiled = torch.compile(case.rivals[name], dynamic=False, mode=case.compile_mode)
        contestant = Contestant(bound(compiled, case, direction), case.contexts.get(name, nullcontext), case.device)
        try:
            with deadline(settings.compile_within):
                contestant()
        except OutOfTime:
            race.unmeasured[f"compile({name})"] = f"torch.compile did not finish in {settings.compile_within:g} s"
        except Exception as error:
            race.unmeasured[f"compile({name})"] = f"torch.compile failed with {type(error).__name__}"
        else:
            found[f"compile({name})"] = contestant
    if case.graph and case.device == "cuda":
        return {name: contestant.captured() for name, contestant in found.items()}
    return found


Turns = Callable[[Callable[[], None], Callable[[], None], int], None]


def one_after_the_other(ours: Callable[[], None], rivals_first: Callable[[], None], rounds: int) -> None:
    for _ in range(rounds):
        rivals_first()
        ours()


def under(benchmark: Any, group: str) -> Turns:
    """Rounds of ours as pytest-benchmark counts them."""

    def turns(ours: Callable[[], None], rivals_first: Callable[[], None], rounds: int) -> None:
        benchmark.group = group
        benchmark.pedantic(ours, setup=rivals_first, rounds=rounds, warmup_rounds=0)

    return turns


def in_turns(
    runners: Mapping[str, Contestant],
    first: str,
    budget: float,
    shares: Mapping[str, float] | None = None,
    turns: Turns = one_after_the_other,
) -> tuple[dict[str, list[float]], int]:
    """Seconds of a call of everybody, a round for each entry, and the calls of `first` in a round."""
    calls = {name: calls_per_round(runner) for name, runner in runners.items()}
    total = sum(took for _, took in calls.values())
    rounds = max(3 if total > 1.0 else 5, min(200, int(budget / total)))
    times: dict[str, list[float]] = {name: [] for name in runners}
    order = [name for name in runners if name != first]

    def rivals_first() -> None:
        for name in order:
            times[name].append(runners[name].seconds(calls[name][0]) / (shares or {}).get(name, 1.0))
        if order:
            order.append(order.pop(0))

    def ours() -> None:
        times[first].append(runners[first].seconds(calls[first][0]))

    turns(ours, rivals_first, rounds)
    return times, calls[first][0]


def run_race(case: Case, direction: str, settings: Settings, benchmark: Any = None) -> Race:
    """The race, timed in rounds of pytest-benchmark's fixture where there is one; without times where that is disabled."""
    check(case, direction)
    race = Race(case.operator, case.size, case.kind or direction, settings.threads, serving(case))
    race.shape, race.series, race.work = dict(case.shape), case.series, case.work(direction)
    race.dtype = str(case.dtype).removeprefix("torch.")
    race.unmeasured = dict(case.missing)
    runners = contestants(case, direction, settings, race)
    if case.memory:
        peaks = {name: peak_bytes(runner, case.device) for name, runner in runners.items()}
        race.peak_bytes = {name: peak for name, peak in peaks.items() if peak is not None}
    yardsticks = limits_for(race.work, settings.threads, case.device, case.dtype)
    runners |= {name: Contestant(call, device=case.device) for name, (call, _) in yardsticks.items()}

    turns = one_after_the_other if benchmark is None else under(benchmark, f"{race.operator} {race.direction}")
    times, race.calls_per_round = in_turns(runners, OURS, settings.budget, case.shares, turns)
    if benchmark is not None and benchmark.disabled:
        return race
    race.rounds = len(times[OURS])
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, (_, factor) in yardsticks.items():
        spent = medians.pop(name) * factor
        kind = name.removesuffix(" of the kernels")
        race.limits[kind] = min(spent, race.limits.get(kind, math.inf))
    race.others = {name: medians.pop(name) for name in case.others if name in medians}
    race.seconds = medians
    for name in race.rivals:
        paired = [theirs / ours for theirs, ours in zip(times[name], times[OURS], strict=True)]
        low, _, high = statistics.quantiles(paired, n=4, method="inclusive")
        race.quartiles[name] = [low, high]
    if benchmark is not None:
        benchmark.extra_info |= race.extra_info()
    return race


def calls_per_round(runner: Contestant, least: float = 2e-3) -> tuple[int, float]:
    """How often to call for a round of `least` seconds at least, and how long that takes; warms up on the way."""
    once = math.inf
    for _ in range(4):
        once = max(min(once, runner.seconds(1)), 1e-7)
        if once > 0.5:  # the slow need no second try, and would take long over it
            break
    count = max(1, math.ceil(least / once))
    return count, count * once


def serving(case: Case) -> str:
    """The back end that `auto` takes, with the instruction set of the CPU kernels."""
    if case.operator not in OPERATORS:
        return ""
    backend = choose(case.operator, torch.device(case.device), case.dtype)
    return f"{backend} {native().isa}" if backend == "cpu" else backend


def reference(function: Function) -> Function:
    """The public function, served by the definition."""

    def eager(**inputs: Any) -> Any:
        with use_backend("reference"):
            return function(**inputs)

    return eager


def table(races: list[Race]) -> list[str]:
    lines = []
    for race in races:
        rivals = [f"{name} {ratio(race.ratio(name))}" for name in race.rivals]
        rivals += [f"{name}: {reason}" for name, reason in race.unmeasured.items()]
        parts = [in_words(race), ", ".join(rivals), limit(race), memory(race) and f"peak {memory(race)}"]
        threads = f"{race.threads} thread{'s' * (race.threads > 1)}"
        head = f"{race.operator:21} {race.size:22} {race.direction:17} {threads:9} {race.backend:8} "
        lines.append(head + "; ".join(filter(None, parts)))
    return lines
