"""Where a training step or a generation spends its time, by operators and by kinds of work, beside the same work on plain PyTorch."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from .. import ops
from ..config import EMCConfig
from ..model import EMCModel
from .races import OURS
from .workloads import generation, streams, training_step

Context = Callable[[], AbstractContextManager[Any]]

GROUPS = ("attention", "noise", "KL", "products", "optimizer", "other")
"""Kinds of work, as `group_of` tells them apart."""
OF_OPERATORS = {
    "attention": "attention",
    "attention_block": "attention",
    "attention_sublayer": "attention",
    "emotion_attention": "attention",
    "dropout": "noise",
    "philox_normal": "noise",
    "philox_uniform": "noise",
    "reparameterize": "noise",
    "fusion_kl": "KL",
    "fusion_kl_categorical": "KL",
}
"""The group of all that one of the package's operators does, by whatever means; a block's projections and its norm are attention's."""
PRODUCTS = frozenset(
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "convolution", "_convolution", "mkldnn_convolution")
)
SCOPE, BACKWARD, OPTIMIZER = "operator of emc_fast: ", "autograd::engine::evaluate_function: ", "Optimizer."


@dataclass(frozen=True)
class Line:
    """One operator in one call of the work: seconds in itself, without what it calls; how often it runs; which kind of work it is for."""

    name: str
    seconds: float
    calls: float
    group: str = "other"

    @property
    def ours(self) -> bool:
        """Whether it is one of this package's operators."""
        return self.name.startswith("emc_fast")


@dataclass(frozen=True)
class Profile:
    """Operators by the time they take themselves, and that of all; `wall` is what a call takes without the profiler, 0 if not measured."""

    lines: list[Line]
    seconds: float
    wall: float = 0.0

    def share(self, wanted: Callable[[Line], bool]) -> float:
        """Of the operators that are wanted."""
        return sum(line.seconds for line in self.lines if wanted(line)) / self.seconds

    def groups(self) -> dict[str, float]:
        """Seconds of each of `GROUPS`."""
        return {group: sum(line.seconds for line in self.lines if line.group == group) for group in GROUPS}

    def summary(self, top: int) -> str:
        """The kinds of work in one sentence."""
        ours, matrix = self.share(lambda line: line.ours), self.share(lambda line: not line.ours and line.name in PRODUCTS)
        rest = 1 - self.share(lambda line: line in self.lines[:top])
        return (
            f"{self.seconds * 1e3:.1f} ms of operators: {ours:.0%} in kernels of emc_fast, {matrix:.0%} in matrix products of torch, "
            f"{1 - ours - matrix:.0%} in all else; {rest:.0%} is not in the table"
        )

    def largest(self, count: int = 3) -> str:
        """The operators that take most, in one sentence."""
        named = [f"{line.name} ({line.group}) {line.seconds / self.seconds:.0%}" for line in self.lines[:count]]
        return f"The {len(named)} largest costs that are left: {', '.join(named)}."


@contextmanager
def operators_named() -> Iterator[None]:
    """Have the profiler see which operator of `emc_fast.ops` is at work, whatever stands in its place."""

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(SCOPE + name):
                return function(*args, **kwargs)

        return call

    before = {name: getattr(ops, name) for name in OF_OPERATORS if hasattr(ops, name)}
    vars(ops).update({name: named(name, function) for name, function in before.items()})
    try:
        yield
    finally:
        vars(ops).update(before)


def group_of(name: str) -> str:
    """The kind of work of an operator that runs outside of any of ours, by its name."""
    if name.startswith("emc_fast::"):
        fits = [op for op in OF_OPERATORS if name.removeprefix("emc_fast::").startswith(op)]
        return OF_OPERATORS[max(fits, key=len)] if fits else "other"
    return "products" if name in PRODUCTS else "optimizer" if name.startswith(OPTIMIZER) else "other"


def grouped(events: Iterable[Any]) -> list[tuple[Any, str]]:
    """The profiler's events, each with its kind of work.

    An operator belongs to that of ours in which it was called; in a backward pass, to that in which its step of the graph was made, which
    has the same number. What is in neither, nor in the optimizer, goes by its name.
    """
    known: dict[int, str] = {}  # by event, of those in an operator of ours or in the optimizer
    made_in: dict[int, str] = {}  # by number of a step of the graph
    found = []
    for event in sorted(events, key=lambda event: event.time_range.start):
        group = known.get(id(event.cpu_parent), "")
        if event.name.startswith(BACKWARD):
            group = group or made_in.get(event.sequence_nr, "")
        elif event.name.startswith(SCOPE):
            group = group or OF_OPERATORS[event.name.removeprefix(SCOPE)]
        elif event.name.startswith(OPTIMIZER):
            group = group or "optimizer"
        elif event.sequence_nr >= 0:
            made_in[event.sequence_nr] = group  # several may see a number before it is taken: the last one takes it
        if group:
            known[id(event)] = group
        found.append((event, group or group_of(event.name)))
    return found


def profile(call: Callable[[], Any], repeat: int) -> Profile:
    """Profile `repeat` calls after one that warms up. The profiler's own cost is in the figures: they are shares, not speeds."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(repeat):
            call()
    sums: dict[tuple[str, str], list[float]] = {}
    for event, group in grouped(recorded.events() or ()):
        if event.self_cpu_time_total > 0 and not event.name.startswith(SCOPE):  # a scope's own time is that of Python
            entry = sums.setdefault((event.name, group), [0.0, 0.0])
            entry[0] += event.self_cpu_time_total * 1e-6 / repeat
            entry[1] += 1 / repeat
    lines = [Line(name, seconds, calls, group) for (name, group), (seconds, calls) in sums.items()]
    lines.sort(key=lambda line: -line.seconds)
    return Profile(lines, sum(line.seconds for line in lines))


def profile_model(
    *,
    training: bool,
    backbone: str,
    batch: int,
    frames: int,
    width: int,
    threads: int,
    repeat: int = 5,
    plain: Mapping[str, Context] | None = None,
) -> dict[str, Profile]:
    """Profile a training step (`training`) or the generation of K = 10 reactions of an EMC model on random features.

    Args:
        training: a step with targets, or a generation.
        backbone: as `EMCConfig` takes it.
        batch, frames, width: clips B, frames T, width d.
        threads: of torch and of the kernels, for this call alone.
        repeat: calls that are averaged.
        plain: contexts within which the model runs on plain PyTorch, by name: the same work as it was before.

    Returns:
        A profile for each of `plain`, in order, and at last `OURS`.
    """
    torch.manual_seed(0)
    model = EMCModel(EMCConfig(d_model=width, backbone=backbone)).train(training)
    inputs = streams(batch, frames, targets=training)
    contexts: dict[str, Context] = {**(plain or {}), OURS: nullcontext}
    works = {name: training_step(copy.deepcopy(model)) if training else generation(model) for name in contexts}
    found: dict[str, Profile] = {}
    walls: dict[str, list[float]] = {name: [] for name in contexts}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, context in contexts.items():
            with context(), operators_named():
                found[name] = profile(lambda work=works[name]: work(**inputs), repeat)  # type: ignore[misc]
        for _ in range(repeat):
            for name, context in contexts.items():
                with context():
                    begin = time.perf_counter()
                    works[name](**inputs)
                    walls[name].append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return {name: Profile(one.lines, one.seconds, statistics.median(walls[name])) for name, one in found.items()}
