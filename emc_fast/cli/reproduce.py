"""``emc-fast reproduce``: the paper's table with one command, on any corpus in the REACT 2024 layout."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ..metrics import ClipTable
    from ..reproduce import Measured
    from ..reproduce.table1 import Measure


class What(str, Enum):
    """What can be reproduced."""

    table1 = "table1"


class Size(str, Enum):
    """Of the models."""

    published = "published"
    small = "small"


def command(
    what: Annotated[What, typer.Argument(help="table1: fifteen rows, five of each backbone.")],
    data: Annotated[Path, typer.Option(help="Corpus in the REACT 2024 layout.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, predictions and report; the same command goes on with it.")] = Path(
        "emc-table1"
    ),
    budget: Annotated[
        float | None, typer.Option(min=1, help="Minutes for everything on this machine. [default: the published epochs, days on a GPU]")
    ] = None,
    backbones: Annotated[str, typer.Option(help="Which, with commas between.")] = "trans_vae,regnn,faceais",
    size: Annotated[
        Size | None, typer.Option(help="Models as published, or small ones for a CPU. [default: small with --budget, else published]")
    ] = None,
    split: Annotated[str, typer.Option(help="Split that is measured: val or test.")] = "val",
    num_samples: Annotated[int, typer.Option(min=1, help="Reactions per clip.")] = 10,
    seed: Annotated[int, typer.Option(help="Of training and reactions.")] = 0,
) -> None:
    """Train and test every row of the paper's table 1 and print it beside the paper's; what is trained or measured already is kept.

    Writes table1.md, table1.json and, with the extra viz, table1.png into --out.
    """
    import time

    from rich.console import Console

    from ..errors import DataError, EmcError
    from ..reproduce import BACKBONES, directions, make_plan, markdown, reproduce_table1, save_plots
    from ..reproduce.table1 import Stopped

    names = [name.strip() for name in backbones.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(BACKBONES)) or not names:
        raise DataError(f"--backbones {backbones!r}: {unknown or 'nothing'} is no backbone of the table; {', '.join(BACKBONES)} are")
    names = [name for name in BACKBONES if name in names]
    chosen = (size or (Size.small if budget is not None else Size.published)).value
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 120  # a file has no edge; the table needs about a hundred columns
    begun = time.monotonic()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)  # names of files may look like markup

    measure = _measure(data, split)
    plan = make_plan(data, out, backbones=names, size=chosen, budget=budget, seed=seed, say=say)
    try:
        measured = reproduce_table1(plan, data, out, split=split, num_samples=num_samples, seed=seed, measure=measure, say=say)
    except Stopped as stop:
        say(str(stop))
        raise typer.Exit(128 + stop.signal) from None
    console.print(_table(measured))
    for direction in directions(measured):
        low, high = direction.interval
        style = "green" if direction.verdict == "shown" else "yellow"
        console.print(
            f"{BACKBONES[direction.backbone]}: {direction.claim}: [{style}]{direction.verdict}[/] ({direction.difference:+.3f}, "
            f"95 % over clips {low:+.3f} to {high:+.3f})",
            soft_wrap=True,
        )
    report = markdown(measured, plan, corpus=str(data), split=split, num_samples=num_samples)
    written = _write(out, report, measured)
    try:
        written += save_plots(measured, out)
    except EmcError as missing:
        say(f"no plots: {missing}")
    say(f"{', '.join(map(str, written))} ({(time.monotonic() - begun) / 60:.1f} minutes)")


def _measure(data: Path, split: str) -> Measure:
    """Read the truth once, and measure every file of predictions against it."""
    from . import evaluate

    whole = None

    def measure(folder: Path) -> ClipTable:
        nonlocal whole
        pred = evaluate.open_predictions(folder, split)
        if whole is None:
            whole = evaluate.read_whole_truth(data, split, frames=evaluate.cut(pred.shape[2]))
        return evaluate.measure(folder, *evaluate.check_predictions(folder, pred, whole, data, split))

    return measure


def _table(measured: Sequence[Measured]) -> Table:
    from rich.table import Table

    from ..metrics.table import NAMES
    from ..reproduce import BACKBONES, PAPER, number
    from ..reproduce.report import TITLES

    table = Table(title="Table 1: here, in the paper (dim), and the difference")
    table.add_column("", no_wrap=True)
    before = ""
    for title in TITLES.values():
        table.add_column(title, justify="right")
    for m in measured:
        cells = []
        paper = PAPER.get((m.backbone, m.row.name))
        for place, name in enumerate(NAMES):
            beside = f"\n[dim]{paper[place]:g}[/]\n{m.figures[name] - paper[place]:+.4f}" if paper else ""
            cells.append(f"[bold]{number(m.figures[name])}[/]{beside}")
        if m.backbone != before:
            table.add_section()
            table.add_row(f"[bold]{BACKBONES[m.backbone]}[/]")
        before = m.backbone
        table.add_row(m.row.title, *cells)
    return table


def _write(out: Path, report: str, measured: Sequence[Measured]) -> list[Path]:
    import json
    from dataclasses import asdict

    from .._files import write_text
    from ..reproduce import PAPER, directions

    page, figures = out / "table1.md", out / "table1.json"
    write_text(page, report)
    rows = [
        {"backbone": m.backbone, "row": m.row.name, "epochs": m.epochs, "figures": m.figures, "paper": PAPER.get((m.backbone, m.row.name))}
        for m in measured
    ]
    content = {"rows": rows, "directions": [asdict(d) | {"verdict": d.verdict} for d in directions(measured)]}
    write_text(figures, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return [page, figures]
