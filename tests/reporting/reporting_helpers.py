"""Small files of races, as `pytest bench/` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emc_fast.reporting import OURS, Race

MACHINE = {
    "cpu": "Test(R) Processor",
    "cores": 2,
    "threads_per_core": 2,
    "virtual": False,
    "isa": "v4",
    "versions": {"emc_fast": "0", "torch": "2.13.0"},
    "limits": {"copy, 1 thread": 12.0, "torch.exp, 1 thread": 1.0},
}


def race(operator: str = "op", size: str = "4 x 8", direction: str = "forward", threads: int = 1, **rest: Any) -> Race:
    """A race in which ours takes 1 ms, eager 4 and the fused one 2, unless `seconds` says otherwise."""
    rest.setdefault("seconds", {OURS: 1e-3, "eager": 4e-3, "sdpa": 2e-3})
    return Race(operator, size, direction, threads, "cpu v4", **rest)


def content(*races: Race, date: str = "2026-01-01T00:00:00", commit: str = "a" * 40, **machine: Any) -> dict[str, Any]:
    return {
        "machine_info": MACHINE | machine,
        "commit_info": {"id": commit, "dirty": False},
        "benchmarks": [{"name": f"test[{i}]", "group": one.operator, "extra_info": one.extra_info()} for i, one in enumerate(races)],
        "datetime": date,
        "version": "5",
    }


def write(path: Path, *races: Race, **rest: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(*races, **rest)))
    return path


def series(memory: bool = False) -> list[Race]:
    """Along T, with peak memory or not."""
    peaks = [{OURS: t * 2**10, "eager": t * t * 2**10} if memory else {} for t in (8, 64, 512)]
    return [
        race(size=f"1 x {t}", seconds={OURS: t * 1e-6, "eager": t * t * 1e-6}, shape={"B": 1, "T": t}, series="T", peak_bytes=peak)
        for t, peak in zip((8, 64, 512), peaks, strict=True)
    ]


def along_threads(*numbers: int, operator: str = "op", **rest: Any) -> list[Race]:
    """Work on which ours gains as many times as there are threads, and neither eager nor a copy gains anything from two."""
    return [
        race(
            operator,
            "4 x 8, along threads",
            threads=n,
            series="threads",
            seconds={OURS: 1e-3 / n, "eager": 4e-3},
            work={"bytes": 1e6},
            limits={"copy": 5e-4},
            **rest,
        )
        for n in numbers
    ]
