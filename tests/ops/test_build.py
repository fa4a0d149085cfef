"""The native library as a file: prototypes, symbols, dependencies."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from emc_fast.ops._library import INTERFACE, native

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (a machine with a C++ compiler and binutils)")
    return found


def output(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def test_prototypes_agree_with_torch(tmp_path: Path) -> None:
    """Our prototypes and torch's in one unit: a difference is a conflicting declaration. And the check is able to fail."""
    include = Path(torch.__file__).parent / "include"
    source = tmp_path / "both.cpp"
    ours = (ROOT / "csrc" / "torch_shim.h").read_text()

    def compiles(shim: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "shim.h").write_text(shim)
        source.write_text('#include <torch/csrc/stable/c/shim.h>\n#include "shim.h"\n')
        return subprocess.run([tool("c++"), "-std=c++17", "-fsyntax-only", f"-I{include}", source], capture_output=True, text=True)

    result = compiles(ours)
    assert result.returncode == 0, result.stderr
    changed = ours.replace("int64_t* ret_dim)", "int32_t* ret_dim)")
    assert changed != ours
    result = compiles(changed)
    assert result.returncode != 0
    assert "aoti_torch_get_dim" in result.stderr


def test_kernels_have_no_weak_symbols() -> None:
    """A weak symbol of one instruction set could replace that of another at link time and crash an older processor."""
    objects = [
        p
        for p in (ROOT / "build").glob("cmake-*/CMakeFiles/kernels_*.dir/csrc/cpu/**/*.o")
        if (ROOT / p.with_suffix("").as_posix().partition(".dir/")[2]).exists()
    ]
    if not objects:
        pytest.skip("needs the build folder, which an editable installation leaves in the source tree")
    for path in objects:
        weak = [line for line in output(tool("nm"), "-C", path).splitlines() if len(line) > 17 and line[17] in "WVu"]
        assert not weak, f"{path.parent.name}/{path.name}: {weak}"


def test_only_our_own_names_are_exported() -> None:
    lines = output(tool("nm"), "-D", "--defined-only", native().path).splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    settings = {"emc_fast_isa", "emc_fast_set_isa", "emc_fast_float32_precision", "emc_fast_set_float32_precision", "emc_fast_set_poison"}
    assert names == {"emc_fast_stamp", "emc_fast_cuda_problem", *settings}


def test_dependencies() -> None:
    """torch's library by name, the C++ run time, and nothing of Python, CUDA or OpenMP; no search path into the build machine."""
    dynamic = output(tool("readelf"), "-d", "-W", native().path)
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert "libtorch_cpu.so" in needed
    allowed = ("libtorch_cpu.so", "libstdc++.so", "libgcc_s.so", "libm.so", "libc.so", "ld-linux", "libdl.so", "libpthread.so", "librt.so")
    assert all(name.startswith(allowed) for name in needed), needed
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_stamp_and_build_information_agree() -> None:
    stamp = native().stamp
    assert stamp["interface"] == INTERFACE
    assert stamp["isas"].split(",")[0] == "base"
    info = pytest.importorskip("emc_fast._build_info", reason="needs Python's headers at build time")
    assert (info.version, info.compiler, info.isas, info.cuda) == (stamp["version"], stamp["compiler"], stamp["isas"], stamp["cuda"])


def test_every_schema_has_a_kernel() -> None:
    """A schema without a kernel, or a kernel whose name is mistyped, would only show when it is called."""
    names = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("emc_fast::")}
    assert names
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name
