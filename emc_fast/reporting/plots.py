"""Plots of races: bars of the ratio to the best rival, and lines of how cost grows. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.plots import require_matplotlib, save_figure
from .machine import topology_in_words
from .page import by_operator, ratio
from .races import OURS, Race, Run, scalings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {OURS: "#1b6ca8", "eager": "#8c8c8c", "sdpa": "#d9822b", "compile(eager)": "#5a9e6f", "compile(sdpa)": "#a05195"}
COLOURS |= {"published": "#a8893c", "tslearn": "#a8893c", "dtaidistance": "#b5595f", "fourier": "#5a9e6f"}
MACHINE = "the machine's own"
DIRECTIONS = {
    "forward": "#1b6ca8",
    "forward+backward": "#7fb2d6",
    "generation": "#2a7f62",
    "training step": "#8fc7b3",
    "measure": "#8a6bb1",
}
AXES = {"T": "frames T", "B": "clips B", "d": "width d"}


def _barred(run: Run, *, measures: bool) -> list[Race]:
    return [race for race in run.races if race.rivals and not race.series and (race.direction == "measure") == measures]


def plot_ratios(run: Run, *, measures: bool = False) -> Figure:
    """A horizontal bar per race: how many times faster than the best rival, on a logarithmic scale, operator by operator.

    The whisker spans the quartiles over rounds. Races of a series are left to `plot_growth` and `plot_threads`. The measures, which are
    hundreds of times faster, are drawn by themselves, with `measures`.
    """
    races = _barred(run, measures=measures)
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
            axes.annotate(f" {ratio(value)} {race.best_rival}", (max(value, high, 1.0), place), va="center", fontsize=6.5, color="0.25")
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(group)), [_label(race) for race in group], fontsize=7)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_title(operator, fontsize=9, loc="left", fontweight="bold")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if races:
        ends = [end for race in races for end in (race.ratio(race.best_rival), *race.quartiles.get(race.best_rival, ()))]
        last = grid.flat[-1]
        low, high = min(0.8, 0.9 * min(ends)), max(1.5, max(ends))
        last.set_xlim(low, high * (high / low) ** 0.25)  # room for the text beside the longest bar
        powers = [k for k in range(-10, 16) if last.get_xlim()[0] <= 2.0**k <= last.get_xlim()[1]]
        last.set_xticks([2.0**k for k in powers if len(powers) < 9 or k % 2 == 0])
        last.xaxis.set_minor_locator(NullLocator())
        last.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        last.set_xlabel("times faster than the best rival (named beside the bar)", fontsize=8)
        handles = [Patch(color=colour, label=name) for name, colour in DIRECTIONS.items() if any(race.direction == name for race in races)]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _label(race: Race) -> str:
    return race.size + (f", {race.threads} threads" if race.threads > 1 else "")


def series_of(run: Run) -> dict[tuple[str, str, str, int], list[Race]]:
    """Races by operator, direction, what grows and threads, along the growing number; lone ones and those along threads are left out."""
    found: dict[tuple[str, str, str, int], list[Race]] = {}
    for race in run.races:
        if race.series and race.series != "threads":
            found.setdefault((race.operator, race.direction, race.series, race.threads), []).append(race)
    order = [*AXES, *(key[2] for key in found)]
    lines = {key: sorted(races, key=_position) for key, races in found.items() if len({_position(race) for race in races}) > 1}
    return dict(sorted(lines.items(), key=lambda item: (item[0][0], order.index(item[0][2]))))


def _position(race: Race) -> float:
    return race.shape[race.series]


def plot_growth(run: Run, *, memory: bool = False) -> Figure | None:
    """Medians of every contestant along T, B and d, log-log, a panel for each series; None where none was run.

    With `memory` it is the peak memory of a call instead, of the series for which it was measured.
    """

    def cost(race: Race) -> dict[str, float]:
        if memory:
            return {name: value / 2**20 for name, value in race.peak_bytes.items() if value > 0}
        return {name: value * 1e3 for name, value in race.seconds.items()}

    series = {key: races for key, races in series_of(run).items() if all(cost(race) for race in races)}
    if not series:
        return None
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    columns = min(4, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows + 0.4), layout="constrained")
    flat: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in flat[len(series) :]:
        axes.axis("off")
    for axes, ((operator, direction, name, threads), races) in zip(flat, series.items(), strict=False):
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
        axes.set_xticks(places, [f"{place:g}" for place in places], fontsize=7, rotation=40)
        axes.xaxis.set_minor_locator(NullLocator())
        if axes.get_ylim()[1] < 100 * axes.get_ylim()[0]:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlabel(AXES.get(name, name), fontsize=8)
        axes.set_ylabel("MiB" if memory else "ms", fontsize=8)
        axes.set_title(f"{operator}\n{direction}, {_fixed(races, threads)}", fontsize=7.5)
        axes.grid(color="0.9", which="major")
        axes.spines[["top", "right"]].set_visible(False)
    named = {label: handle for axes in flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8, frameon=False)
    return figure


def _fixed(races: Sequence[Race], threads: int) -> str:
    """The numbers that are the same along a series."""
    first = races[0].shape
    same = {name: value for name, value in first.items() if all(race.shape.get(name) == value for race in races)}
    return ", ".join([*(f"{name} {value:g}" for name, value in same.items()), f"{threads} thread{'s' * (threads > 1)}"])


def plot_threads(run: Run) -> Figure | None:
    """Bars of how much faster the same work got with more threads: ours, each rival, the machine's own limit; None where none was run."""
    grown = scalings(run)
    if not grown:
        return None
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    bars = []
    for one in grown:
        gains = {name: one.gain(name) for name in one.more.seconds if name in one.fewest.seconds}
        bars.append(gains | ({MACHINE: one.machine[1]} if one.machine else {}))
    heights = [len(gains) + 0.8 for gains in bars]
    figure = Figure(figsize=(9.5, 1.2 + 0.155 * sum(heights)), layout="constrained")
    axes = figure.subplots()
    named: dict[str, Any] = {}
    places, place = [], 0.0
    for one, gains in zip(grown, bars, strict=True):
        places.append(place + (len(gains) - 1) / 2)
        for name, gain in gains.items():
            style: dict[str, Any] = {"color": COLOURS.get(name, "#5a9e6f")}
            if name == MACHINE:
                style = {"facecolor": "white", "edgecolor": "0.5", "hatch": "////"}
            axes.barh(place, gain, height=0.85, **style)
            note = f" {gain:.2f}" + (f" ({one.machine[0]})" if name == MACHINE and one.machine else "")
            axes.annotate(note, (gain, place), va="center", fontsize=6.5, color="0.25")
            named.setdefault(name, Patch(label=name, **style))
            place += 1
        place += 0.8
    labels = [f"{one.more.operator}, {one.size}\n{one.more.direction}, {one.fewest.threads} to {one.more.threads} threads" for one in grown]
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(place - 0.8, -0.8)
    for number in sorted({1.0, *(one.more.threads / one.fewest.threads for one in grown)}):
        axes.axvline(number, color="black", linewidth=0.8, linestyle="-" if number == 1 else ":")
    axes.set_xlim(0, 1.12 * max(max(gains.values()) for gains in bars))
    words = topology_in_words(run.machine)
    axes.set_xlabel("times faster with more threads" + (f"; {words}" if words else ""), fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=list(named.values()), loc="outside upper right", ncols=len(named), fontsize=8, frameon=False)
    return figure


def save_plots(run: Run, folder: Path) -> list[tuple[str, Path]]:
    """Write the plots of a run into a folder as PNG; title and path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        name: plot_ratios(run, measures=measures) if _barred(run, measures=measures) else None
        for name, measures in (("ratios", False), ("measures", True))
    }
    figures |= {"growth": plot_growth(run), "memory": plot_growth(run, memory=True), "threads": plot_threads(run)}
    titles = {
        "ratios": "How many times faster than the best rival",
        "measures": "How many times faster the measures are than the best rival",
        "growth": "How the time of a call grows",
        "memory": "How the peak memory of a call grows",
        "threads": "How many times faster with more threads",
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"bench-{run.slug}-{name}.png"
            save_figure(path, figure)
            written.append((f"{titles[name]}, {run.title}", path))
    return written
