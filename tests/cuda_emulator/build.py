"""Builds the CUDA operators for the CPU, and switches them on and off.

The library holds every launcher and kernel of `csrc/cuda` and every boxed operator of `csrc/torch/cuda`, compiled by the host's C++
compiler against the emulator in this folder. While it is enabled, torch's dispatcher sends the operators' CPU tensors to it.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ORDERS = ("forward", "reverse", "shuffled")
#: -ffp-contract=off as nvcc's -fmad=false, so that the bits are those of a GPU.
FLAGS = ("-std=gnu++17", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-DEMC_EMULATOR")


def sources() -> list[Path]:
    return sorted([*(ROOT / "csrc/cuda").glob("*.cu"), *(ROOT / "csrc/torch/cuda").glob("*.cpp"), *HERE.glob("*.cpp")])


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def _units() -> dict[str, list[Path]]:
    """Sources that are compiled together: most of the time goes into the headers that they share."""
    boxed = [path for path in sources() if path.parent.parent.name == "torch" and path.name != "device.cpp"]  # the emulator has its own
    return {
        "launchers": [path for path in sources() if path.suffix == ".cu"],
        "boxed": [*boxed, HERE / "device.cpp"],
        "emulator": [path for path in sources() if path.parent == HERE and path.name != "device.cpp"],
    }


def build(*extra: str) -> Path:
    """The library, compiled unless the same sources and flags have been before; the result lies in the source tree's build folder."""
    program = compiler()
    assert program is not None
    flags = (*FLAGS, *extra)
    if os.uname().machine == "x86_64":
        flags += ("-mfma", "-mf16c")  # fmaf and half floats as instructions: the C library's are functions
    digest = hashlib.sha256(repr((program, flags, torch.__version__)).encode())
    headers = [p for folder in ("csrc", "tests/cuda_emulator") for p in (ROOT / folder).rglob("*") if p.suffix in {".h", ".cuh"}]
    for path in sorted([*sources(), *headers]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = ROOT / "build" / "cuda_emulator"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{digest.hexdigest()[:20]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite's processes share one build
        if not library.exists():
            _compile(program, flags, library)
    return library


def _compile(program: str, flags: tuple[str, ...], library: Path) -> None:
    work = library.with_suffix("")
    work.mkdir(exist_ok=True)
    launcher = [ccache] if (ccache := shutil.which("ccache")) else []

    def unit(name: str, paths: list[Path]) -> Path:
        source, target = work / f"{name}.cpp", work / f"{name}.o"
        source.write_text("".join(f'#include "{path}"\n' for path in paths))
        command = [*launcher, program, *flags, f"-I{HERE}", "-include", "emulator.h", "-c", source, "-o", target]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, f"the {name} do not compile for the emulator:\n{done.stderr[-6000:]}"
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(unit, *zip(*_units().items(), strict=True)))
    aside = library.with_suffix(".part")
    torch_libraries = Path(torch.__file__).parent / "lib"
    sanitize = [flag for flag in flags if flag.startswith("-fsanitize")]
    command = [program, "-shared", *sanitize, *objects, "-o", aside, f"-L{torch_libraries}", "-ltorch_cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    aside.rename(library)
    shutil.rmtree(work)


@functools.cache
def load() -> ctypes.CDLL:
    """The library in this process; ``EMC_EMULATOR_LIBRARY`` takes another one, such as one with sanitizers."""
    return ctypes.CDLL(os.environ.get("EMC_EMULATOR_LIBRARY") or str(build()))


@contextmanager
def enabled(order: str, capability: int | None = None) -> Iterator[None]:
    """CPU tensors go to the emulated CUDA operators, run in `order`, on its own device or one of `capability` (75, 86)."""
    library = load()
    library.emc_emulator_order(ORDERS.index(order))
    if capability is not None:
        library.emc_emulator_capability(capability)
    library.emc_emulator_enable()
    attention_block = sys.modules["emc_fast.ops.attention_block"]  # the package has the function under this name
    attention_block.whole = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        attention_block.whole = True  # type: ignore[attr-defined]
        library.emc_emulator_disable()


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
