"""One race: is it right, then how fast beside its rivals and beside what the machine can do, all in turns.

Times on a shared machine drift by tens of percent within a minute. So every round runs everybody once, in an order that rotates, and the
ratio of medians over the rounds is the claim. What the machine reaches in the same rounds (a copy of as many bytes, a matrix product) says
how much is left.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from emc_fast import __version__
from emc_fast.ops import use_backend
from emc_fast.ops._backend import OPERATORS, choose
from emc_fast.ops._library import native
from tests.ops import parity

Function = Callable[..., Any]


@dataclass
class Case:
    """What is raced: `function` and `rivals` all take `inputs` by name.

    `bytes_moved` and `flops` are what forward, and forward with backward, must move or compute at the least; the matching yardstick is
    timed along. `gate` replaces the usual error rule (tests/ops/parity.py) where that does not fit.
    """

    operator: str
    size: str
    function: Function
    inputs: Mapping[str, Tensor]
    rivals: Mapping[str, Function]
    compiled: tuple[str, ...] = ()
    differentiate: tuple[str, ...] = ()
    bytes_moved: tuple[float, float] | None = None
    flops: tuple[float, float] | None = None
    gate: Callable[[], None] | None = None


@dataclass(frozen=True)
class Settings:
    budget: float
    compile: bool
    threads: int


@dataclass
class Result:
    operator: str
    size: str
    direction: str
    threads: int
    backend: str
    seconds: dict[str, float] = field(default_factory=dict)  # medians; "emc_fast" is ours
    rate: float = 0.0
    yardstick: float = 0.0
    unit: str = ""

    def ratio(self, rival: str) -> float:
        return self.seconds[rival] / self.seconds["emc_fast"]


def check(case: Case, direction: str) -> None:
    """Refuse to time what is not right: ours against the float64 definition, by the rule of the tests, on the very inputs."""
    if case.gate is not None:
        case.gate()
        return
    floats = [x for x in case.inputs.values() if x.is_floating_point()]
    wanted = case.differentiate if direction != "forward" else ()
    parity.assert_parity(case.function, case.inputs, floats[0].dtype, parity.Target("auto", "cpu"), differentiate=wanted)


def bound(function: Function, case: Case, direction: str) -> Callable[[], Any]:
    """The function with its inputs: inference, or a forward pass and the gradients of all that is differentiated."""
    if direction == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(**case.inputs)

        return forward

    leaves = {n: x.detach().requires_grad_(n in case.differentiate) for n, x in case.inputs.items()}
    wanted = [leaves[n] for n in case.differentiate]
    shapes = parity.outputs_of(function(**leaves))
    grads = [torch.ones_like(out) for out in shapes]

    def both() -> Any:
        return torch.autograd.grad(parity.outputs_of(function(**leaves)), wanted, grads)

    return both


def copy_of(amount: float) -> Callable[[], Any]:
    source = torch.zeros(max(int(amount) // 8, 1))  # a copy reads and writes: half of the bytes each, four to an element
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def matrix_product(flops: float) -> tuple[Callable[[], Any], float]:
    n = min(1024, max(64, 2 ** round(math.log2((flops / 2) ** (1 / 3)))))
    a, b = torch.randn(n, n), torch.randn(n, n)
    return lambda: torch.mm(a, b), 2.0 * n**3


def run_race(case: Case, direction: str, settings: Settings, benchmark: Any) -> Result:
    check(case, direction)
    runners = {"emc_fast": bound(case.function, case, direction)}
    for name, rival in case.rivals.items():
        runners[name] = bound(rival, case, direction)
        if settings.compile and name in case.compiled:
            torch._dynamo.reset()
            runners[f"compile({name})"] = bound(torch.compile(rival, dynamic=False), case, direction)
    which = 0 if direction == "forward" else 1
    work = case.bytes_moved[which] if case.bytes_moved else case.flops[which] if case.flops else 0.0
    done = work
    if case.bytes_moved:
        runners["copy"] = copy_of(work)
    elif case.flops:
        runners["matrix product"], done = matrix_product(work)

    calls = {name: calls_per_round(run) for name, run in runners.items()}
    slowest = max(calls[name][1] for name in runners) * len(runners)
    rounds = max(3 if slowest > 1.0 else 5, min(200, int(settings.budget / slowest)))
    times: dict[str, list[float]] = {name: [] for name in runners if name != "emc_fast"}
    order = list(times)

    def rivals_first() -> None:
        for name in order:
            count = calls[name][0]
            begin = time.perf_counter()
            for _ in range(count):
                runners[name]()
            times[name].append((time.perf_counter() - begin) / count)
        order.append(order.pop(0))

    count, mine = calls["emc_fast"][0], runners["emc_fast"]

    def ours() -> None:
        for _ in range(count):
            mine()

    benchmark.group = f"{case.operator} {direction}"
    benchmark.pedantic(ours, setup=rivals_first, rounds=rounds, warmup_rounds=0)
    if benchmark.disabled:
        return Result(case.operator, case.size, direction, settings.threads, "", {"emc_fast": math.nan})
    result = Result(case.operator, case.size, direction, settings.threads, serving(case))
    result.seconds = {"emc_fast": statistics.median(benchmark.stats.stats.data) / count}
    result.seconds |= {name: statistics.median(values) for name, values in times.items()}
    if work:
        scale, result.unit = (1e-9, "GB/s") if case.bytes_moved else (1e-9, "GFLOP/s")
        result.rate = work * scale / result.seconds["emc_fast"]
        result.yardstick = done * scale / result.seconds.pop("copy" if case.bytes_moved else "matrix product")
    benchmark.extra_info |= {
        "operator": case.operator,
        "size": case.size,
        "direction": direction,
        "threads": settings.threads,
        "backend": result.backend,
        "calls_per_round": count,
        "median_us": {name: value * 1e6 for name, value in result.seconds.items()},
        "ratio": {name: result.ratio(name) for name in result.seconds if name != "emc_fast"},
        "rate": result.rate,
        "yardstick": result.yardstick,
        "unit": result.unit,
        "versions": {"emc_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    return result


def calls_per_round(run: Callable[[], Any], least: float = 2e-3) -> tuple[int, float]:
    """How often to call for a round of `least` seconds at least, and how long that takes; warms up on the way."""
    once = math.inf
    for _ in range(4):
        begin = time.perf_counter()
        run()
        once = max(min(once, time.perf_counter() - begin), 1e-7)
        if once > 0.5:  # the slow need no second try, and would take long over it
            break
    count = max(1, math.ceil(least / once))
    return count, count * once


def serving(case: Case) -> str:
    """The back end that `auto` takes, with the instruction set of the CPU kernels."""
    if case.operator not in OPERATORS:
        return ""
    first = next(x for x in case.inputs.values() if x.is_floating_point())
    backend = choose(case.operator, first.device, first.dtype)
    return f"{backend} {native().isa}" if backend == "cpu" else backend


def reference(function: Function) -> Function:
    """The public function, served by the definition."""

    def eager(**inputs: Any) -> Any:
        with use_backend("reference"):
            return function(**inputs)

    return eager


def table(results: list[Result]) -> list[str]:
    lines = []
    for r in results:
        rivals = [f"{name} {r.ratio(name):.2f}x" for name in r.seconds if name != "emc_fast"]
        rate = f"{r.rate:.3g} {r.unit} of {r.yardstick:.3g}" if r.unit else ""
        lines.append(
            f"{r.operator:21} {r.size:22} {r.direction:17} {r.threads} thread{'s' * (r.threads > 1):1} {r.backend:8} "
            f"{r.seconds['emc_fast'] * 1e6:10.1f} us  {rate:28} {', '.join(rivals)}"
        )
    return lines
