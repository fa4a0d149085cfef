"""The tools that a machine with a GPU runs, as far as a machine without one can go through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
    table.write_text(preferences.text_of(read(TABLE)))
    assert table.read_text() == TABLE.read_text()
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
