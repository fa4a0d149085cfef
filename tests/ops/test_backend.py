"""The choice of the back end, its reasons, and what happens when the native library cannot be used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from emc_fast.errors import BackendError
from emc_fast.ops import _backend, _library, _preferences, backend_report, dropout, use_backend
from emc_fast.ops._library import NativeLibrary, native

X = torch.ones(3, 5)


def test_auto_takes_the_kernel_where_it_can_serve() -> None:
    assert _backend.choose("dropout", X.device, torch.float32) == "cpu"
    assert _backend.choose("dropout", X.device, torch.float64) == "reference"
    assert _backend.choose("dropout", torch.device("meta"), torch.float32) == "reference"
    assert _backend.choose("dropout", X.device, torch.float32, (("cpu", "too wide"),)) == "reference"


def test_forced_back_end_that_cannot_serve_gives_every_reason() -> None:
    with use_backend("cuda"), pytest.raises(BackendError) as caught:
        dropout(X, 0.5)
    text = str(caught.value)
    why = "the tensors are on cpu" if _library.has_kernel("dropout", "CUDA") else "this version has no CUDA kernel for dropout"
    assert text.startswith(f"dropout: the back end 'cuda' was asked for and cannot serve: {why}")
    for line in ("reference: can serve", "cpu: can serve", "triton: "):
        assert f"\n  {line}" in text
    with use_backend("cpu"), pytest.raises(BackendError, match="the kernel takes float32, float16, bfloat16, not float64"):
        dropout(X.double(), 0.5)
    with use_backend("cpu"), pytest.raises(BackendError, match="too wide"):
        _backend.choose("dropout", X.device, torch.float32, (("cpu", "too wide"),))


def test_use_backend_ends_with_its_block() -> None:
    with use_backend("reference"):
        assert _backend._forced == "reference"
        with use_backend("cpu"):
            assert _backend._forced == "cpu"
        assert _backend._forced == "reference"
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        _ = 1 / 0
    assert _backend._forced == "auto"
    with pytest.raises(ValueError, match="backend is 'gpu'; it takes one of auto, reference, cpu, cuda, triton"), use_backend("gpu"):  # type: ignore[arg-type]
        pass


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_decided", {})
    monkeypatch.setattr(_backend, "_logged", set())
    with caplog.at_level(logging.INFO, logger="emc_fast"):
        for _ in range(3):
            dropout(X, 0.5)
        dropout(X.double(), 0.5)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "dropout on cpu in float32 is served by cpu",
        "dropout on cpu in float64 is served by reference (cpu: the kernel takes float32, float16, bfloat16, not float64)",
    ]


def test_compiled_code_follows_use_backend() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: dropout(x, 0.5, seed=1), fullgraph=True, backend=counter)
    expected = dropout(X, 0.5, seed=1)
    assert torch.equal(compiled(X), expected)
    with use_backend("reference"):
        assert torch.equal(compiled(X), expected)
    assert torch.equal(compiled(X), expected)
    assert counter.frame_count == 2
    kernels, plain = (str(graph.graph) for graph in counter.graphs)
    assert "emc_fast.dropout" in kernels
    assert "emc_fast.dropout" not in plain


def test_function_transforms_are_served_by_the_definition() -> None:
    x = torch.randn(3, 4)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (dropout(x, 0.5, seed=1) ** 2).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(torch.func.grad(loss)(x), leaf.grad)
    mask = dropout(torch.ones_like(x), 0.5, seed=1).flatten()
    assert torch.equal(torch.func.hessian(loss)(x).reshape(12, 12), torch.diag(2 * mask * mask))
    with use_backend("cpu"), pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(loss)(x)


def test_report_names_every_operator_and_reason() -> None:
    rows = backend_report()
    assert {"philox_normal", "dropout", "reparameterize"} <= {row.operator for row in rows}
    for row in rows:
        assert not (row.chosen and row.reason)
        if row.device == "cuda" and not torch.cuda.is_available():
            assert row.reason
    assert all(row.chosen for row in rows if row.backend == "cpu"), [row for row in rows if row.backend == "cpu" and not row.chosen]


@pytest.fixture
def two_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`auto` for a device of capability 9.0 on which CUDA C++ and Triton can both serve, beside a table of measurements."""
    monkeypatch.setattr(_backend, "_reason", lambda *_: "")
    monkeypatch.setattr(_backend, "_decided", {})
    monkeypatch.setattr(_backend, "_logged", set())
    monkeypatch.setattr(_preferences, "capability", lambda index: 90)

    def choose(dtype: torch.dtype, *measured: _preferences.Measurement) -> str:
        table = {(row.operator, row.capability, row.dtype): row for row in measured}
        monkeypatch.setattr(_preferences, "measurements", lambda: table)
        return _backend.choose("dropout", torch.device("cuda:0"), dtype)

    return choose


MEASURED = _preferences.Measurement("dropout", 90, "float16", "triton", 1.5, 4, "a device", "torch 1")


def test_what_was_measured_is_preferred(two_kernels: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="emc_fast"):
        assert two_kernels(torch.float16, MEASURED) == "triton"
        assert two_kernels(torch.float32, MEASURED) == "cuda"
        assert two_kernels(torch.bfloat16, replace(MEASURED, dtype="bfloat16", capability=80)) == "cuda"
    assert [record.getMessage().partition(" is served by ")[2] for record in caplog.records] == [
        "triton (measured on a device: 1.50 times as fast as cuda over 4 races (torch 1))",
        "cuda (not measured: CUDA C++ where both can serve)",
        "cuda (not measured: CUDA C++ where both can serve)",
    ]


def test_the_table_is_looked_at_once(two_kernels: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert two_kernels(torch.float16, MEASURED) == "triton"
    monkeypatch.setattr(_backend, "preferred", None)
    assert two_kernels(torch.float16) == "triton"


def test_report_says_where_a_choice_came_from(two_kernels: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    two_kernels(torch.float32, replace(MEASURED, dtype="float32"))
    sources = {(row.operator, row.backend): row.source for row in backend_report() if row.device == "cuda" and row.chosen}
    assert sources["dropout", "triton"].startswith("measured on a device")
    assert sources["reparameterize", "cuda"] == _preferences.FALLBACK


def test_table_of_the_repository_can_be_read(tmp_path: Path) -> None:
    for (operator, _, dtype), row in _preferences.read().items():
        assert operator in _backend.OPERATORS
        assert getattr(torch, dtype) in _backend.OPERATORS[operator].dtypes
        assert row.times >= 1.0
    wrong = tmp_path / "table.json"
    wrong.write_text(json.dumps({"measurements": [asdict(replace(MEASURED, backend="cpu"))]}))
    with pytest.raises(ValueError, match=r"table\.json prefers 'cpu' for dropout; a preference is one of"):
        _preferences.read(wrong)


def broken(monkeypatch: pytest.MonkeyPatch, path: Path) -> NativeLibrary:
    """The library as it would be found at `path`."""
    monkeypatch.setenv("EMC_FAST_LIBRARY", str(path))
    return native.__wrapped__()


def altered(tmp_path: Path, old: bytes, new: bytes) -> Path:
    data = native().path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path = tmp_path / "_C.so"
    path.write_bytes(data.replace(old, new))
    return path


def test_library_that_cannot_be_used_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repair = "build it again with `pip install -e .`"
    missing = broken(monkeypatch, tmp_path / "none.so")
    assert "there is no such file" in missing.problem
    assert repair in missing.problem
    text = tmp_path / "text.so"
    text.write_text("not a library")
    assert "not a 64-bit Linux shared library" in broken(monkeypatch, text).problem
    empty = tmp_path / "empty.so"
    empty.touch()
    assert "not a 64-bit Linux shared library" in broken(monkeypatch, empty).problem
    edited = broken(monkeypatch, altered(tmp_path, native().stamp["sources"].encode(), b"0" * 16))
    assert "it is older than the sources beside it" in edited.problem
    foreign = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"
    assert "no stamp of emc_fast" in broken(monkeypatch, foreign).problem
    old = broken(monkeypatch, altered(tmp_path, b"|interface=1|", b"|interface=0|"))
    assert "(interface 0), this is" in old.problem
    assert repair in old.problem
    other = broken(monkeypatch, altered(tmp_path, b"|processor=x86_64|", b"|processor=sparc_|"))
    assert "built for sparc_, this machine is x86_64" in other.problem
    cut = tmp_path / "cut.so"
    data = native().path.read_bytes()
    cut.write_bytes(data[: data.index(b"emc_fast native library|version=") + 1000])
    assert f"it is cut off: {cut.stat().st_size} of {len(data)} bytes" in broken(monkeypatch, cut).problem
    unlinked = broken(monkeypatch, altered(tmp_path, b"libtorch_cpu.so", b"libtorch_cpX.so"))
    assert "the loader refused it: libtorch_cpX.so" in unlinked.problem
    monkeypatch.setattr(_library.torch, "__version__", "2.9.1")
    both = broken(monkeypatch, altered(tmp_path, b"|interface=1|", b"|interface=0|"))
    assert "interface 0" in both.problem
    assert "it needs torch 2.10 or newer, this is 2.9.1" in both.problem


def test_package_works_without_the_library(tmp_path: Path) -> None:
    """A fresh process: import, run on the definitions with one warning, and the full explanation when the kernels are asked for."""
    program = """
import logging; logging.basicConfig(format="%(levelname)s %(message)s")
import torch, emc_fast
from emc_fast.ops import dropout, reparameterize, use_backend
x = torch.ones(3, 4, requires_grad=True)
dropout(x, 0.5, seed=1).sum().backward()
reparameterize(x, x, seed=1)
try:
    with use_backend("cpu"):
        dropout(x, 0.5)
except emc_fast.errors.BackendError as error:
    print(error)
"""
    environment = {**os.environ, "EMC_FAST_LIBRARY": str(tmp_path / "none.so"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr.count("WARNING the operators run in plain PyTorch, slower than they could: the native library") == 1
    assert "the back end 'cpu' was asked for and cannot serve: the native library" in done.stdout
    assert "there is no such file" in done.stdout


def test_says_once_that_the_cuda_kernels_cannot_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A library built without CUDA, or for a newer driver, on a machine with a GPU: not only where somebody reads INFO."""
    monkeypatch.setattr(_backend, "native", lambda: SimpleNamespace(problem="", cuda_problem="the driver is too old"))
    monkeypatch.setattr(_backend, "_logged", set())
    monkeypatch.setattr(_backend, "_warned", False)
    for name in ("dropout", "attention"):
        _backend._log(_backend.OPERATORS[name], "cuda", torch.float32, "reference", (), "")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the operators run in plain PyTorch, slower than they could: the driver is too old"]


def test_instruction_set_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="the instruction set 'v9' cannot be used: this build or this machine does not have it"):
        native().set_isa("v9")


def test_info_command() -> None:
    from typer.testing import CliRunner

    from emc_fast.cli import app

    found = CliRunner().invoke(app, ["info", "--json"])
    assert found.exit_code == 0, found.output
    facts = json.loads(found.output)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["native library"]["usable"]
    assert facts["native library"]["instruction set in use"] in facts["native library"]["instruction sets built"].split(",")
    assert facts["native library"]["float32 precision"] == "highest"
    assert any(row["operator"] == "dropout" and row["backend"] == "cpu" and row["chosen"] for row in facts["operators"])
    assert all(bool(row["source"]) == row["chosen"] for row in facts["operators"])
    assert len(facts["preferences"]) == len(_preferences.read())
    printed = CliRunner().invoke(app, ["info"]).output
    assert "dropout" in printed
    assert "in use" in printed
