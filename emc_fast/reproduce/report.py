"""The table as people read it: beside the paper's, with what it shows and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import bootstrap_interval
from ..metrics.table import NAMES
from .paper import BACKBONES, PAPER, ROWS
from .plan import Plan
from .table1 import Measured, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"frcorr": "FRCorr ↑", "frdist": "FRDist ↓", "frdiv": "FRDiv ↑", "frvar": "FRVar ↑", "frdvs": "FRDvs ↑", "frsyn": "FRSyn ↓"}

CLAIMS = (
    ("EMC is above the original", "emc", "original"),
    ("EMC is above EMC without EA", "emc", "without_ea"),
    ("EMC without EA is above the original", "without_ea", "original"),
    ("without speech EMC is above EMC without the face", "no_speech", "no_face"),
    ("without the face EMC is above the original fed zeros", "no_face", "original_no_face"),
    ("without speech EMC is above the original fed zeros", "no_speech", "original_no_speech"),
)
"""What the paper says or implies of FRCorr: the first row is above the second."""


@dataclass(frozen=True)
class Direction:
    """One claim about FRCorr on the measured clips: the difference, its 95 % interval over clips, and the verdict."""

    backbone: str
    claim: str
    difference: float
    interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``shown`` or ``the opposite is shown`` if the interval leaves out 0; else ``not shown``."""
        low, high = self.interval
        return "shown" if low > 0 else "the opposite is shown" if high < 0 else "not shown"


def directions(measured: Sequence[Measured]) -> list[Direction]:
    """Each of the paper's claims about FRCorr for each backbone, paired clip by clip.

    The intervals hold for other clips of the same corpus under the same trained weights; they say nothing of other seeds of training.
    """
    found = []
    for backbone in dict.fromkeys(m.backbone for m in measured):
        rows = select(measured, backbone)
        for claim, above, below in CLAIMS:
            difference = np.subtract(rows[above].per_clip["frcorr"], rows[below].per_clip["frcorr"])
            found.append(Direction(backbone, claim, float(difference.mean()), bootstrap_interval(difference)))
    return found


def number(value: float) -> str:
    """Four digits after the point, or scientific where nothing would be left of them."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def markdown(measured: Sequence[Measured], plan: Plan, *, corpus: str, split: str, num_samples: int) -> str:
    """The whole report: the table beside the paper's, the differences, the directions."""
    clips = len(measured[0].per_clip["frcorr"])
    budget = f"a budget of {plan.budget:g} minutes" if plan.budget is not None else "the published epochs"
    lines = [
        "# Table 1, trained anew",
        "",
        f"Corpus {corpus}, split {split}, {clips} clips, {num_samples} draws; {plan.size} models, {budget}. Measures by the official",
        "protocol: FRCorr and FRDist are sums over the draws. The paper's corpus is licensed and its weights are not public: on another",
        "corpus the figures can be compared among themselves, and with the paper's only in their directions.",
        "",
        "| | epochs | " + " | ".join(TITLES.values()) + " |",
        "|---|---|" + "---|" * len(TITLES),
    ]
    for m in measured:
        paper = PAPER.get((m.backbone, m.row.name))
        title = f"{BACKBONES[m.backbone]} {m.row.title}"
        lines.append(f"| **{title}** | {m.epochs} | " + " | ".join(number(m.figures[name]) for name in NAMES) + " |")
        if paper is not None:
            lines.append("| paper | | " + " | ".join(f"{value:g}" for value in paper) + " |")
            gaps = (m.figures[name] - value for name, value in zip(NAMES, paper, strict=True))
            lines.append("| difference | | " + " | ".join(f"{gap:+.4f}" for gap in gaps) + " |")
    lines += ["", "## What FRCorr shows here", "", "| | claim | difference | 95 % over clips | |", "|---|---|---|---|---|"]
    for d in directions(measured):
        low, high = d.interval
        lines.append(f"| {BACKBONES[d.backbone]} | {d.claim} | {d.difference:+.3f} | {low:+.3f} to {high:+.3f} | {d.verdict} |")
    return "\n".join(lines) + "\n"


def plot(measured: Sequence[Measured]) -> Figure:
    """Bars of each measure for the paper's rows, ours beside the paper's on scales of their own."""
    from matplotlib.figure import Figure

    backbones = list(dict.fromkeys(m.backbone for m in measured))
    figure = Figure(figsize=(4.2 * len(backbones) + 1.5, 15), layout="constrained")
    grid = figure.subplots(len(NAMES), len(backbones), squeeze=False)
    places = np.arange(len(ROWS))
    for column, backbone in enumerate(backbones):
        rows = select(measured, backbone)
        for line, name in enumerate(NAMES):
            axes = grid[line][column]
            ours = axes.bar(places - 0.2, [rows[row.name].figures[name] for row in ROWS], 0.38, color="tab:blue", label="here")
            other = axes.twinx()
            paper = other.bar(places + 0.2, [PAPER[backbone, row.name][line] for row in ROWS], 0.38, color="0.75", label="paper")
            # Zero at the same height on both scales, also where FRCorr is below it.
            low = min(0.0, *(rows[row.name].figures[name] for row in ROWS))
            high = max(*(rows[row.name].figures[name] for row in ROWS), 1e-9)
            most = max(PAPER[backbone, row.name][line] for row in ROWS)
            axes.set_ylim(1.05 * low, 1.05 * high)
            other.set_ylim(1.05 * low / high * most, 1.05 * most)
            axes.axhline(0.0, color="black", linewidth=0.8)
            axes.set_ylabel(TITLES[name] if column == 0 else "")
            axes.set_xticks(places, [row.title for row in ROWS], rotation=25, ha="right", fontsize=8)
            axes.tick_params(axis="y", colors="tab:blue", labelsize=8)
            other.tick_params(axis="y", colors="0.5", labelsize=8)
            if line == 0:
                axes.set_title(BACKBONES[backbone])
    figure.suptitle("Table 1: here (left scales) and in the paper (right scales)")
    figure.legend(handles=[ours, paper], loc="outside lower center", ncols=2)
    return figure


def save_plots(measured: Sequence[Measured], folder: Path) -> list[Path]:
    """Write the bars as PNG; needs matplotlib."""
    from ..metrics.plots import require_matplotlib, save_figure

    require_matplotlib()
    file = folder / "table1.png"
    save_figure(file, plot(measured))
    return [file]
