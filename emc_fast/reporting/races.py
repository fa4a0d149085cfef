"""Races as `pytest bench/` records them: one per benchmark, under ``extra_info`` of pytest-benchmark's JSON; written and read here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError

OURS = "emc_fast"
UNITS = {"copy": ("bytes", "GB/s"), "matrix product": ("flops", "GFLOP/s"), "exponential": ("exponentials", "Gexp/s")}
"""What the machine is asked to do for a limit: the amount of work that it stands for, and the unit of a rate."""


@dataclass
class Race:
    """One operator at one size in one direction, against its rivals, on one machine in one run.

    Attributes:
        operator, size, direction: which; `size` is for people, `shape` has its numbers by name (B, T, d, H).
        threads: of torch and of the kernels.
        backend: what served ours, with the instruction set.
        dtype: of the inputs; empty in files of versions that did not record it.
        seconds: median of a call for each contestant; `OURS` is ours.
        others: the same for our own other back ends, which are no rivals.
        quartiles: for each rival the lower and upper quartile, over rounds, of how many times faster ours was.
        series: name of the number in `shape` (or ``threads``) that grows along a series of races; empty for a race by itself.
        work: the least that must be moved or computed: ``bytes``, ``flops``, ``exponentials``.
        limits: seconds that this machine took for that much work in the same rounds, by the names of `UNITS`.
        peak_bytes: most memory beyond what was there before the call, for each contestant; empty where it was not asked for.
        dispatched: operators of torch that one call runs, for each contestant that is not compiled.
        unmeasured: contestants that could not be measured, with the reason.
        rounds, calls_per_round: behind the medians; calls of ours.
    """

    operator: str
    size: str
    direction: str
    threads: int
    backend: str = ""
    dtype: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, list[float]] = field(default_factory=dict)
    shape: dict[str, int] = field(default_factory=dict)
    series: str = ""
    work: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    dispatched: dict[str, int] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    calls_per_round: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes races of two runs the same race."""
        return self.operator, self.size, self.direction, self.threads

    @property
    def name(self) -> str:
        """The key in words."""
        return f"{self.operator}, {self.size}, {self.direction}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def rivals(self) -> list[str]:
        """Everybody but ours."""
        return [name for name in self.seconds if name != OURS]

    def ratio(self, rival: str) -> float:
        """How many times faster ours is than a rival."""
        return self.seconds[rival] / self.seconds[OURS]

    def best_of(self, rivals: Iterable[str]) -> str:
        """The fastest of some rivals; the empty string if there is none."""
        return min(rivals, key=lambda name: self.seconds[name], default="")

    @property
    def best_rival(self) -> str:
        """The fastest rival, or the empty string."""
        return self.best_of(self.rivals)

    @property
    def limit(self) -> str:
        """Of what the machine has to do, that which takes it longest; the empty string where nothing was measured."""
        return max(self.limits, key=lambda name: self.limits[name], default="")

    @property
    def fraction(self) -> float:
        """The machine's own time for the limiting work over ours: 1 means that nothing is left to gain."""
        return self.limits[self.limit] / self.seconds[OURS]

    def rates(self) -> tuple[float, float, str]:
        """Our rate at the limiting work, the machine's, and the unit."""
        amount, unit = UNITS[self.limit]
        scale = self.work[amount] * 1e-9
        return scale / self.seconds[OURS], scale / self.limits[self.limit], unit

    def extra_info(self) -> dict[str, Any]:
        """As it stands in the JSON file: what was measured, and what follows from it for whoever reads the file."""
        info: dict[str, Any] = {
            "operator": self.operator, "size": self.size, "direction": self.direction, "threads": self.threads, "backend": self.backend,
            "dtype": self.dtype, "others_us": {name: value * 1e6 for name, value in self.others.items()},
            "median_us": {name: value * 1e6 for name, value in self.seconds.items()},
            "ratio": {name: self.ratio(name) for name in self.rivals}, "quartiles": self.quartiles, "best_rival": self.best_rival,
            "shape": self.shape, "series": self.series, "work": self.work,
            "limit_us": {name: value * 1e6 for name, value in self.limits.items()},
            "peak_bytes": self.peak_bytes, "dispatched": self.dispatched, "unmeasured": self.unmeasured,
            "rounds": self.rounds, "calls_per_round": self.calls_per_round,
        }  # fmt: skip
        if self.limit:
            rate, yardstick, unit = self.rates()
            info |= {"limit": self.limit, "fraction": self.fraction, "rate": rate, "yardstick": yardstick, "unit": unit}
        return rounded({name: value for name, value in info.items() if value not in ({}, "")})

    @classmethod
    def from_info(cls, info: Mapping[str, Any], where: str) -> Race:
        """The race that `extra_info` describes; `where` names file and benchmark in errors.

        Raises:
            DataError: something is missing or of another kind, by name.
        """

        def get(name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
            value = info.get(name, default)
            if value is None:
                raise DataError(f"{where} has no extra_info.{name}: not written by `pytest bench/` of this version")
            if not isinstance(value, kind):
                raise DataError(f"{where}: extra_info.{name} is {value!r}, which is not what `pytest bench/` writes there")
            return value

        def numbers(name: str, *, required: bool = False, scale: float = 1.0) -> dict[str, Any]:
            found = get(name, dict, None if required else {})
            for key, value in found.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                    raise DataError(f"{where}: extra_info.{name} has {value!r} for {key!r}; it takes numbers from 0 on")
            return {key: value * scale if scale != 1.0 else value for key, value in found.items()}

        seconds = numbers("median_us", required=True, scale=1e-6)
        if not seconds.get(OURS):
            raise DataError(f"{where}: extra_info.median_us has no time of {OURS!r}, only {', '.join(seconds) or 'nothing'}")
        if idle := [name for name, value in seconds.items() if not value]:
            raise DataError(f"{where}: extra_info.median_us has 0 for {', '.join(idle)}")
        limits = {name: value for name, value in numbers("limit_us", scale=1e-6).items() if name in UNITS}
        work = numbers("work")
        if lost := [UNITS[name][0] for name in limits if UNITS[name][0] not in work]:
            raise DataError(f"{where}: extra_info.work has no {lost[0]!r}, which extra_info.limit_us needs")
        return cls(
            get("operator", str), get("size", str), get("direction", str), get("threads", int), get("backend", str, ""),
            dtype=get("dtype", str, ""), seconds=seconds, others=numbers("others_us", scale=1e-6), quartiles=get("quartiles", dict, {}),
            shape=numbers("shape"), series=get("series", str, ""), work=work,
            limits=limits, peak_bytes=numbers("peak_bytes"), dispatched=numbers("dispatched"), unmeasured=get("unmeasured", dict, {}),
            rounds=get("rounds", int, 0), calls_per_round=get("calls_per_round", int, 0),
        )  # fmt: skip


def rounded(value: Any, digits: int = 5) -> Any:
    """The same with floats to so many significant digits: more would be noise, and makes the file large."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value


@dataclass
class Run:
    """Races of one machine, from one file or several.

    Attributes:
        paths: the files.
        machine: ``cpu``, ``cores``, ``isa`` and ``versions`` by package, as `bench/conftest.py` writes them; ``gpu`` where the races ran on
            one, as `reporting.machine.this_gpu` has it.
        commit, dirty: of the tree that was measured; dirty means that it held changes.
        date: of the measurement, ISO format.
        limits: rates of the machine in that run, in GB/s, GFLOP/s or 1e9 exponentials a second, by what was done; may be empty.
        races: in the order in which they ran.
    """

    paths: list[Path]
    machine: dict[str, Any]
    commit: str
    dirty: bool
    date: str
    races: list[Race]
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The machine in a few words: the processor, or the GPU where the races ran on one."""
        if gpu := self.machine.get("gpu"):
            return str(gpu["name"])
        cores = self.machine.get("cores", 0)
        return f"{self.machine['cpu']}, {cores} core{'s' * (cores != 1)}"

    @property
    def slug(self) -> str:
        """The same as a file name."""
        return slug(self.title)


def write_compact(sources: Sequence[Path], target: Path) -> None:
    """Copy files of races of one machine into one with a line per benchmark: small, and changes show line by line.

    The first one says what machine and when; of what the machine can do, the best of all counts.
    """
    from .._files import write_text

    first, *others = (json.loads(source.read_text(encoding="utf-8")) for source in sources)
    lines = [json.dumps(item, ensure_ascii=False) for content in (first, *others) for item in content["benchmarks"]]
    limits = first["machine_info"].get("limits", {})
    for content in others:
        for name, rate in content["machine_info"].get("limits", {}).items():
            limits[name] = max(rate, limits.get(name, rate))
    content = {name: value for name, value in first.items() if name != "benchmarks"}
    head = json.dumps(content, ensure_ascii=False, indent=1).rstrip().removesuffix("}").rstrip()
    write_text(target, f'{head},\n "benchmarks": [\n' + ",\n".join(lines) + "\n]}\n")


def slug(text: str) -> str:
    """Words of a text as a file name: lower case, without trademarks, with hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((?:r|tm)\)", "", text.lower())))


def read_run(path: Path) -> Run:
    """Read one JSON file of `pytest bench/ --benchmark-json`.

    Raises:
        DataError: the file is not such a file, is cut off or lacks something; it is named with what is missing.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text: {error}") from None
    except json.JSONDecodeError as error:
        cut = "is empty" if not error.doc.strip() else f"is not JSON, or was cut off (line {error.lineno}: {error.msg})"
        raise DataError(f"{path}: {cut}; a file of `pytest bench/ --benchmark-json=FILE` is taken") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; a file of `pytest bench/ --benchmark-json=FILE` is taken")
    for name, kind in (("benchmarks", list), ("machine_info", dict), ("commit_info", dict), ("datetime", str)):
        if not isinstance(content.get(name), kind):
            raise DataError(f"{path}: has no {name!r}, so it is not a file of `pytest bench/ --benchmark-json=FILE`")
    machine, commit = content["machine_info"], content["commit_info"]
    if not isinstance(machine.get("cpu"), str):
        raise DataError(f"{path}: machine_info has no name of the processor ('cpu'): not written by `pytest bench/` of this version")
    races = []
    for number, item in enumerate(content["benchmarks"]):
        name = item.get("name", f"number {number}") if isinstance(item, dict) else f"number {number}"
        where = f"{path}: benchmark {name}"
        if not isinstance(item, dict) or not isinstance(item.get("extra_info"), dict):
            raise DataError(f"{where} has no extra_info: not written by `pytest bench/`")
        races.append(Race.from_info(item["extra_info"], where))
    if not races:
        raise DataError(f"{path}: holds no benchmark")
    limits = machine.get("limits", {})
    return Run([path], machine, str(commit.get("id") or "unknown"), bool(commit.get("dirty")), content["datetime"], races, limits)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read files, and all JSON files under folders, oldest first.

    Raises:
        DataError: a folder without any, a path that is not there, or a file that cannot be used.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob("*.json"))
            if not found:
                raise DataError(f"{path}: holds no JSON file; `pytest bench/ --benchmark-json=FILE` writes one")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: is not there")
    return sorted((read_run(path) for path in files), key=lambda run: run.date)


def merge(runs: Sequence[Run]) -> list[Run]:
    """One run per machine: what a later file measured again replaces what an earlier one has."""
    machines: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.date):
        machines.setdefault(run.slug, []).append(run)
    merged = []
    for group in machines.values():
        races = {race.key: race for run in group for race in run.races}
        last = group[-1]
        commits = list(dict.fromkeys(run.commit for run in group))
        paths = [path for run in group for path in run.paths]
        dirty = any(run.dirty for run in group)
        limits = {name: rate for run in group for name, rate in run.limits.items()}
        merged.append(Run(paths, last.machine, " ".join(commits), dirty, last.date, list(races.values()), limits))
    return merged


@dataclass(frozen=True)
class Scaling:
    """The same work with the fewest threads and with more.

    Attributes:
        fewest, more: the two races of a series along threads.
    """

    fewest: Race
    more: Race

    @property
    def size(self) -> str:
        """Of the work, without the series."""
        return self.more.size.removesuffix(", along threads")

    def gain(self, contestant: str) -> float:
        """How many times faster a contestant got by the threads."""
        return self.fewest.seconds[contestant] / self.more.seconds[contestant]

    @property
    def machine(self) -> tuple[str, float] | None:
        """What limits the work, and how many times faster the machine itself did that with more threads; None where it was not measured.

        Exponentials do not count: of the kernels' own it is assumed that threads share them out.
        """
        name = self.more.limit
        if name not in ("copy", "matrix product") or name not in self.fewest.limits:
            return None
        return name, self.fewest.limits[name] / self.more.limits[name]


def scalings(run: Run) -> list[Scaling]:
    """All work of a run that was raced along threads, one entry for each number of threads beyond the least."""
    found: dict[tuple[str, str, str], list[Race]] = {}
    for race in run.races:
        if race.series == "threads":
            found.setdefault((race.operator, race.size, race.direction), []).append(race)
    ordered = [sorted(races, key=lambda race: race.threads) for races in found.values()]
    return [Scaling(races[0], more) for races in ordered for more in races[1:]]
