"""Operators on a GPU: CUDA C++ and Triton beside each other, PyTorch, and the device's own copy, products and exponentials.

    python bench/gpu_ops.py OUT.json [--seconds 120] [--only OPERATOR ...] [--compile] [--device cuda] [--quick]

The races of `pytest bench/ -m gpu` without pytest-benchmark and against a clock: an operator is timed only after it has passed the tests'
error rule on a smaller input, in rounds that everybody takes part in, by the device's events. OUT.json is written after every race, in the
form that `emc-fast bench report` reads; what failed and what time ran out for stands in it by name. `bench/preferences.py` makes of it
the table by which the back end is chosen, `bench/gpu_targets.py` holds it against what is aimed at. ``--compile`` races `torch.compile` of
the plain form too, which takes most of the time of a run. ``--device cpu --quick`` goes through everything on a CPU, with small sizes, to
see that it runs.

The exit status is 1 where an operator is wrong or fails, not where a back end cannot serve it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.gpu_cases import SUBJECTS, all_races
from bench.gpu_targets import TARGETS
from bench.limits import device_limits
from bench.race import Settings, run_race, table
from emc_fast._files import write_text
from emc_fast.reporting import Race
from emc_fast.reporting.machine import this_gpu, this_machine
from emc_fast.reporting.races import rounded

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 0.25
"""Seconds of a race, without its gate and what it does once."""


def commit() -> dict[str, Any]:
    """Of the tree that is measured, as pytest-benchmark has it; unknown where there is no repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": "unknown", "dirty": False}


def content(races: list[Race], machine: dict[str, Any], failed: dict[str, str], left_out: list[str], at: dict[str, Any]) -> dict[str, Any]:
    """The file: of the form of pytest-benchmark's, with what did not come about."""
    return {
        "machine_info": machine,
        "commit_info": at,
        "benchmarks": [
            {"name": race.name, "group": f"{race.operator} {race.direction}", "extra_info": race.extra_info()} for race in races
        ],
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": "5",
        "failed": failed,
        "left_out": left_out,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(subject.operator for subject in SUBJECTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="what has not begun by then is left out, and named")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="OPERATOR", help=", ".join(names))
    parser.add_argument("--compile", action="store_true", help="race torch.compile of the plain form too")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    torch.set_num_threads(1)
    machine = this_machine()
    if options.device == "cuda":
        machine |= {"gpu": this_gpu(), "limits": rounded(device_limits())}
    races: list[Race] = []
    failed: dict[str, str] = {}
    left_out: list[str] = []
    at, quick = commit(), set()
    order = all_races()
    if options.compile:  # compiling takes long: first what is aimed at
        aimed = {(target.operator, target.size, target.direction) for target in TARGETS if target.against == "compile"}
        order.sort(key=lambda race: (race[0].operator, race[0].size_in_words(race[1], race[2]), race[3]) not in aimed)
    for subject, size, dtype, direction in order:
        if options.quick:
            if (id(subject), dtype, direction) in quick:
                continue
            quick.add((id(subject), dtype, direction))
            size = subject.small
        if subject.operator not in options.only or (options.compile and not subject.compiled):
            continue
        name = f"{subject.operator} {'x'.join(map(str, size))} {str(dtype).removeprefix('torch.')} {direction}"
        if time.monotonic() > deadline:
            left_out.append(name)
            continue
        if options.device == "cuda":
            torch.cuda.empty_cache()  # what the last race's sizes left, the next one's would not fit into
        within = min(120.0, max(1.0, deadline - time.monotonic()))
        try:
            race = run_race(subject.case(size, dtype, options.device), direction, Settings(BUDGET, options.compile, within, 1))
        except Exception as error:  # one race that fails must not take the others along
            failed[name] = f"{type(error).__name__}: {error}"[:2000]
            print(f"{name} FAILED: {failed[name]}", flush=True)
        else:
            races.append(race)
            print("\n".join(table([race])), flush=True)
        write_text(options.out, json.dumps(content(races, machine, failed, left_out, at), indent=1))
    if left_out:
        print("out of time for " + "; ".join(left_out))
    write_text(options.out, json.dumps(content(races, machine, failed, left_out, at), indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
