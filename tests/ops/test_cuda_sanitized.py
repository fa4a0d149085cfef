"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the operators' own tests, on the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import build

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O0")
#: Odd widths, strides, misaligned memory, masks and zero sizes of every operator, blocks of few frames; of attention, Volta's kernels.
SELECTION = (
    "(shuffled and ((any_layout and seed0) or (test_parity and seed0 and float16)"
    " or zero_size or mask_broadcasts or any_stride or many_frames or out_of_range or (few_frames and (seed201 or seed301))))"
    " or (forward and test_attention and test_parity and seed0 and float16)"
)


def runtime() -> str:
    """The sanitizer's library, which must be in a process before anything else; torch's allocator is then watched as well."""
    program = build.compiler()
    if program is None:
        pytest.skip("needs a C++ compiler")
    path = subprocess.run([program, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"needs a compiler with AddressSanitizer (g++): {program} has none")
    return path


def test_no_kernel_leaves_its_memory() -> None:
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "EMC_EMULATOR_LIBRARY": str(build.build(*SANITIZE)),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTEST_XDIST_WORKER", None)
    stems = [path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")]
    files = [str(path) for stem in stems if (path := ROOT / "tests" / "ops" / f"test_{stem}.py").exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", SELECTION, *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-6000:])
    assert " passed" in done.stdout


def test_the_sanitizer_sees_a_fault() -> None:
    """One float beyond the shared memory of a block, in a process of its own."""
    program = "import ctypes, os, torch\nlibrary = ctypes.CDLL(os.environ['EMC_EMULATOR_LIBRARY'])\nlibrary.emc_emulator_out_of_bounds()\n"
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime(),
        "EMC_EMULATOR_LIBRARY": str(build.build(*SANITIZE)),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "checks.cpp" in done.stderr
