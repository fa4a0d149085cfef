"""Files of races: read back as written, and every kind of damage named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reporting_helpers import content, race, write

from emc_fast.errors import DataError
from emc_fast.reporting import OURS, merge, read_run, read_runs
from emc_fast.reporting.races import slug, write_compact


def test_a_race_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = race(
        quartiles={"eager": [3.9, 4.1]},
        shape={"B": 4, "T": 8},
        series="T",
        work={"flops": 2e9, "exponentials": 1e6},
        limits={"matrix product": 5e-4, "exponential": 8e-4},
        peak_bytes={OURS: 1024, "eager": 4096},
        dispatched={OURS: 1, "eager": 7},
        unmeasured={"compile(eager)": "did not finish in 300 s"},
        rounds=9,
        calls_per_round=3,
    )
    run = read_run(write(tmp_path / "run.json", one))
    assert vars(run.races[0]).keys() == vars(one).keys()
    for name, value in vars(one).items():
        assert vars(run.races[0])[name] == (pytest.approx(value) if name in ("seconds", "limits") else value)
    assert run.title == "Test(R) Processor, 2 cores"
    assert run.slug == "test-processor-2-cores"


def test_derived_figures() -> None:
    one = race(work={"flops": 2e6, "exponentials": 1e6}, limits={"matrix product": 5e-4, "exponential": 8e-4})
    assert one.best_rival == "sdpa"
    assert one.ratio("sdpa") == pytest.approx(2)
    assert one.limit == "exponential"
    assert one.fraction == pytest.approx(0.8)
    assert one.rates() == pytest.approx((1.0, 1.25, "Gexp/s"))
    info = one.extra_info()
    assert (info["best_rival"], info["limit"], info["unit"]) == ("sdpa", "exponential", "Gexp/s")
    assert info["ratio"] == pytest.approx({"eager": 4, "sdpa": 2})


def _without(*names: str) -> dict[str, Any]:
    whole = content(race())
    inner: dict[str, Any] = whole
    for name in names[:-1]:
        inner = inner[int(name) if name.isdigit() else name]  # type: ignore[index]
    del inner[names[-1]]
    return whole


def _with(value: Any, *names: str) -> dict[str, Any]:
    whole = content(race())
    inner: Any = whole
    for name in names[:-1]:
        inner = inner[int(name) if name.isdigit() else name]
    inner[names[-1]] = value
    return whole


INFO = ("benchmarks", "0", "extra_info")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("not json", "is not JSON"),
        (json.dumps(content(race()))[:-200], "was cut off"),
        ("[]", "holds a list"),
        (_without("benchmarks"), "no 'benchmarks'"),
        (_without("machine_info"), "no 'machine_info'"),
        (_without("datetime"), "no 'datetime'"),
        (_without("machine_info", "cpu"), "'cpu'"),
        (_with([], "benchmarks"), "holds no benchmark"),
        (_with([3], "benchmarks"), "benchmark number 0 has no extra_info"),
        (_without(*INFO), r"benchmark test\[0\] has no extra_info"),
        (_without(*INFO, "median_us"), "no extra_info.median_us"),
        (_without(*INFO, "operator"), "no extra_info.operator"),
        (_without(*INFO, "threads"), "no extra_info.threads"),
        (_with("one", *INFO, "threads"), "extra_info.threads is 'one'"),
        (_with({"eager": 3.0}, *INFO, "median_us"), "no time of 'emc_fast', only eager"),
        (_with({"emc_fast": 3.0, "eager": 0}, *INFO, "median_us"), "has 0 for eager"),
        (_with({"emc_fast": 3.0, "eager": "x"}, *INFO, "median_us"), "'x' for 'eager'"),
        (_with({"emc_fast": 3.0, "eager": float("nan")}, *INFO, "median_us"), "nan for 'eager'"),
        (_with({"copy": 1.0}, *INFO, "limit_us"), "no 'bytes'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: Any, says: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(DataError, match=says) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no text"):
        read_run(tmp_path / "run.json")


def test_paths_without_races(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no JSON file"):
        read_runs([tmp_path])


def test_folders_are_read_and_later_races_replace_earlier_ones(tmp_path: Path) -> None:
    old = race(seconds={OURS: 1.0, "eager": 1.0})
    new = race(seconds={OURS: 1.0, "eager": 3.0})
    write(tmp_path / "a" / "late.json", new, date="2026-02-01", commit="b" * 40)
    write(tmp_path / "a" / "early.json", old, race(threads=2), date="2026-01-01")
    write(tmp_path / "b" / "other.json", race(), cpu="Another", date="2026-01-15")
    runs = read_runs([tmp_path])
    assert [run.date for run in runs] == ["2026-01-01", "2026-01-15", "2026-02-01"]
    first, other = merge(runs)
    assert [one.ratio(one.best_rival) for one in first.races] == pytest.approx([3, 2])
    assert first.commit.split() == ["a" * 40, "b" * 40]
    assert other.title == "Another, 2 cores"


def test_a_compact_file_says_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "run.json", race(), race(threads=2))
    write_compact([source], tmp_path / "small.json")
    assert json.loads((tmp_path / "small.json").read_text()) == json.loads(source.read_text())
    lines = (tmp_path / "small.json").read_text().splitlines()
    assert sum('"extra_info"' in line for line in lines) == 2


def test_compact_files_are_put_together(tmp_path: Path) -> None:
    slow, quick = ({"copy, 1 thread": 10.0, **more} for more in ({"torch.exp, 1 thread": 1.0}, {"copy, 2 threads": 20.0}))
    sources = [
        write(tmp_path / "a.json", race("a"), limits=slow),
        write(tmp_path / "b.json", race("b"), race("c"), limits=quick | {"copy, 1 thread": 12.0}),
    ]
    write_compact(sources, tmp_path / "small.json")
    run = read_run(tmp_path / "small.json")
    assert [one.operator for one in run.races] == ["a", "b", "c"]
    assert run.limits == {"copy, 1 thread": 12.0, "torch.exp, 1 thread": 1.0, "copy, 2 threads": 20.0}


def test_slug() -> None:
    assert slug("AMD EPYC(TM) 7B13, 1 core") == "amd-epyc-7b13-1-core"
