"""How long each model of the table is trained: as published, or as long as a budget of minutes allows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..backbones import backbone_class
from ..data import default_cache_dir
from ..errors import DataError
from ..training import TrainConfig, demo_config, epoch_seconds, recipe
from ..training.checkpoint import read_json, write_json
from ..training.progress import clock
from .paper import BACKBONES, VARIANTS

TRAINING_SHARE = 0.75
"""Of a budget: what is spent on training; the rest is for features, generation and measuring."""
LEAST_EPOCHS = 2


@dataclass(frozen=True)
class Plan:
    """What is trained: the settings of each (backbone, variant). Kept as plan.json, so that the table goes on as it was begun."""

    size: str
    """``published`` or ``small``."""
    budget: float | None
    """Minutes on the machine that made the plan, or None."""
    runs: dict[tuple[str, str], TrainConfig]

    def folder(self, backbone: str, variant: str) -> Path:
        """Where this run lies: its name ends with a digest of everything that decides its weights."""
        return Path(self.runs[backbone, variant].out)


def digest(config: TrainConfig) -> str:
    """12 hexadecimal digits of all settings that decide what a run computes."""
    values = {name: value for name, value in config.to_dict().items() if name not in ("out", "data", "cache_dir", "workers", "device")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def settings(backbone: str, variant: str, *, data: Path, out: Path, size: str, seed: int) -> TrainConfig:
    """The settings of one run, before anything is known of its budget."""
    if size == "small":
        config = demo_config(data, out, backbone=backbone)
    else:
        config = TrainConfig(**{"data": str(data), "out": str(out), "cache_dir": str(default_cache_dir(data)), **recipe(backbone)})
    model = dataclasses.replace(config.model, emc=variant != "original", ea="none" if variant == "without_ea" else config.model.ea)
    return dataclasses.replace(config, model=model, seed=seed)


def make_plan(
    data: Path,
    out: Path,
    *,
    backbones: Sequence[str],
    size: str,
    budget: float | None,
    seed: int,
    say: Callable[[str], None] = print,
) -> Plan:
    """Read the plan of ``out``, or make it: with a budget, one epoch of each run is timed and the epochs are set to fill the budget.

    Raises:
        DataError: ``out`` has a plan for other settings.
    """
    file = out / "plan.json"
    asked = {"data": str(data.resolve()), "size": size, "budget": budget, "seed": seed}
    known: dict[str, Any] = {}
    if file.is_file():
        kept = read_json(file)
        if changed := [f"{name} {kept.get(name)!r}, now {value!r}" for name, value in asked.items() if kept.get(name) != value]:
            raise DataError(f"{file} was made for {'; '.join(changed)}; name another folder with --out, or give the same options")
        known = kept["epochs"]
    epochs: dict[str, int] = dict(known)
    runs = {}
    for backbone in backbones:
        configs = {variant: settings(backbone, variant, data=data, out=out, size=size, seed=seed) for variant in VARIANTS}
        if backbone not in epochs:
            if budget is None:
                epochs |= _published_epochs(configs["emc"])
            else:
                epochs |= _epochs_within(configs, 60 * budget * TRAINING_SHARE / len(backbones), say)
        first = None
        for variant, config in configs.items():
            config = with_epochs(config, epochs)
            config = dataclasses.replace(config, out=str(out / "runs" / f"{backbone}-{variant}-{digest(config)}"))
            # What a backbone learns before its own training is the same for all three: it is trained in the first one's run.
            first = first or config
            if config is not first:
                config = dataclasses.replace(config, stages={stage: first.of_stage(stage).out for stage in _stages(first)})
            runs[backbone, variant] = config
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, asked | {"epochs": epochs})
    return Plan(size, budget, runs)


def _stages(config: TrainConfig) -> tuple[str, ...]:
    return backbone_class(config.model.backbone).stages


def with_epochs(config: TrainConfig, epochs: Mapping[str, int]) -> TrainConfig:
    """The settings with epochs by ``backbone`` and ``backbone/stage``."""
    name = config.model.backbone
    stages = {stage: {**config.stages.get(stage, {}), "epochs": epochs[f"{name}/{stage}"]} for stage in _stages(config)}
    return dataclasses.replace(config, epochs=epochs[name], stages=stages)


def _published_epochs(config: TrainConfig) -> dict[str, int]:
    name = config.model.backbone
    return {name: config.epochs} | {f"{name}/{stage}": config.of_stage(stage).epochs for stage in _stages(config)}


def _epochs_within(configs: Mapping[str, TrainConfig], seconds: float, say: Callable[[str], None]) -> dict[str, int]:
    """How many epochs fit into so many seconds on this machine: the same for all trainings of a backbone, as in the paper.

    Each stage that the backbone has gets the time of one of its trainings.
    """
    backbone = next(iter(configs.values())).model.backbone
    stages = _stages(configs["emc"])
    share = seconds / (len(configs) + len(stages))
    epochs = {}

    def fit(name: str, what: str, one: float, available: float) -> None:
        epochs[name] = max(int(available / one), LEAST_EPOCHS)
        say(f"{BACKBONES[backbone]}: an epoch of {what} takes {one:.1f} s, so {epochs[name]} epochs {clock(epochs[name] * one)}")

    with TemporaryDirectory(prefix="emc-fast-timing-") as folder:
        done = {}
        for stage in stages:
            part = dataclasses.replace(configs["emc"].of_stage(stage), out=f"{folder}/{stage}")
            fit(f"{backbone}/{stage}", f"its {stage}", epoch_seconds(part), share)
            done[stage] = part.out
        trials = [dataclasses.replace(config, out=f"{folder}/{variant}", stages=done) for variant, config in configs.items()]
        fit(backbone, f"its {len(trials)} trainings", sum(map(epoch_seconds, trials)), share * len(trials))
    return epochs
