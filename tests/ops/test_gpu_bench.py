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
from emc_fast.reporting import OURS, Race, read_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bench_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def race(operator: str, dtype: str, cuda: float, triton: float, **more: Any) -> Race:
    """Of both back ends, `auto` having taken CUDA C++."""
    seconds = {OURS: cuda, "eager": 4.0} | more.pop("seconds", {})
    return Race(operator, "1", "forward", 1, "cuda", dtype, seconds=seconds, others={"triton": triton} if triton else {}, **more)


def write(path: Path, races: list[Race], capability: int = 90) -> Path:
    from bench.gpu_ops import content

    gpu = {"name": "A Device", "capability": capability, "multiprocessors": 4, "memory_gib": 80.0, "cuda": "13.0", "triton": "3"}
    machine = {"cpu": "A Processor", "cores": 2, "gpu": gpu, "versions": {"emc_fast": "1", "torch": "2"}}
    path.write_text(json.dumps(content(races, machine, {}, [], {"id": "a" * 40, "dirty": False})))
    return path


RACES = [
    race("dropout", "float32", 3.0, 1.0),
    race("dropout", "float32", 1.0, 3.0 / 2.0),
    race("fusion_kl", "float32", 1.0, 2.0),
    race("fusion_kl", "bfloat16", 1.04, 1.0),
    race("attention", "float32", 1.0, 0.0),
    race("emotion_attention", "float32", 2.0, 1.0),
]


def test_table_of_preferences_from_races(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import preferences
    from emc_fast.ops._preferences import TABLE, read

    table, races = tmp_path / "table.json", tmp_path / "races.json"
    table.write_text(TABLE.read_text())
    preferences.main([str(write(races, RACES[2:3], 80)), "--table", str(table)])
    preferences.main([str(write(races, RACES)), "--table", str(table)])
    found = {key: (row.backend, row.times, row.races) for key, row in read(table).items() if key not in read(TABLE)}
    assert found == {
        ("dropout", 90, "float32"): ("triton", pytest.approx(2**0.5, abs=1e-3), 2),
        ("fusion_kl", 80, "float32"): ("cuda", 2.0, 1),
        ("fusion_kl", 90, "float32"): ("cuda", 2.0, 1),
        ("fusion_kl", 90, "bfloat16"): ("cuda", 0.962, 1),
    }
    assert "dropout on 90 in float32: triton, measured on A Device: 1.41 times as fast as cuda over 2 races" in capsys.readouterr().out
    on_a_cpu = json.loads(races.read_text())
    del on_a_cpu["machine_info"]["gpu"]
    races.write_text(json.dumps(on_a_cpu))
    with pytest.raises(SystemExit, match="none of a GPU"):
        preferences.main([str(races), "--table", str(table)])


def test_targets_are_held_against_races(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import gpu_targets

    def of(size: str, direction: str, seconds: dict[str, float], **more: Any) -> dict[str, Any]:
        return {**vars(race("attention", "bfloat16", 1.0, 1.0)), "size": size, "direction": direction, "seconds": seconds, **more}

    size = "64 x 750 x 4 x 32 bfloat16"
    copied = {"work": {"bytes": 1e9}, "limits": {"copy": 0.9}}
    races = [
        Race(**of(size, "forward", {OURS: 1.0, "eager": 1.1, "sdpa": 2.0, "sdpa(flash)": 1.4})),
        Race(**of(size, "forward+backward", {OURS: 1.0, "sdpa": 1.3})),
        Race(**of("48000 x 128", "forward", {OURS: 1.0, "eager": 9.0}, operator="fusion_kl", **copied)),
        Race(**of("48000 x 128", "forward+backward", {OURS: 1.0, "compile(eager)": 1.2}, operator="fusion_kl", **copied)),
        *(
            Race(**of(f"1 x {t}", "forward", {OURS: 1.0}, shape={"T": t}, series="T", peak_bytes={OURS: t * 100}))
            for t in (1024, 4096, 16384)
        ),
        *(
            Race(**of(f"1 x {t}", "forward+backward", {OURS: 1.0}, shape={"T": t}, series="T", peak_bytes={OURS: t * t}))
            for t in (1024, 4096, 16384)
        ),
    ]
    gpu_targets.main([str(write(tmp_path / "races.json", races))])
    printed = capsys.readouterr().out
    assert printed.startswith("A Device:")
    lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines())
    rows = {tuple(cells[:4]): cells[4:] for cells in lines if cells}
    assert rows["attention", size, "forward", "1.5x sdpa"] == ["1.40x sdpa(flash)", "MISSED"]
    assert rows["attention", size, "forward+backward", "1.2x sdpa"] == ["1.30x sdpa", "reached"]
    assert rows["fusion_kl", "48000 x 128", "forward", "0.85 of copy"] == ["0.90 of copy", "reached"]
    assert rows["fusion_kl", "48000 x 128", "forward+backward", "1.3x compile"] == ["1.20x compile(eager)", "MISSED"]
    assert rows["dtw", "4096 x 750 x 25", "forward", "20x one CPU core"] == ["not measured", ""]
    assert rows["attention, memory", "along T", "forward", "O(T)"] == ["16 times the bytes for 16 times the frames", "reached"]
    assert rows["attention, memory", "along T", "forward+backward", "O(T)"][1] == "MISSED"


def test_every_target_is_raced() -> None:
    """By name of the size: a target that nothing measures would stay "not measured" for ever."""
    from bench.gpu_cases import SUBJECTS
    from bench.gpu_targets import TARGETS

    raced = {
        (subject.operator, subject.size_in_words(size, dtype), direction): subject
        for subject in SUBJECTS
        for size in subject.sizes
        for dtype in subject.dtypes
        for direction in subject.directions
    }
    for target in TARGETS:
        subject = raced[target.operator, target.size, target.direction]
        rivals = [*subject.rivals, *(f"compile({name})" for name in subject.compiled)]
        assert subject.traffic if target.against == "copy" else any(name.startswith(target.against) for name in rivals), target


def test_races_run_through_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator that a GPU would race, in small; and a kernel that is wrong is not timed."""
    from bench import gpu_cases, gpu_ops

    monkeypatch.setattr(gpu_ops, "BUDGET", 0.0)
    out = tmp_path / "races.json"
    monkeypatch.setattr("sys.argv", ["gpu_ops.py", str(out), "--device", "cpu", "--quick", "--seconds", "300"])
    assert gpu_ops.main() == 0, json.loads(out.read_text())["failed"]
    run = read_run(out)
    assert {one.operator for one in run.races} == {subject.operator for subject in gpu_cases.SUBJECTS}
    assert {one.dtype for one in run.races} == {"float32", "bfloat16", "float16"}
    assert not json.loads(out.read_text())["left_out"]

    def wrong(*_: Any, **__: Any) -> None:
        raise AssertionError("far off")

    monkeypatch.setattr(gpu_cases, "_passed", {})
    monkeypatch.setattr(gpu_cases.parity, "assert_parity", wrong)
    monkeypatch.setattr("sys.argv", ["gpu_ops.py", str(out), "--device", "cpu", "--quick", "--only", "dropout"])
    assert gpu_ops.main() == 1
    report = json.loads(out.read_text())
    assert set(report["failed"].values()) == {"AssertionError: far off"}
    assert not report["benchmarks"]


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
def test_exponentials_of_the_yardstick() -> None:
    if not kernels.interpreting():
        pytest.skip("needs Triton's interpreter: TRITON_INTERPRET=1")
    from bench.device_exp import exponentials_in_registers

    torch.manual_seed(0)
    call, count = exponentials_in_registers("cpu", programs=2, times=3)
    torch.manual_seed(0)
    x = torch.rand(2048)
    assert count == 3 * x.numel()
    torch.testing.assert_close(call(), torch.exp2(-torch.exp2(-torch.exp2(-x))))


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
