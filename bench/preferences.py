"""Makes of races (`bench/gpu_ops.py`) the table by which `auto` chooses between CUDA C++ and Triton.

    python bench/preferences.py OUT.json [MORE.json ...]

For each operator, compute capability and dtype that both back ends were raced on, the faster one is preferred: by the geometric mean of the
ratios over all sizes and directions, and Triton only where it is faster by more than 5 %. Entries of the table
(emc_fast/ops/_preferences.json) for other operators, devices and dtypes stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measured import text_of
from emc_fast.ops._backend import OPERATORS
from emc_fast.ops._preferences import TABLE, Measurement, read

MARGIN = 1.05


def measured(report: dict[str, Any]) -> list[Measurement]:
    """What one run of the races says."""
    facts = report["facts"]
    versions = (
        f"emc_fast {facts['emc_fast']}, torch {facts['torch']}, triton {facts['triton']}, library by {facts['library'].get('cuda', '')}"
    )
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for result in report["results"]:
        taken = result.get("median_ms", {})
        # What is composed of operators, as EA, has no choice of its own.
        if {"cuda", "triton"} <= taken.keys() and result["operator"] in OPERATORS:
            ratios[result["operator"], result["dtype"]].append(taken["cuda"] / taken["triton"])
    found = []
    for (operator, dtype), values in ratios.items():
        gain = statistics.geometric_mean(values)  # of Triton over CUDA C++
        backend, times = ("triton", gain) if gain > MARGIN else ("cuda", 1 / gain)
        found.append(Measurement(operator, facts["capability"], dtype, backend, round(times, 3), len(values), facts["device"], versions))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", type=Path, nargs="+")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    table = read(options.table)
    for path in options.races:
        for row in measured(json.loads(path.read_text())):
            table[row.operator, row.capability, row.dtype] = row
            print(f"{row.operator} on {row.capability} in {row.dtype}: {row.backend}, {row}")
    options.table.write_text(text_of(asdict(table[key]) for key in sorted(table)))


if __name__ == "__main__":
    main()
