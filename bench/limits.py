"""What this machine, or its GPU, can do in the same rounds: a copy, a matrix product, exponentials."""

from __future__ import annotations

import ctypes
import functools
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from emc_fast.ops._library import native

CPU = Path(__file__).resolve().parents[1] / "csrc" / "cpu"
FLAGS = {"base": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
SOURCE = """
#include "math.h"
using namespace emc::EMC_ISA;
extern "C" void exponentials(const float* x, float* y, long n) {
  for (long i = 0; i + 2 * W <= n; i += 2 * W) {
    F a = exp_nonpositive(load(x + i)), b = exp_nonpositive(load(x + i + W));
    store(y + i, a), store(y + i + W, b);
  }
}
"""
CACHED = 1 << 15
"""Elements of the array of exponentials: in and out stay in the first two levels of cache."""


def seconds(call: Callable[[], Any], count: int = 1, device: str = "cpu") -> float:
    """Time of a call, over so many in a row: by the host's clock, or by events of the GPU in use."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / count
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def copy_of(amount: float, device: str = "cpu") -> tuple[Callable[[], Any], float]:
    if device != "cpu":
        amount = min(amount, 2**32)  # far beyond the caches, and the race's tensors need their room
    source = torch.zeros(max(int(amount) // 8, 1), device=device)  # a copy reads and writes: half of the bytes each, four to an element
    target = torch.empty_like(source)
    return lambda: target.copy_(source), max(8 * source.numel(), 1)


def matrix_product(flops: float, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Callable[[], Any], float]:
    largest = 1024 if device == "cpu" else 8192
    n = min(largest, max(64, 2 ** round(math.log2((flops / 2) ** (1 / 3)))))
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b), 2.0 * n**3


def vector_isa() -> str:
    """The instruction set of the vector kernels in use: beside matrix tiles they are those of AVX-512."""
    return "v4" if native().isa in ("bf16", "amx") else native().isa


@functools.cache
def kernel_exp() -> Callable[[int, int, int], None] | None:
    """The kernels' own exponential over an array, compiled for the instruction set in use; None without a compiler."""
    compiler, isa = shutil.which("c++"), vector_isa()
    if compiler is None or isa not in FLAGS:
        return None
    folder = Path(tempfile.mkdtemp(prefix="emc-bench-"))
    try:
        (folder / "exp.cpp").write_text(SOURCE)
        options = ["-std=gnu++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fPIC", "-shared"]
        command = [compiler, *options, *FLAGS[isa], f"-DEMC_ISA={isa}", f"-I{CPU}", str(folder / "exp.cpp"), "-o", str(folder / "exp.so")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the kernels' exponential does not compile, so there is nothing to hold attention against:\n{done.stderr}")
        function = ctypes.CDLL(str(folder / "exp.so")).exponentials
    finally:
        shutil.rmtree(folder)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    return function


def exponentials(*, ours: bool) -> tuple[Callable[[], Any], float] | None:
    """A pass over a cached array by `torch.exp`, or by the kernels' exponential (on one thread; None without a compiler)."""
    x = torch.linspace(-20, 0, CACHED)
    y = torch.empty_like(x)
    if not ours:
        return lambda: torch.exp(x, out=y), float(CACHED)
    function = kernel_exp()
    if function is None:
        return None
    # The tensors stay bound to the closure, so the addresses stay good.
    return lambda: function(x.data_ptr(), y.data_ptr(), x.numel()), float(CACHED)


def machine_limits(threads: int) -> dict[str, float]:
    """GB/s of a copy beyond the caches, GFLOP/s of a matrix product, 1e9 exponentials a second; the best of some tries."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    at = f"{threads} thread{'s' * (threads > 1)}"
    calls = {f"copy, {at}": copy_of(2**29), f"matrix product, {at}": matrix_product(2e9), f"torch.exp, {at}": exponentials(ours=False)}
    calls["exponential of the kernels, 1 thread"] = exponentials(ours=True)
    found = {}
    try:
        for name, pair in calls.items():
            if pair is not None:
                call, done = pair
                count = max(1, int(1e8 / done)) if "exp" in name else 1
                found[name] = done * 1e-9 / min(seconds(call, count) for _ in range(7))
    finally:
        torch.set_num_threads(before)
    return found


def device_limits() -> dict[str, float]:
    """The same of the GPU in use: a copy of 4 GiB, products in float32 and bfloat16, exponentials."""
    products = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16)}
    calls = {"copy": copy_of(2**32, "cuda")}
    calls |= {f"matrix product, {name}": matrix_product(2.0 * 8192**3, "cuda", dtype) for name, dtype in products.items()}
    if spare := device_exponentials():
        calls["exponential"] = spare
    found = {}
    for name, (call, done) in calls.items():
        call()
        found[name] = done * 1e-9 / min(seconds(call, device="cuda") for _ in range(5))
    return found


def device_exponentials() -> tuple[Callable[[], Any], float] | None:
    """Exponentials in registers on the GPU, and how many; None without Triton, or on a device that it does not serve."""
    if find_spec("triton") is None or torch.cuda.get_device_capability() < (8, 0):
        return None
    from .device_exp import exponentials_in_registers

    return exponentials_in_registers("cuda")


def limits_for(work: Mapping[str, float], threads: int, device: str, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], float]]:
    """Yardsticks for an amount of work: for each a call, and by what its time is multiplied to be that of the whole work.

    On the CPU there are two of exponentials, torch's and ours on one thread (which is shared out by the number of threads); the faster one
    counts. There products are of float32, as the kernels' are; on a GPU of the dtype.
    """
    found = {}
    if work.get("bytes"):
        call, done = copy_of(work["bytes"], device)
        found["copy"] = call, work["bytes"] / done
    if work.get("flops"):
        call, done = matrix_product(work["flops"], device, torch.float32 if device == "cpu" else dtype)
        found["matrix product"] = call, work["flops"] / done
    if work.get("exponentials") and device == "cuda":
        if spare := device_exponentials():
            found["exponential"] = spare[0], work["exponentials"] / spare[1]
    elif work.get("exponentials"):
        call, done = exponentials(ours=False)  # type: ignore[misc]
        found["exponential"] = call, work["exponentials"] / done
        if mine := exponentials(ours=True):
            found["exponential of the kernels"] = mine[0], work["exponentials"] / mine[1] / threads
    return found
