"""Makes of races (`bench/gpu_ops.py`) the table by which `auto` chooses between CUDA C++ and Triton.

    python bench/preferences.py OUT.json [MORE.json ...]

For each operator, compute capability and dtype that both back ends were raced on, the faster one is preferred: by the geometric mean of the
ratios over all sizes and directions, and Triton only where it is faster by more than 5 %. Entries of the table
(emc_fast/ops/_preferences.json) for other operators, devices and dtypes stay.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measured import text_of
from emc_fast.ops._backend import OPERATORS
from emc_fast.ops._preferences import TABLE, Measurement, read
from emc_fast.reporting import OURS, Run, read_run

MARGIN = 1.05


def measured(run: Run) -> list[Measurement]:
    """What one run of the races says."""
    gpu, versions = run.machine["gpu"], run.machine["versions"]
    text = f"emc_fast {versions['emc_fast']}, torch {versions['torch']}, triton {gpu['triton']}, CUDA {gpu['cuda']}"
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for race in run.races:
        taken = {race.backend: race.seconds[OURS], **race.others}
        # What is composed of operators, as EA, has no choice of its own.
        if {"cuda", "triton"} <= taken.keys() and race.operator in OPERATORS:
            ratios[race.operator, race.dtype].append(taken["cuda"] / taken["triton"])
    found = []
    for (operator, dtype), values in ratios.items():
        gain = statistics.geometric_mean(values)  # of Triton over CUDA C++
        backend, times = ("triton", gain) if gain > MARGIN else ("cuda", 1 / gain)
        found.append(Measurement(operator, gpu["capability"], dtype, backend, round(times, 3), len(values), gpu["name"], text))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", type=Path, nargs="+")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    table = read(options.table)
    for path in options.races:
        run = read_run(path)
        if "gpu" not in run.machine:
            raise SystemExit(f"{path}: holds races of {run.title}, and none of a GPU")
        for row in measured(run):
            table[row.operator, row.capability, row.dtype] = row
            print(f"{row.operator} on {row.capability} in {row.dtype}: {row.backend}, {row}")
    options.table.write_text(text_of(asdict(table[key]) for key in sorted(table)))


if __name__ == "__main__":
    main()
