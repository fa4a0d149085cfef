"""The tools that a machine with a GPU runs, as far as a machine without one can go through them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from emc_fast import kernels

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bench_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def result(operator: str, dtype: str, cuda: float, triton: float, **more: Any) -> dict[str, Any]:
    return {
        "operator": operator,
        "dtype": dtype,
        "size": [1],
        "direction": "forward",
        "median_ms": {"cuda": cuda, "triton": triton},
        **more,
    }


FACTS = {"emc_fast": "1", "torch": "2", "triton": "3", "device": "a device", "capability": 90, "library": {"cuda": "nvcc 13"}}
RESULTS = [
    result("dropout", "float32", 3.0, 1.0),
    result("dropout", "float32", 1.0, 3.0 / 2.0),
    result("fusion_kl", "float32", 1.0, 2.0),
    result("fusion_kl", "bfloat16", 1.04, 1.0),
    {**result("attention", "float32", 1.0, 1.0), "median_ms": {"triton": 1.0}},
    {"operator": "dtw", "dtype": "float32", "skipped": "out of time"},
]


def test_table_of_preferences_from_races(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import preferences
    from emc_fast.ops._preferences import TABLE, read

    table, races = tmp_path / "table.json", tmp_path / "races.json"
    table.write_text(TABLE.read_text())
    races.write_text(json.dumps({"facts": FACTS | {"capability": 80}, "results": RESULTS[2:3]}))
    preferences.main([str(races), "--table", str(table)])
    races.write_text(json.dumps({"facts": FACTS, "results": RESULTS}))
    preferences.main([str(races), "--table", str(table)])
    found = {key: (row.backend, row.times, row.races) for key, row in read(table).items() if key not in read(TABLE)}
    assert found == {
        ("dropout", 90, "float32"): ("triton", pytest.approx(2**0.5, abs=1e-3), 2),
        ("fusion_kl", 80, "float32"): ("cuda", 2.0, 1),
        ("fusion_kl", 90, "float32"): ("cuda", 2.0, 1),
        ("fusion_kl", 90, "bfloat16"): ("cuda", 0.962, 1),
    }
    assert "dropout on 90 in float32: triton, measured on a device: 1.41 times as fast as cuda over 2 races" in capsys.readouterr().out


def test_races_run_through_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator that a GPU would race, in small; and a kernel that is wrong is not timed."""
    from bench import gpu_ops

    monkeypatch.setattr(gpu_ops, "ROUNDS", 1)
    monkeypatch.setattr(gpu_ops, "ROUND_MS", 0.0)
    out = tmp_path / "races.json"
    monkeypatch.setattr("sys.argv", ["gpu_ops.py", str(out), "--device", "cpu", "--quick", "--seconds", "300"])
    assert gpu_ops.main() == 0
    report = json.loads(out.read_text())
    assert {row["operator"] for row in report["results"]} == {case.operator for case in gpu_ops.CASES}
    assert all(row["median_ms"]["cpu"] > 0 for row in report["results"]), report["results"]
    assert {"capability", "device", "torch", "triton", "library"} <= report["facts"].keys()

    def wrong(*_: Any) -> None:
        raise AssertionError("far off")

    monkeypatch.setattr(gpu_ops, "by_the_rule", wrong)
    monkeypatch.setattr("sys.argv", ["gpu_ops.py", str(out), "--device", "cpu", "--quick", "--only", "dropout"])
    assert gpu_ops.main() == 1
    results = json.loads(out.read_text())["results"]
    assert all(row["failed"] == {"cpu": "AssertionError: far off"} and "cpu" not in row["median_ms"] for row in results)


@pytest.fixture
def tune() -> ModuleType:
    pytest.importorskip("triton", reason="needs triton (any Linux machine: it is in the extra `test`)")
    from bench import tune_triton

    return tune_triton


def seconds_of(best: tuple[int, ...], broken: tuple[int, ...] = ()) -> Callable[..., float]:
    """A clock by which the tile `best` is twice as fast as the others, and `broken` does not compile."""

    def timer(entry: Any, dtype: Any, device: str) -> float:
        table, _ = sys.modules["emc_fast.kernels._configs"].TABLES[entry.table]
        present = table[entry.key_on(0)]
        if present == broken:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if present == best else 2.0

    return timer


def test_search_takes_the_fastest_tile_that_is_right(tune: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in tune.entries() if str(entry) == "rows reparameterize wide")
    table, _ = tune._configs.TABLES["rows"]
    before = dict(table)
    best, broken, wrong = (1024, 1024, 2), (2048, 1024, 8), (4096, 1024, 8)

    def check(entry: Any, dtype: Any, device: str) -> None:
        assert table[entry.key] != wrong, "far off"

    monkeypatch.setattr(tune, "check", check)
    found = tune.search(entry, 0, "cpu", seconds_of(best, broken))
    assert found.config == best
    assert {broken, wrong} == set(found.refused)
    assert "out of resource" in found.refused[broken]
    assert len(found.milliseconds) == len(entry.tiles) - 2
    assert tune.search(entry, 0, "cpu", seconds_of(wrong)).config == found.present, "what is wrong is never taken, however fast"
    assert table == before


def test_tuned_table_is_written_and_taken(tune: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.json"
    other = {"table": "rows", "key": ["philox", 80, "wide"], "config": [512, 512, 4]}
    path.write_text(json.dumps({"measurements": [other]}))
    for name, (table, kind) in tune._configs.TABLES.items():
        monkeypatch.setitem(tune._configs.TABLES, name, (dict(table), kind))
    monkeypatch.setattr(tune, "check", lambda *_: None)
    arguments = ["--only", "rows reparameterize wide", "bands", "--table", str(path)]
    assert tune.main(arguments, seconds_of((1024, 1024, 2)), "cpu") == 0
    rows = json.loads(path.read_text())["measurements"]
    assert [(row["key"], row["config"]) for row in rows] == [
        (other["key"], other["config"]),
        (["reparameterize", 0, "wide"], [1024, 1024, 2]),
        (["dtw", 0], list(tune._configs.BANDS["dtw", 0])),
    ]
    assert [row["times_as_fast"] for row in rows[1:]] == [2.0, 1.0]
    taken = {}
    for name, (_, kind) in tune._configs.TABLES.items():
        monkeypatch.setitem(tune._configs.TABLES, name, (taken.setdefault(name, {}), kind))
    tune._configs.take_tuned(path)
    assert taken["rows"]["reparameterize", 0, "wide"].warps == 2
    assert set(taken["bands"]) == {("dtw", 0)}


def test_every_entry_of_the_tables_can_be_tuned(tune: ModuleType) -> None:
    keys = {(entry.table, entry.key) for entry in tune.entries()}
    for name, (table, _) in tune._configs.TABLES.items():
        assert {key for table_of, key in keys if table_of == name} == {key for key in table if key[1] == 0}
    for entry in tune.entries():
        _, kind = tune._configs.TABLES[entry.table]
        assert 0 < len(entry.tiles) <= 8
        assert all(isinstance(config, kind) for config in entry.tiles)


@pytest.mark.interpreter
def test_search_in_the_interpreter(tune: ModuleType) -> None:
    """The gate with real kernels; the tiles themselves are the interpreter's own."""
    if not kernels.interpreting():
        pytest.skip("needs Triton's interpreter: TRITON_INTERPRET=1")
    entry = next(entry for entry in tune.entries() if str(entry) == "rows reparameterize narrow")
    entry = replace(entry, tiles=entry.tiles[:1], small=(5, 30))
    found = tune.search(entry, 0, "cpu", seconds_of(entry.tiles[0]))
    assert found.config == entry.tiles[0], found.refused


def suite(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "bench" / "gpu_suite.sh", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in ("OUT", "LIMIT", "DRY_RUN")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=inherited | {"PYTHON": sys.executable} | environment)


def test_suite_stays_below_nine_minutes_and_names_its_stages(tmp_path: Path) -> None:
    usual = suite(tmp_path, DRY_RUN="1").stdout
    limits = {name: int(limit) for name, limit in re.findall(r"^(\w+) \((\d+) s\):", usual, re.MULTILINE)}
    assert {"build", "info", "cuda", "triton", "ptx", "races"} <= limits.keys() <= {*limits, "memcheck", "racecheck"}
    assert sum(limits.values()) <= 540
    two = suite(tmp_path, "races", "tune", DRY_RUN="1", LIMIT="7").stdout
    assert re.findall(r"^(\w+) \((\d+) s\):", two, re.MULTILINE) == [("races", "7"), ("tune", "7")]
    wrong = suite(tmp_path, "bulid")
    assert wrong.returncode == 2
    assert "no stage bulid" in wrong.stderr


def test_suite_never_passes_without_a_gpu(tmp_path: Path) -> None:
    """Stages one by one into the same report; a machine without a device fails in each."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert suite(tmp_path, "info").returncode == 1
    assert suite(tmp_path, "races", LIMIT="60").returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert report.count("# GPU report") == 1
    assert re.findall(r"^## (\w+): (\w+)", report, re.MULTILINE) == [("info", "FAILED"), ("races", "FAILED")]
    assert "fusion_kl_categorical" in report
