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
    asked = {"size": size, "budget": budget, "seed": seed}
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
                epochs[backbone] = configs["emc"].epochs
            else:
                epochs[backbone] = _epochs_within(configs, 60 * budget * TRAINING_SHARE / len(backbones), say)
        for variant, config in configs.items():
            config = dataclasses.replace(config, epochs=epochs[backbone])
            runs[backbone, variant] = dataclasses.replace(config, out=str(out / "runs" / f"{backbone}-{variant}-{digest(config)}"))
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, asked | {"epochs": epochs})
    return Plan(size, budget, runs)


def _epochs_within(configs: Mapping[str, TrainConfig], seconds: float, say: Callable[[str], None]) -> int:
    """How many epochs fit into so many seconds on this machine: the same for all trainings of a backbone, as in the paper."""
    one_of_each = 0.0
    for config in configs.values():
        with TemporaryDirectory(prefix="emc-fast-timing-") as folder:
            one_of_each += epoch_seconds(dataclasses.replace(config, out=f"{folder}/run"))
    fits = max(int(seconds / one_of_each), LEAST_EPOCHS)
    backbone = BACKBONES[next(iter(configs.values())).model.backbone]
    say(f"{backbone}: an epoch of all {len(configs)} trainings takes {one_of_each:.1f} s, so {fits} epochs {clock(fits * one_of_each)}")
    return fits
