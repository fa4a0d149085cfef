"""A small run of the benchmarks themselves, and the profile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from reporting_helpers import race, write
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.errors import EmcError
from emc_fast.reporting import OURS, machine, read_run
from emc_fast.reporting.page import PROFILE_MARKERS
from emc_fast.reporting.profile import group_of, operators_named, profile

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_is_small_anonymous_and_readable(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "bench", "-k", "harness or (reparameterize and 4x1x128)", "-p", "no:cacheprovider", "-q"]
    options = ["--no-compile", "--budget", "0.01", f"--benchmark-json={file}"]
    # A worker of xdist measures nothing, and its variables would make the run one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    run = read_run(file)
    assert {race.direction for race in run.races} == {"forward", "forward+backward"}
    for one in run.races:
        assert set(one.seconds) == {OURS, "eager"}
        assert one.limit == "copy"
        assert one.dispatched["eager"] > one.dispatched[OURS] > 0
    text = file.read_text()
    content = json.loads(text)
    assert set(content["machine_info"]["versions"]) == {"emc_fast", "torch", "numpy", "python", "compiler"}
    assert content["machine_info"]["limits"]
    assert set(content["commit_info"]) <= {"id", "time", "dirty"}
    assert all(set(item) == {"name", "group", "extra_info"} for item in content["benchmarks"])
    about = set(content["machine_info"]) - {"threads_per_core"}  # not every system says
    assert about == {"cpu", "cores", "virtual", "architecture", "system", "isa", "torch_isa", "versions", "limits"}
    assert str(ROOT) not in text
    result = CliRunner().invoke(app, ["bench", "report", str(file)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-1\n", 2), ("0,64\n", 2), ("0-3,8-11\n", 8)])
def test_threads_of_a_core_are_counted(tmp_path: Path, monkeypatch, text: str, count: int) -> None:
    monkeypatch.setattr(machine, "SIBLINGS", tmp_path / "siblings")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert "threads_per_core" not in machine.topology()
    (tmp_path / "siblings").write_text(text)
    (tmp_path / "cpuinfo").write_text("model name\t: A Processor\nflags\t\t: fpu hypervisor\n")
    assert machine.topology() == {"threads_per_core": count, "virtual": True}
    assert machine.processor() == "A Processor"
    (tmp_path / "cpuinfo").write_text("cpu family\t: 26\nmodel name\t: AMD EPYC\n")
    assert machine.processor() == "AMD EPYC (family 26)"
    (tmp_path / "cpuinfo").write_text("cpu family\t: 25\nmodel name\t: AMD EPYC 9634 84-Core Processor\n")
    assert machine.processor() == "AMD EPYC 9634 84-Core Processor"


def test_profile_names_our_operators() -> None:
    x = torch.randn(4, 8)
    from emc_fast.ops import reparameterize

    found = profile(lambda: reparameterize(x, x, seed=3), repeat=2)
    assert any(line.ours and line.calls == 1 for line in found.lines)
    assert found.lines == sorted(found.lines, key=lambda line: -line.seconds)
    assert re.search(r"\d+% in kernels of emc_fast", found.summary(5))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("emc_fast::attention_block_fused_backward", "attention"),
        ("emc_fast::fusion_kl_categorical_backward", "KL"),
        ("emc_fast::philox_normal", "noise"),
        ("emc_fast::dtw", "other"),
        ("aten::addmm", "products"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("aten::softmax", "other"),
    ],
)
def test_operators_outside_of_ours_go_by_their_names(name: str, group: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize("plain", [False, True])
def test_work_is_grouped_by_what_it_is_for(plain: bool) -> None:
    """Backward passes too, and whether ours or plain PyTorch does it: only the product outside of the block is one of torch's products."""
    from emc_fast import ops
    from emc_fast.nn import EmotionAwareAttention

    names = ("attention", "attention_block", "fusion_kl", "reparameterize")
    originals = {name: getattr(ops, name) for name in names}
    block, outside = EmotionAwareAttention(16, 2), torch.nn.Linear(16, 16)
    x = torch.randn(2, 8, 16)

    def step() -> None:
        out = outside(block(x, x))
        z, kl = ops.reparameterize(out, out, seed=3)
        total = z.square().mean() + kl.mean() + ops.fusion_kl((z, None), (out, None), (out, None))
        total.backward()

    context = (lambda: import_plain()["eager"]()) if plain else contextlib.nullcontext
    with context(), operators_named():
        found = profile(step, repeat=2)
    assert {name: getattr(ops, name) for name in names} == originals
    sums = found.groups()
    assert all(sums[group] > 0 for group in ("attention", "noise", "KL", "products", "other"))
    assert sum(sums.values()) == pytest.approx(found.seconds)
    calls = {(line.name, line.group): line.calls for line in found.lines}
    assert calls["aten::addmm", "products"] == 1
    assert calls["aten::mm", "products"] == 2  # its backward pass
    if plain:
        assert calls["aten::bmm", "attention"] == 3 * 6  # scores and values of three blocks, each with two gradients
        assert ("aten::bmm", "products") not in calls
    else:
        assert any(name.startswith("emc_fast::") and "backward" in name and group == "attention" for name, group in calls)


def import_plain() -> dict[str, object]:
    from emc_fast.cli.bench import _plain

    return _plain()


def test_profile_command() -> None:
    before = torch.get_num_threads()
    arguments = ["bench", "profile", "generation", "--frames", "8", "--width", "16", "--repeat", "1", "--top", "5"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "trans_vae, generation, 1 x 8 x 16, 1 thread" in result.output
    assert "eager / emc_fast" in result.output
    assert "The 3 largest costs that are left: " in result.output
    assert torch.get_num_threads() == before
    alone = CliRunner().invoke(app, [*arguments, "--no-before"], catch_exceptions=False)
    assert "eager" not in alone.output


def test_profile_is_written_into_the_documentation(tmp_path: Path) -> None:
    file = tmp_path / "docs" / "performance.md"
    file.parent.mkdir()
    file.write_text("# Title\n{}\n{}\nend\n".format(*PROFILE_MARKERS))
    arguments = ["bench", "profile", "--frames", "8", "--width", "16", "--repeat", "1", "--update", "--root", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = file.read_text()
    assert "### trans_vae, step, 4 x 8 x 16, 1 thread" in text
    assert "### trans_vae, generation, 1 x 8 x 16, 1 thread" in text
    assert "| kind of work | eager | sdpa | emc_fast | eager / emc_fast |" in text
    assert text.count("The 3 largest costs that are left: ") == 2
    assert text.endswith("\nend\n")
    assert (ROOT / "docs" / "performance.md").read_text().count(PROFILE_MARKERS[0]) == 1


@pytest.mark.parametrize(("code", "says"), [(0, ""), (1, "bench_model.py ended with status 1"), (None, "bench_model.py did not finish")])
def test_run_puts_files_together_and_keeps_what_passed(tmp_path: Path, monkeypatch, code: int | None, says: str) -> None:
    from emc_fast.cli import bench

    def run(command: list[str], seconds: float, **_: object) -> int | None:
        file = next(option for option in command if option.startswith("--benchmark-json=")).partition("=")[2]
        name = next(part for part in command if part.startswith("bench/"))
        write(Path(file), race(name))
        return code if name == "bench/bench_model.py" else 0

    monkeypatch.setattr(bench, "_bounded", run)
    monkeypatch.setattr(bench, "_selected", lambda *_: ["bench_dtw.py", "bench_model.py"])
    out = tmp_path / "deep" / "run.json"
    result = CliRunner().invoke(app, ["bench", "run", "--out", str(out)])
    if code != 0:
        assert says in str(result.exception)
        assert not out.exists()
        out = out.with_name("run.json.partial")
    else:
        assert result.exit_code == 0, result.output
        assert "run.json: 2 races" in result.output
    assert [one.operator for one in read_run(out).races] == ["bench/bench_dtw.py", "bench/bench_model.py"]


def test_only_files_with_something_to_run_are_run() -> None:
    from emc_fast.cli.bench import _selected

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": str(ROOT)}
    assert _selected(["-k", "frdist or lagged_correlation"], environment) == ["bench_lagged_correlation.py", "bench_metrics.py"]
    assert _selected(["-k", "nothing_is_called_so"], environment) == []
    with pytest.raises(EmcError, match="cannot be collected"):
        _selected(["--no-such-option"], environment)


def test_what_does_not_finish_is_asked_to_stop_and_then_killed(tmp_path: Path) -> None:
    from emc_fast.cli.bench import _bounded

    kind = "import sys, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: open(sys.argv[1], 'w').close()"
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    begin = time.monotonic()
    assert _bounded([sys.executable, "-c", "raise SystemExit(3)"], 30) == 3
    assert _bounded([sys.executable, "-c", kind, str(tmp_path / "stopped")], 1.5) is None
    assert (tmp_path / "stopped").exists()
    assert _bounded([sys.executable, "-c", deaf], 1, grace=0.5) is None
    assert time.monotonic() < begin + 30


def test_run_wants_a_source_tree(tmp_path: Path, monkeypatch) -> None:
    from emc_fast.cli import bench

    monkeypatch.setattr(bench, "ROOT", tmp_path)
    result = CliRunner().invoke(app, ["bench", "run"])
    assert result.exit_code == 1
    assert "has no bench/" in str(result.exception)
