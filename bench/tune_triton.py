"""Searches the tiles of the Triton kernels on a GPU: a bounded list for each entry of the tables of `kernels/_configs.py`.

    python bench/tune_triton.py [--seconds 240] [--only TEXT ...] [--table kernels/_tuned.json] [--list]

Nothing searches while a model runs; this is the only place. For each entry the present tile and a few others are tried: a tile must pass
the tests' error rule before it is timed (one that does not compile, or is wrong, is named and left out), and replaces the present one where
it is faster by more than 3 % in the geometric mean over number types. The table is written after every entry, so that what was found before
the time ran out is kept; entries for other devices stay. Afterwards renew what the compile gate expects:
`python tools/triton_resources.py --write`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.gpu_cases import Size, Subject, subject_of
from bench.measured import text_of
from bench.race import Case, Contestant, bound, in_turns
from emc_fast import __version__
from emc_fast.kernels import _configs
from emc_fast.kernels._configs import AttentionConfig, Band, RowConfig
from emc_fast.ops import use_backend
from emc_fast.reporting import OURS
from emc_fast.reporting.machine import this_gpu

MARGIN = 1.03
BUDGET = 0.05
Config = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One entry of a table, without its capability; what shows its speed, and the tiles to try beside the present one."""

    table: str
    key: tuple[Any, ...]  # with 0 in the place of the capability
    subject: Subject
    size: Size
    small: Size
    direction: str
    dtypes: tuple[torch.dtype, ...]
    tiles: tuple[Config, ...]

    def __str__(self) -> str:
        return f"{self.table} {' '.join(str(part) for part in self.key if part != 0)}"

    def key_on(self, capability: int) -> tuple[Any, ...]:
        return (self.key[0], capability, *self.key[2:])


@dataclass
class Found:
    config: Config
    present: Config
    milliseconds: dict[Config, float] = field(default_factory=dict)
    refused: dict[Config, str] = field(default_factory=dict)


def entries() -> list[Entry]:
    """What is searched, the most used first: wide rows and half types before narrow rows and float32."""
    found = []
    shown_by = {"philox": "dropout", "attention_block": "attention_block"}
    for size, width in (("wide", 128), ("narrow", 64)):
        for operator in ("fusion_kl", "reparameterize", "philox", "attention_block", "fusion_kl_categorical"):
            subject = subject_of(shown_by.get(operator, operator))
            block = operator == "attention_block"
            shapes = ((16, 750, width, 4), (2, 70, width, 4)) if block else ((48000, width), (300, width))
            columns = 64 if size == "narrow" else 1024
            tiles = tuple(RowConfig(n, columns, w) for n, w in ((512, 2), (1024, 2), (512, 4), (1024, 4), (2048, 4), (2048, 8), (4096, 8)))
            found.append(Entry("rows", (operator, 0, size), subject, *shapes, "forward+backward", subject.dtypes, tiles))
    bands = (Band(32, 16, 1), Band(64, 32, 1), Band(64, 32, 2), Band(128, 32, 4))
    subject = subject_of("dtw")
    found.append(Entry("bands", ("dtw", 0), subject, subject.sizes[0], subject.small, "forward", subject.dtypes, bands))
    subject = subject_of("attention")
    for dtype in (torch.bfloat16, torch.float32):
        for width in (32, 64, 128):
            shapes = ((16, 750, 4, width), (2, 70, 4, width))
            for step in ("forward", "backward queries", "backward keys"):
                direction = "forward" if step == "forward" else "forward+backward"
                found.append(
                    Entry("attention", (step, 0, dtype.itemsize, width), subject, *shapes, direction, (dtype,), attention_tiles(dtype))
                )
    return found


def attention_tiles(dtype: torch.dtype) -> tuple[Config, ...]:
    """Queries, keys, warps, stages."""
    if dtype == torch.float32:
        sizes = ((32, 32, 4, 1), (32, 64, 4, 2), (64, 32, 4, 2), (64, 64, 8, 1))
    else:
        sizes = ((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 4, 2), (128, 64, 8, 3), (128, 128, 8, 2))
    return tuple(AttentionConfig(*size) for size in sizes)


@contextmanager
def tile(entry: Entry, capability: int, config: Config) -> Iterator[None]:
    """The table with this tile in the entry's place."""
    table, _ = _configs.TABLES[entry.table]
    key = entry.key_on(capability)
    before = table.get(key)
    table[key] = config
    try:
        yield
    finally:
        if before is None:
            del table[key]
        else:
            table[key] = before


def check(entry: Entry, dtype: torch.dtype, device: str) -> None:
    """Raises where the kernels are wrong, or do not compile, with the tile that is in the table."""
    replace(entry.subject, small=entry.small).gate("triton", dtype, device)


def timed(entry: Entry, dtype: torch.dtype, device: str) -> float:
    """Milliseconds with the tile that is in the table."""
    subject = entry.subject
    case = Case(subject.operator, "", subject.function, subject.inputs(entry.size, dtype, device), {}, differentiate=subject.differentiate)
    ours = Contestant(bound(subject.function, case, entry.direction), partial(use_backend, "triton"), device)
    times, _ = in_turns({OURS: ours}, OURS, BUDGET)
    return 1e3 * statistics.median(times[OURS])


def search(entry: Entry, capability: int, device: str, timer: Callable[[Entry, torch.dtype, str], float] = timed) -> Found:
    """Try the entry's tiles. The present one is timed before and after the others, and its better time counts: clocks drift."""
    table, _ = _configs.TABLES[entry.table]
    present = table.get(entry.key_on(capability)) or table[entry.key]
    found = Found(present, present)
    for config in (present, *(c for c in entry.tiles if c != present), present):
        try:
            with tile(entry, capability, config):
                if config not in found.milliseconds:
                    for dtype in entry.dtypes:
                        check(entry, dtype, device)
                taken = statistics.geometric_mean(timer(entry, dtype, device) for dtype in entry.dtypes)
            found.milliseconds[config] = min(taken, found.milliseconds.get(config, taken))
        except Exception as error:  # too many registers or too much shared memory is an exception of Triton's
            found.refused[config] = f"{type(error).__name__}: {error}"[:300]
    if found.milliseconds:
        fastest = min(found.milliseconds, key=found.milliseconds.__getitem__)
        if found.milliseconds.get(present, float("inf")) > MARGIN * found.milliseconds[fastest]:
            found.config = fastest
    return found


def main(arguments: list[str] | None = None, timer: Callable[[Entry, torch.dtype, str], float] = timed, device: str = "cuda") -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="an entry that has not begun by then is left out, and named")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="entries whose name holds one of these (see --list)")
    parser.add_argument("--table", type=Path, default=_configs.TUNED, help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="name the entries and end")
    options = parser.parse_args(arguments)
    chosen = [entry for entry in entries() if not options.only or any(text in str(entry) for text in options.only)]
    if options.list:
        print("\n".join(map(str, chosen)))
        return 0
    here = this_gpu() if device == "cuda" else {"name": device, "capability": 0, "triton": version("triton")}
    known = json.loads(options.table.read_text())["measurements"]
    _configs.take_tuned(options.table)
    deadline, wrong = time.monotonic() + options.seconds, False
    for entry in chosen:
        if time.monotonic() > deadline:
            print(f"{entry}: out of time")
            continue
        found = search(entry, here["capability"], device, timer)
        wrong = wrong or found.present in found.refused
        print(f"{entry}: {found}", flush=True)
        if found.present not in found.milliseconds:
            continue
        key = list(entry.key_on(here["capability"]))
        times = round(found.milliseconds[found.present] / found.milliseconds[found.config], 3)
        row = {"table": entry.table, "key": key, "config": list(found.config), "times_as_fast": times, "device": here["name"]}
        row["versions"] = f"emc_fast {__version__}, torch {torch.__version__}, triton {here['triton']}"
        known = [*(other for other in known if (other["table"], other["key"]) != (entry.table, key)), row]
        options.table.write_text(text_of(known))
        _configs.TABLES[entry.table][0][tuple(key)] = found.config  # the entries that follow are timed with it
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
