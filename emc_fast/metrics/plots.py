"""Plots of evaluations: distributions over clips, comparison of files with confidence intervals, agreement channel by channel.

Needs matplotlib (``pip install 'emc_fast[viz]'``); nothing is shown on a screen, files are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._files import whole_file
from ..errors import EmcError
from ._inputs import Protocol
from .frcorr import channel_concordance
from .table import NAMES, ClipTable, bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_channels", "plot_clips", "plot_comparison", "require_matplotlib", "save_plots"]

_TITLES = dict(zip(NAMES, ("FRCorr (higher)", "FRDist (lower)", "FRDiv", "FRVar", "FRDvs", "FRSyn (lower)"), strict=True))
#: The 25 channels in order: action units, valence and arousal, expressions.
CHANNEL_NAMES = (
    *(f"AU{unit}" for unit in (1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 23, 24, 25, 26)),
    "valence",
    "arousal",
    "neutral",
    "happy",
    "sad",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)


def require_matplotlib() -> None:
    """Say how to get matplotlib where it is missing, before any work is done."""
    if find_spec("matplotlib") is None:
        raise EmcError("plots need matplotlib, which is not installed; install it with: pip install 'emc_fast[viz]'")


def _figure(width: float, height: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot_clips(tables: Mapping[str, ClipTable], *, protocol: Protocol = "official") -> Figure:
    """Box plot over clips of each measure, one box for each named table; the triangle is the mean, which is the figure."""
    figure = _figure(11, 6)
    values = {label: table.per_clip(protocol) for label, table in tables.items()}
    for axes, name in zip(figure.subplots(2, 3).flat, NAMES, strict=True):
        axes.boxplot([values[label][name] for label in tables], tick_labels=list(tables), showmeans=True)
        axes.set_title(_TITLES[name])
        axes.tick_params(axis="x", labelrotation=20)
    figure.suptitle(f"per clip, {protocol} protocol")
    return figure


def plot_comparison(tables: Mapping[str, ClipTable], *, protocol: Protocol = "official", level: float = 0.95) -> Figure:
    """Each measure of the named tables with its bootstrap interval."""
    figure = _figure(11, 1.5 + 0.5 * len(tables))
    places = np.arange(len(tables))
    for axes, name in zip(figure.subplots(1, 6, sharey=True), NAMES, strict=True):
        for place, table in zip(places, tables.values(), strict=True):
            value = table.figures(protocol)[name]
            low, high = bootstrap_interval(table.per_clip(protocol)[name], level=level)
            axes.plot([low, high], [place, place], color="0.5", linewidth=3)
            axes.plot(value, place, "o", color="black")
        axes.set_title(_TITLES[name], fontsize=9)
        axes.set_yticks(places, list(tables))
        axes.tick_params(axis="x", labelrotation=30, labelsize=7)
    figure.suptitle(f"{protocol} protocol, {level:.0%} intervals over clips")
    return figure


def plot_channels(concordances: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Bars of each channel's mean CCC with the best listener, for each name a (25,) array of :func:`channel_concordance`."""
    figure = _figure(11, 4)
    axes = figure.subplots()
    places = np.arange(len(CHANNEL_NAMES))
    width = 0.8 / len(concordances)
    for i, (label, ccc) in enumerate(concordances.items()):
        axes.bar(places - 0.4 + (i + 0.5) * width, np.nan_to_num(ccc), width, label=label)
    axes.set_xticks(places, CHANNEL_NAMES, rotation=60)
    axes.set_ylabel("mean CCC with the best listener")
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.legend()
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def save_plots(
    folder: Path, results: Mapping[str, tuple[ClipTable, NDArray[Any], NDArray[Any], NDArray[np.bool_], NDArray[np.int64]]]
) -> list[Path]:
    """Write all plots of named results (table, pred, target, appropriate, clips) as PNG files into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {label: table for label, (table, *_) in results.items()}
    figures = {"channels": plot_channels({label: channel_concordance(*arrays) for label, (_, *arrays) in results.items()})}
    protocol: Protocol
    for protocol in ("official", "fixed"):
        figures[f"clips_{protocol}"] = plot_clips(tables, protocol=protocol)
        figures[f"comparison_{protocol}"] = plot_comparison(tables, protocol=protocol)
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        save_figure(written[-1], figure)
    return written
