"""Tables of races in Markdown, and their places in the documentation between two markers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .machine import topology_in_words
from .races import OURS, Race, Run, Scaling, scalings

if TYPE_CHECKING:
    from .profile import Profile

Images = Callable[[Run], Sequence[tuple[str, str]]]

BEGIN, END = "<!-- bench: begin, written by `emc-fast bench report --update` -->", "<!-- bench: end -->"

PROFILE_MARKERS = "<!-- profile: begin, written by `emc-fast bench profile --update` -->", "<!-- profile: end -->"

INTRODUCTION = (
    "How many times faster `emc_fast` is than each rival, by medians of one interleaved run; the best rival in bold. Then our rate, with",
    "its share of what this machine reached in the same rounds: a copy of as many bytes, a matrix product, or exponentials, whichever",
    "takes longest. Peak memory is what a call needs beyond its inputs.",
)


def time(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def ratio(value: float) -> str:
    """How many times, to two or three digits."""
    return f"{value:.0f}x" if value >= 99.5 else f"{value:.1f}x" if value >= 9.95 else f"{value:.2f}x"


def amount(count: float) -> str:
    """Bytes with a unit."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def ours(race: Race) -> str:
    """Our time; where another back end of ours ran beside, what `auto` took and how long the other needed."""
    beside = "; ".join(f"{name} {time(seconds)}" for name, seconds in race.others.items())
    return time(race.seconds[OURS]) + (f" ({race.backend + '; ' if race.backend else ''}{beside})" if beside else "")


def limit(race: Race) -> str:
    """Our rate, and what share of the machine's it is."""
    if not race.limit:
        return ""
    rate, _, unit = race.rates()
    return f"{rate:.3g} {unit}, {race.fraction:.0%} of {race.limit}"


def memory(race: Race) -> str:
    """Peak memory of ours and, in brackets, of who takes least and who takes most of the rivals."""
    if OURS not in race.peak_bytes:
        return ""
    rivals = sorted((value, name) for name, value in race.peak_bytes.items() if name != OURS)
    kept = dict.fromkeys((rivals[0], rivals[-1])) if rivals else {}
    beside = ", ".join(f"{name} {amount(value)}" for value, name in kept)
    return amount(race.peak_bytes[OURS]) + (f" ({beside})" if beside else "")


def by_operator(races: Sequence[Race]) -> dict[str, list[Race]]:
    """Races by operator, each in the order in which it came first."""
    groups: dict[str, list[Race]] = {}
    for race in races:
        groups.setdefault(race.operator, []).append(race)
    return groups


def rivals_of(races: Sequence[Race]) -> list[str]:
    """All rivals of some races, in the order in which they come first."""
    return list(dict.fromkeys(name for race in races for name in race.rivals))


def heading(run: Run) -> str:
    """Where, with what and when."""
    versions = ", ".join(f"{name} {version}" for name, version in run.machine.get("versions", {}).items())
    commits = ", ".join(commit[:12] for commit in run.commit.split()) + (" with changes" if run.dirty else "")
    limits = ", ".join(f"{name} {value:.3g} {unit}" for name, value, unit in _limits(run))
    if gpu := run.machine.get("gpu"):
        about = f", capability {gpu['capability'] / 10:.1f}, {gpu['multiprocessors']} multiprocessors, {gpu['memory_gib']:g} GiB"
        versions += f", CUDA {gpu['cuda']}" + (f", Triton {gpu['triton']}" if gpu["triton"] else "")
    else:
        about = f", instruction set {run.machine['isa']}" if run.machine.get("isa") else ""
        about += f", {words}" if (words := topology_in_words(run.machine)) else ""
    return f"{run.title}{about}; {versions}; commit {commits}; {run.date[:10]}." + (f" In the same run: {limits}." if limits else "")


def _limits(run: Run) -> list[tuple[str, float, str]]:
    units = {"copy": "GB/s", "matrix product": "GFLOP/s"}
    return [(name, value, units.get(name.split(",")[0], "Gexp/s")) for name, value in run.limits.items()]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def page(runs: Sequence[Run], images: Images = lambda run: ()) -> str:
    """What `summary` says, the plots, and every race in a table per operator (folded up), machine by machine.

    Args:
        runs: one per machine.
        images: title and link of each plot of a run, as seen from the page.
    """
    lines = list(INTRODUCTION)
    for run in runs:
        lines += ["", f"### {run.title}", "", heading(run), "", *_summary(run)]
        if grown := scalings(run):
            lines += ["", "#### Along threads", "", threads_note(run), "", *table(SCALING, [scaling_cells(one) for one in grown])]
        for title, link in images(run):
            lines += ["", f"![{title}]({link})"]
        lines += ["", "<details><summary>Every race</summary>"]
        for operator, races in by_operator(run.races).items():
            rivals = rivals_of(races)
            remembered = any(race.peak_bytes for race in races)
            limited = any(race.limit for race in races)
            header = ["size", "direction", "threads", "ours", *rivals]
            header += ["rate"] * limited + ["peak memory"] * remembered
            rows = []
            for race in races:
                cells = [_cell(race, rival) for rival in rivals]
                cells += [limit(race)] * limited + [memory(race)] * remembered
                rows.append([race.size, race.direction, str(race.threads), ours(race), *cells])
            lines += ["", f"#### {operator}", "", *table(header, rows)]
            lines += [""] * any(race.unmeasured for race in races) + unmeasured(races)
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def unmeasured(races: Sequence[Race]) -> list[str]:
    """A sentence for every contestant and reason why it was not measured, with all the sizes that this holds for."""
    sizes: dict[tuple[str, str], dict[str, None]] = {}
    for race in races:
        for name, reason in race.unmeasured.items():
            sizes.setdefault((name, reason), {})[f"{race.size} {race.direction}"] = None
    return [f"Not measured: {name} at {', '.join(where)}: {reason}." for (name, reason), where in sizes.items()]


SCALING = ("operator", "size", "direction", "threads", "ours", "ours gains", "rivals gain", "the machine gains", "against the best rival")


def scaling_cells(one: Scaling) -> list[str]:
    """A row under `SCALING`: what more threads give ours, the rivals and the machine, and the ratio to the best rival before and after."""
    fewest, more = one.fewest, one.more
    rivals = ", ".join(f"{name} {ratio(one.gain(name))}" for name in more.rivals if name in fewest.seconds)
    machine = f"{ratio(one.machine[1])} ({one.machine[0]})" if one.machine else ""
    best = " to ".join(f"{ratio(race.ratio(race.best_rival))} {race.best_rival}" for race in (fewest, more) if race.rivals)
    threads, times = f"{fewest.threads} to {more.threads}", f"{time(fewest.seconds[OURS])} to {time(more.seconds[OURS])}"
    return [more.operator, one.size, more.direction, threads, times, f"**{ratio(one.gain(OURS))}**", rivals, machine, best]


def threads_note(run: Run) -> str:
    """How the threads of a run are to be read: what the machine says of its cores."""
    words = topology_in_words(run.machine)
    says = f"This machine has {words}" if words else "What shares a core on this machine is not known"
    return (
        f"How many times faster the same work got with more threads. {says}: what its own copy or matrix product gained in the same rounds "
        "is the measure. Peers of the measures run on one thread always."
    )


def _cell(race: Race, rival: str) -> str:
    if rival not in race.seconds:
        return ""
    text = ratio(race.ratio(rival))
    return f"**{text}**" if rival == race.best_rival else text


def summary(runs: Sequence[Run], link: str, images: Images = lambda run: ()) -> str:
    """One line per operator, direction and threads: the ratio to the best rival over all sizes, machine by machine.

    Args:
        runs: one per machine.
        link: where the whole page is.
        images: title and link of each plot of a run that belongs beneath its lines.
    """
    lines = []
    for run in runs:
        torch = run.machine.get("versions", {}).get("torch", "?")
        lines += [f"How many times faster than the best rival ({run.title}, torch {torch}):", "", *_summary(run), ""]
        for title, place in images(run):
            lines += [f"![{title}]({place})", ""]
    return "\n".join([*lines, f"All sizes, rivals, rates and memory: [{link}]({link})."]) + "\n"


def _summary(run: Run) -> list[str]:
    rows = []
    # Races of a series are left to the plots: their rivals are not compiled.
    for operator, races in by_operator([race for race in run.races if race.rivals and not race.series]).items():
        for direction, threads in dict.fromkeys((race.direction, race.threads) for race in races):
            some = [race for race in races if (race.direction, race.threads) == (direction, threads)]
            ratios = sorted(race.ratio(race.best_rival) for race in some)
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            best = ", ".join(dict.fromkeys(race.best_rival for race in some))
            span = ratio(ratios[0]) if len(ratios) == 1 else f"{ratio(ratios[0])} to {ratio(ratios[-1])}"
            rows.append([operator, direction, str(threads), str(len(some)), f"**{ratio(mean)}**", span, best])
    return table(["operator", "direction", "threads", "sizes", "geometric mean", "least to most", "best rivals"], rows)


def groups_table(profiles: Mapping[str, Profile]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the kinds of work: milliseconds and share of each in every profile, how many times the first is of the last.

    The last rows are all operators together, and a whole call without the profiler.
    """
    names = list(profiles)
    first, last = profiles[names[0]], profiles[names[-1]]
    sums = {name: one.groups() for name, one in profiles.items()}
    sides = len(names) > 1

    def cell(seconds: float, whole: float) -> str:
        return f"{time(seconds)} ({seconds / whole:.0%})"

    def times(before: float, after: float) -> list[str]:
        return [ratio(before / after) if after else ""] * sides

    rows = []
    for group in sums[names[0]]:
        if any(some[group] for some in sums.values()):
            cells = [cell(sums[name][group], profiles[name].seconds) for name in names]
            rows.append([group, *cells, *times(sums[names[0]][group], sums[names[-1]][group])])
    rows.append(["all operators", *(time(profiles[name].seconds) for name in names), *times(first.seconds, last.seconds)])
    if all(one.wall for one in profiles.values()):
        rows.append(["a call, not profiled", *(time(profiles[name].wall) for name in names), *times(first.wall, last.wall)])
    return ["kind of work", *names, *[f"{names[0]} / {names[-1]}"] * sides], rows


def profile_page(machine: Mapping[str, Any], profiles: Mapping[str, Mapping[str, Profile]]) -> str:
    """Where work spends its time, before and after, as Markdown.

    Args:
        machine: as `this_machine` gives it.
        profiles: by title of the work, its profiles by name, the last one ours.
    """
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("emc_fast", "torch"))
    lines = [
        f"{machine['cpu']}, instruction set {machine['isa']}; {versions}. Seconds within operators, as torch's profiler has them: its own",
        "cost is in them, and weighs more where there are many small operators. A kind holds all that an operator of this package does, or",
        "what stands in its place, with its backward pass: attention with its projections and norm; noise with what is drawn and its",
        "divergence; torch's products are those outside of these.",
    ]
    for title, some in profiles.items():
        header, rows = groups_table(some)
        lines += ["", f"### {title}", "", *table(header, rows), "", list(some.values())[-1].largest()]
    return "\n".join(lines) + "\n"


def insert(path: Path, text: str, markers: tuple[str, str] = (BEGIN, END)) -> bool:
    """Put a text between the two markers of a file; True if that changed the file.

    Raises:
        DataError: the file does not have each marker once, in order.
        OSError: it cannot be read or written.
    """
    from .._files import write_text

    begin, end = markers
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise DataError(
            f"{path}: takes the report between the lines {begin!r} and {end!r}, each once and in this order; they are not there"
        )
    head, rest = content.split(begin)
    new = f"{head}{begin}\n{text}{end}{rest.split(end)[1]}"
    if new != content:
        write_text(path, new)
    return new != content
