"""Holds races of a GPU against what is aimed at: a row for each target and race, in Markdown.

    python bench/gpu_targets.py RACES.json [MORE.json ...]

The files are those of `bench/gpu_ops.py` and of `pytest bench/ -m gpu`. A target that no race of them measured says so. The aims are those
of an H200; on other devices the table tells how far they are from these. The exit status is 0 whatever was reached: this reports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emc_fast.reporting import Race, Run, read_run
from emc_fast.reporting.page import ratio
from emc_fast.reporting.page import table as in_markdown

GROWTH = 1.1
"""How much more than in proportion memory may grow and count as O(T)."""


@dataclass(frozen=True)
class Target:
    """A race that must be so many times faster than the best of the rivals whose names begin so; for `copy`, reach such a share of it."""

    operator: str
    size: str
    direction: str
    least: float
    against: str

    def measured(self, races: Sequence[Race]) -> tuple[float, str] | None:
        """What was reached, and against whom; None where no race tells."""
        for race in races:
            if (race.operator, race.size, race.direction) != (self.operator, self.size, self.direction):
                continue
            if self.against == "copy" and race.limit == "copy":
                return race.fraction, "copy"
            rival = race.best_of(name for name in race.rivals if name.startswith(self.against))
            if rival:
                return race.ratio(rival), rival
        return None

    @property
    def aim(self) -> str:
        return f"{self.least:g} of copy" if self.against == "copy" else f"{self.least:g}x {self.against}"


def _targets() -> Iterator[Target]:
    both = ("forward", "forward+backward")
    for operator, rows, dtype in product(("fusion_kl", "reparameterize"), (48000, 3_100_000), ("", " bfloat16")):
        for direction in both:
            yield Target(operator, f"{rows} x 128{dtype}", direction, 0.85, "copy")
        yield Target(operator, f"{rows} x 128{dtype}", both[1], 1.3, "compile")
    for heads, dtype in product(("4 x 32", "12 x 30"), ("bfloat16", "float16")):
        for direction, least in zip(both, (1.5, 1.2), strict=True):
            yield Target("attention", f"64 x 750 x {heads} {dtype}", direction, least, "sdpa")
    for dtype in ("", " bfloat16"):
        yield Target("emotion_attention", f"64 x 750 x 128 x 4{dtype}", both[1], 1.5, "compile")
    for frames, dtype in product((8, 64), ("", " bfloat16")):
        yield Target("emotion_attention", f"1 x {frames} x 128 x 4{dtype}, a CUDA graph", both[0], 3, "compile")
    yield Target("dtw", "4096 x 750 x 25", both[0], 20, "one CPU core")


TARGETS = tuple(_targets())


def memory_rows(races: Sequence[Race]) -> list[list[str]]:
    """Attention's memory along T: in proportion to it, or not."""
    rows = []
    for direction in ("forward", "forward+backward"):
        some = [r for r in races if r.operator == "attention" and r.series == "T" and r.direction == direction and r.peak_bytes]
        if len(some) < 2:
            rows.append(["attention, memory", "along T", direction, "O(T)", "not measured", ""])
            continue
        few, many = (pick(some, key=lambda race: race.shape["T"]) for pick in (min, max))
        frames = many.shape["T"] / few.shape["T"]
        ours = many.peak_bytes["emc_fast"] / max(few.peak_bytes["emc_fast"], 1)
        text = f"{ours:.3g} times the bytes for {frames:g} times the frames"
        rows.append(["attention, memory", "along T", direction, "O(T)", text, "reached" if ours <= GROWTH * frames else "MISSED"])
    return rows


def rows_of(races: Sequence[Race]) -> list[list[str]]:
    """A row for each target."""
    rows = []
    for target in TARGETS:
        found = target.measured(races)
        text, verdict = "not measured", ""
        if found:
            value, rival = found
            text = f"{value:.2f} of copy" if rival == "copy" else f"{ratio(value)} {rival}"
            verdict = "reached" if value >= target.least else "MISSED"
        rows.append([target.operator, target.size, target.direction, target.aim, text, verdict])
    return rows + memory_rows(races)


def report(runs: Sequence[Run]) -> str:
    """All targets in a table, under the device that was measured."""
    races = [race for run in runs for race in run.races]
    header = ["operator", "size", "direction", "aim", "measured", ""]
    return "\n".join([", ".join(dict.fromkeys(run.title for run in runs)) + ":", "", *in_markdown(header, rows_of(races))])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    print(report([read_run(path) for path in options.races]))


if __name__ == "__main__":
    main()
