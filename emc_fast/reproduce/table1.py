"""The table itself: train what is not trained, generate and measure what is not measured, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import CheckpointError, EmcError
from ..metrics import ClipTable
from ..metrics.table import NAMES
from ..training import generate, train
from ..training.checkpoint import STATE_FILE, read_json, write_json
from ..training.rundir import RunPaths
from .paper import BACKBONES, ROWS, VARIANTS, ZEROS, Row
from .plan import Plan


class Stopped(EmcError):
    """A signal ended a training; the same command goes on."""

    def __init__(self, signal: int, run: Path) -> None:
        super().__init__(f"stopped while training {run}; the same command goes on from there")
        self.signal = signal


@dataclass(frozen=True)
class Measured:
    """One row as it came out: the six measures, and per clip what they are means of."""

    backbone: str
    row: Row
    epochs: int
    figures: dict[str, float]
    per_clip: dict[str, list[float]]


Measure = Callable[[Path], ClipTable]
"""A folder of `generate`, of reactions to the split in hand, to their table."""


def reproduce_table1(
    plan: Plan, data: Path, out: Path, *, split: str, num_samples: int, seed: int, measure: Measure, say: Callable[[str], None] = print
) -> list[Measured]:
    """Train, generate and measure all rows of a plan, those that the paper lacks last in each backbone.

    Whatever is finished is found again: runs by the digest in their folder's name, rows by that of the run.

    Args:
        plan: from `make_plan`.
        data: the corpus.
        out: folder of the table.
        split, num_samples, seed: of the generation.
        measure: measures a folder of generated reactions against that split.
        say: takes lines about what is being done.

    Raises:
        Stopped: by SIGINT or SIGTERM, after a checkpoint.
        DataError, CheckpointError: as training and generation.
    """
    backbones = list(dict.fromkeys(backbone for backbone, _ in plan.runs))
    measured = []
    for backbone in backbones:
        for variant, title in VARIANTS.items():
            _train(plan, backbone, variant, f"{BACKBONES[backbone]}, {title}", say)
        for row in (*ROWS, *ZEROS):
            measured.append(_row(plan, backbone, row, data, out, split, num_samples, seed, measure, say))
    return measured


def _train(plan: Plan, backbone: str, variant: str, title: str, say: Callable[[str], None]) -> None:
    config, run = plan.runs[backbone, variant], RunPaths(plan.folder(backbone, variant))
    if _finished(run, config.epochs):
        say(f"{title}: trained already ({run.run})")
        return
    say(f"{title}: {config.epochs} epochs")
    result = train(config, resume=True)
    if result.stopped_by is not None:
        raise Stopped(result.stopped_by, run.run)


def _finished(run: RunPaths, epochs: int) -> bool:
    try:
        history = read_json(run.last / STATE_FILE)["history"]
    except (CheckpointError, KeyError):
        return False
    return bool(history) and history[-1]["epoch"] == epochs


def _row(
    plan: Plan,
    backbone: str,
    row: Row,
    data: Path,
    out: Path,
    split: str,
    num_samples: int,
    seed: int,
    measure: Measure,
    say: Callable[[str], None],
) -> Measured:
    run = plan.folder(backbone, row.variant)
    epochs = plan.runs[backbone, row.variant].epochs
    title = f"{BACKBONES[backbone]}, {row.title}"
    folder = out / "predictions" / f"{run.name}{f'-no-{row.missing}' if row.missing else ''}-{split}-{num_samples}-{seed}"
    file = folder.with_suffix(".json")
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        say(f"{title}: measured already ({file})")
        return Measured(backbone, row, epochs, known["figures"], known["per_clip"])
    say(f"{title}: {num_samples} reactions to each clip of {split}")
    generate(
        run, folder, data=data, split=split, num_samples=num_samples, missing=row.missing, seed=seed,
        cache_dir=plan.runs[backbone, row.variant].cache_dir, overwrite=True,
    )  # fmt: skip
    table = measure(folder)
    figures = table.figures("official")
    per_clip = {name: values.tolist() for name, values in table.per_clip("official").items()}
    result = Measured(backbone, row, epochs, {name: figures[name] for name in NAMES}, per_clip)
    write_json(file, {"title": title, "row": asdict(row), "figures": result.figures, "fixed": table.figures("fixed"), "per_clip": per_clip})
    return result


def select(measured: Sequence[Measured], backbone: str) -> dict[str, Measured]:
    """The rows of one backbone by name."""
    return {m.row.name: m for m in measured if m.backbone == backbone}
