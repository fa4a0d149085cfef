"""Where a training step or a generation spends its time: torch's profiler, operator by operator, ours by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..config import EMCConfig
from ..model import EMCModel
from .workloads import generation, streams, training_step


@dataclass(frozen=True)
class Line:
    """One operator in one call of the work: seconds in itself, without what it calls; how often it runs."""

    name: str
    seconds: float
    calls: float

    @property
    def ours(self) -> bool:
        """Whether it is one of this package's operators."""
        return self.name.startswith("emc_fast")


@dataclass(frozen=True)
class Profile:
    """Operators by the time they take themselves, and that of all."""

    lines: list[Line]
    seconds: float

    def share(self, wanted: Callable[[Line], bool]) -> float:
        """Of the operators that are wanted."""
        return sum(line.seconds for line in self.lines if wanted(line)) / self.seconds

    def summary(self, top: int) -> str:
        """The kinds of work in one sentence."""
        products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
        ours, matrix = self.share(lambda line: line.ours), self.share(lambda line: line.name in products)
        rest = 1 - self.share(lambda line: line in self.lines[:top])
        return (
            f"{self.seconds * 1e3:.1f} ms of operators: {ours:.0%} in kernels of emc_fast, {matrix:.0%} in matrix products of torch, "
            f"{1 - ours - matrix:.0%} in all else; {rest:.0%} is not in the table"
        )


def profile(call: Callable[[], Any], repeat: int) -> Profile:
    """Profile `repeat` calls after one that warms up. The profiler's own cost is in the figures: they are shares, not speeds."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(repeat):
            call()
    events = [event for event in recorded.key_averages() if event.self_cpu_time_total > 0]
    lines = [Line(event.key, event.self_cpu_time_total * 1e-6 / repeat, event.count / repeat) for event in events]
    lines.sort(key=lambda line: -line.seconds)
    return Profile(lines, sum(line.seconds for line in lines))


def profile_model(*, training: bool, backbone: str, batch: int, frames: int, width: int, threads: int, repeat: int = 5) -> Profile:
    """Profile a training step (`training`) or the generation of K = 10 reactions of an EMC model on random features.

    Args:
        training: a step with targets, or a generation.
        backbone: as `EMCConfig` takes it.
        batch, frames, width: clips B, frames T, width d.
        threads: of torch and of the kernels, for this call alone.
        repeat: calls that are averaged.
    """
    torch.manual_seed(0)
    model = EMCModel(EMCConfig(d_model=width, backbone=backbone)).train(training)
    inputs = streams(batch, frames, targets=training)
    work = training_step(model) if training else generation(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return profile(lambda: work(**inputs), repeat)
    finally:
        torch.set_num_threads(before)
