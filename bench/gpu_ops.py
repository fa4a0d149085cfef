"""Operators on a GPU: CUDA C++ and Triton beside each other, plain PyTorch and the device's own copy.

    python bench/gpu_ops.py OUT.json [--seconds 120] [--only OPERATOR ...] [--compile] [--device cuda] [--quick]

An operator is timed only after it has passed the tests' error rule on a smaller input. Times are medians of CUDA events over interleaved
rounds, a round repeating short calls until it takes a millisecond; the claim is a ratio of one run. OUT.json is written after every race:
`bench/preferences.py` makes of it the table by which the back end is chosen. ``--compile`` adds `torch.compile` of the plain form, which
takes most of the time of a run. ``--device cpu --quick`` goes through everything on a CPU, with small sizes, to see that it runs.

The exit status is 1 where an operator is wrong or fails, not where a back end cannot serve it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.gpu_cases import CASES, Case, Inputs, Size, by_the_rule
from emc_fast import __version__
from emc_fast.errors import BackendError
from emc_fast.ops import use_backend
from emc_fast.ops._library import native
from emc_fast.ops._preferences import capability
from tests.ops import parity

Call = Callable[[], Any]
ROUNDS = 15
ROUND_MS = 1.0


def milliseconds(call: Call, device: str, repeats: int = 1) -> float:
    """Of one call, as the mean over ``repeats`` of them."""
    if device == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return 1e3 * (time.perf_counter() - begin) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def forward(function: Callable[..., Any], inputs: Inputs, _: tuple[str, ...]) -> Call:
    def call() -> Any:
        with torch.no_grad():
            return function(**inputs)

    return call


def both(function: Callable[..., Any], inputs: Inputs, differentiate: tuple[str, ...]) -> Call:
    leaves = {name: x.detach().requires_grad_(name in differentiate) for name, x in inputs.items()}
    wanted = [leaves[name] for name in differentiate]
    grads = [torch.ones_like(out) for out in parity.outputs_of(function(**leaves))]
    return lambda: torch.autograd.grad(parity.outputs_of(function(**leaves)), wanted, grads)


def captured(call: Call) -> Call:
    """The call as a CUDA graph, after what it does once has been done."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def served_by(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(**inputs: Any) -> Any:
        with use_backend(backend):  # type: ignore[arg-type]
            return function(**inputs)

    return call


def gate(case: Case, backend: str, dtype: torch.dtype, device: str) -> tuple[str, str]:
    """Why the back end is not timed: that it cannot serve; that it is wrong or fails. Both empty where it is timed."""
    inputs = case.inputs(case.small, dtype, device)
    try:
        if case.check is not None:
            case.check(case.function, inputs, backend)
        else:
            by_the_rule(case.function, inputs, backend, case.differentiate)
    except BackendError as error:
        return str(error).splitlines()[0], ""
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"[:2000]
    return "", ""


def medians(calls: dict[str, Call], device: str) -> dict[str, float]:
    """Milliseconds of each, in turns, in an order that rotates."""
    repeats = {}
    for key, call in calls.items():
        once = min(milliseconds(call, device) for _ in range(4))  # warms up on the way
        repeats[key] = max(1, min(200, math.ceil(ROUND_MS / max(once, 1e-3))))
    times: dict[str, list[float]] = {key: [] for key in calls}
    order = list(calls)
    for _ in range(ROUNDS):
        for key in order:
            times[key].append(milliseconds(calls[key], device, repeats[key]))
        order.append(order.pop(0))
    return {key: statistics.median(values) for key, values in times.items()}


def race(case: Case, size: Size, dtype: torch.dtype, direction: str, able: list[str], device: str, compiled: bool) -> dict[str, Any]:
    """One result: medians, and what follows from them."""
    inputs = case.inputs(size, dtype, device)
    make = forward if direction == "forward" else both
    calls = {backend: make(served_by(backend, case.function), inputs, case.differentiate) for backend in able}
    if case.plain is not None:
        calls["eager"] = make(case.plain, inputs, case.differentiate)
    if case.plain is not None and compiled:
        torch._dynamo.reset()
        mode = "max-autotune-no-cudagraphs" if case.latency else "default"
        calls["compile"] = make(torch.compile(case.plain, mode=mode), inputs, case.differentiate)
    if case.latency and device == "cuda":
        calls = {key: captured(call) for key, call in calls.items()}
    if case.traffic:
        first = next(iter(inputs.values()))
        moved = case.traffic[direction != "forward"] * first.numel() * first.element_size()
        calls["copy"] = torch.empty(max(1, int(moved / 2)), dtype=torch.uint8, device=device).clone
    taken = medians(calls, device)
    ratios = {f"ratio_to_{rival}": {b: taken[rival] / taken[b] for b in able} for rival in ("copy", "eager", "compile") if rival in taken}
    return {"median_ms": taken, **ratios}


def races(cases: list[Case], device: str, quick: bool, deadline: float, compiled: bool) -> Iterator[dict[str, Any]]:
    """All of them, the sizes that matter most first; what has not begun by the deadline is named and left out."""
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    gates: dict[tuple[str, torch.dtype, str], tuple[str, str]] = {}
    for number in range(1 if quick else max(len(case.sizes) for case in cases)):
        for case in cases:
            for dtype in case.dtypes:
                for direction in ("forward", "forward+backward") if case.differentiate else ("forward",):
                    sizes = (case.small,) if quick else case.sizes
                    if number >= len(sizes):
                        continue
                    result: dict[str, Any] = {"operator": case.operator, "size": sizes[number], "dtype": str(dtype).removeprefix("torch.")}
                    result["direction"] = direction
                    if time.monotonic() > deadline:
                        yield result | {"skipped": "out of time"}
                        continue
                    for backend in backends:
                        if (case.operator, dtype, backend) not in gates:
                            gates[case.operator, dtype, backend] = gate(case, backend, dtype, device)
                    found = {backend: gates[case.operator, dtype, backend] for backend in backends}
                    result["refused"] = {b: refused for b, (refused, _) in found.items() if refused}
                    result["failed"] = {b: failed for b, (_, failed) in found.items() if failed}
                    able = [backend for backend in backends if not any(found[backend])]
                    try:
                        result |= race(case, sizes[number], dtype, direction, able, device, compiled)
                    except torch.OutOfMemoryError as error:
                        result["skipped"] = str(error)[:200]
                    except Exception as error:  # one race that fails must not take the others along
                        result["failed"] |= {"race": f"{type(error).__name__}: {error}"[:2000]}
                    yield result


def line_of(result: dict[str, Any]) -> str:
    """One result for a reader; everything is in OUT.json."""
    size = "x".join(map(str, result["size"]))
    parts = [f"{rival} {taken:.4g} ms" for rival, taken in result.get("median_ms", {}).items()]
    parts += [f"{backend} {key}: {text}" for key in ("refused", "failed") for backend, text in result.get(key, {}).items()]
    parts += [f"skipped: {result['skipped']}"] if "skipped" in result else []
    return f"{result['operator']} {size} {result['dtype']} {result['direction']}: {', '.join(parts)}"


def facts(device: str) -> dict[str, Any]:
    return {
        "emc_fast": __version__,
        "torch": torch.__version__,
        "triton": import_module("triton").__version__ if find_spec("triton") else "",
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "capability": capability(torch.cuda.current_device()) if device == "cuda" else 0,
        "library": native().stamp,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.operator for case in CASES]
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="what has not begun by then is left out, and named")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="OPERATOR", help=", ".join(names))
    parser.add_argument("--compile", action="store_true", help="race torch.compile of the plain form too")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    cases = [case for case in CASES if case.operator in options.only]
    results = []
    for result in races(cases, options.device, options.quick, deadline, options.compile):
        results.append(result)
        print(line_of(result), flush=True)
        options.out.write_text(json.dumps({"facts": facts(options.device), "results": results}, indent=1))
    return 1 if any(result.get("failed") for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
