"""Plots of races: bars of the ratio to the best rival, and lines of how cost grows. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.plots import require_matplotlib, save_figure
from .page import by_operator, ratio
from .races import OURS, Race, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {OURS: "#1b6ca8", "eager": "#8c8c8c", "sdpa": "#d9822b", "compile(eager)": "#5a9e6f", "compile(sdpa)": "#a05195"}
DIRECTIONS = {
    "forward": "#1b6ca8",
    "forward+backward": "#7fb2d6",
    "generation": "#2a7f62",
    "training step": "#8fc7b3",
    "measure": "#8a6bb1",
}
AXES = {"T": "frames T", "B": "clips B", "d": "width d", "threads": "threads"}


def plot_ratios(run: Run) -> Figure:
    """A horizontal bar per race: how many times faster than the best rival, on a logarithmic scale, operator by operator.

    The whisker spans the quartiles over rounds. Races of a series are left to `plot_growth`.
    """
    races = [race for race in run.races if race.rivals and not race.series]
    groups = by_operator(races)
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(9.5, 1.1 + 0.19 * len(races) + 0.45 * len(groups)), layout="constrained")
    grid = figure.subplots(max(len(groups), 1), 1, sharex=True, squeeze=False, height_ratios=[len(g) + 1.2 for g in groups.values()] or [1])
    for axes, (operator, group) in zip(grid.flat, groups.items(), strict=False):
        for place, race in enumerate(group):
            value = race.ratio(race.best_rival)
            axes.barh(place, value - 1, left=1, color=DIRECTIONS.get(race.direction, "#1b6ca8"), height=0.8)
            low, high = race.quartiles.get(race.best_rival, (value, value))
            axes.plot([low, high], [place, place], color="black", linewidth=0.8)
            right = max(value, high) if value >= 1 else 1.0
            axes.annotate(f" {ratio(value)} {race.best_rival}", (right, place), va="center", fontsize=6.5, color="0.25")
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(group)), [_label(race) for race in group], fontsize=7)
        axes.invert_yaxis()
        axes.set_title(operator, fontsize=9, loc="left", fontweight="bold")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if races:
        values = [race.ratio(race.best_rival) for race in races]
        last = grid.flat[-1]
        last.set_xlim(min(0.8, 0.9 * min(values)), max(1.5, 2.2 * max(values)))  # room for the text beside the longest bar
        ticks = [x for x in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 512) if last.get_xlim()[0] <= x <= last.get_xlim()[1]]
        last.set_xticks(ticks)
        last.xaxis.set_minor_locator(NullLocator())
        last.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        last.set_xlabel("times faster than the best rival (named beside the bar)", fontsize=8)
        handles = [Patch(color=colour, label=name) for name, colour in DIRECTIONS.items() if any(race.direction == name for race in races)]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _label(race: Race) -> str:
    return race.size + (f", {race.threads} threads" if race.threads > 1 else "")


def series_of(run: Run) -> dict[tuple[str, str, str], list[Race]]:
    """Races by operator, direction and what grows, along the growing number; lone ones are left out."""
    found: dict[tuple[str, str, str], list[Race]] = {}
    for race in run.races:
        if race.series:
            found.setdefault((race.operator, race.direction, race.series), []).append(race)
    return {key: sorted(races, key=_position) for key, races in found.items() if len({_position(race) for race in races}) > 1}


def _position(race: Race) -> float:
    return race.threads if race.series == "threads" else race.shape[race.series]


def plot_growth(run: Run, *, memory: bool = False) -> Figure | None:
    """Medians of every contestant along T, B, d and the threads, log-log, a column for what grows; None where no series was run.

    With `memory` it is the peak memory of a call instead, of the series for which it was measured.
    """

    def cost(race: Race) -> dict[str, float]:
        if memory:
            return {name: value / 2**20 for name, value in race.peak_bytes.items() if value > 0}
        return {name: value * 1e3 for name, value in race.seconds.items()}

    series = {key: races for key, races in series_of(run).items() if all(cost(race) for race in races)}
    if not series:
        return None
    rows = list(dict.fromkeys((operator, direction) for operator, direction, _ in series))
    columns = [name for name in dict.fromkeys((*AXES, *(name for *_, name in series))) if any(name == key[2] for key in series)]
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    figure = Figure(figsize=(3.4 * len(columns), 2.7 * len(rows) + 0.4), layout="constrained")
    flat: list[Any] = list(figure.subplots(len(rows), len(columns), squeeze=False).flat)
    for axes, (row, name) in zip(flat, ((row, name) for row in rows for name in columns), strict=True):
        races = series.get((*row, name))
        if races is None:
            axes.axis("off")
            continue
        for contestant in dict.fromkeys(c for race in races for c in cost(race)):
            here = [race for race in races if contestant in cost(race)]
            axes.plot(
                [_position(race) for race in here],
                [cost(race)[contestant] for race in here],
                "o-",
                color=COLOURS.get(contestant),
                label=contestant,
                markersize=3.5,
                linewidth=2.0 if contestant == OURS else 1.2,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        places = sorted({_position(race) for race in races})
        axes.set_xticks(places, [f"{place:g}" for place in places], fontsize=7)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlabel(AXES.get(name, name), fontsize=8)
        axes.set_ylabel("MiB" if memory else "ms", fontsize=8)
        axes.set_title(f"{row[0]}\n{row[1]}, {_fixed(races)}", fontsize=7.5)
        axes.grid(color="0.9", which="major")
        axes.spines[["top", "right"]].set_visible(False)
    named = {label: handle for axes in flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8, frameon=False)
    return figure


def _fixed(races: Sequence[Race]) -> str:
    """The numbers that are the same along a series."""
    first = races[0].shape
    same = {name: value for name, value in first.items() if all(race.shape.get(name) == value for race in races)}
    threads = {race.threads for race in races}
    return ", ".join(f"{name} {value:g}" for name, value in same.items()) + (f", {races[0].threads} thread" if threads == {1} else "")


def save_plots(run: Run, folder: Path) -> list[tuple[str, Path]]:
    """Write the plots of a run into a folder as PNG; title and path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    ratios = plot_ratios(run) if any(race.rivals and not race.series for race in run.races) else None
    figures = {"ratios": ratios, "growth": plot_growth(run), "memory": plot_growth(run, memory=True)}
    titles = {
        "ratios": "How many times faster than the best rival",
        "growth": "How the time of a call grows",
        "memory": "How the peak memory of a call grows",
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"bench-{run.slug}-{name}.png"
            save_figure(path, figure)
            written.append((f"{titles[name]}, {run.title}", path))
    return written
