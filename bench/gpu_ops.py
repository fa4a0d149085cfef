"""Operators on a GPU: each back end beside plain PyTorch (for attention, its fused one), `torch.compile` of it and the device's own copy.

    python bench/gpu_ops.py OUT.json [--seconds 120] [--device cuda] [--quick]

An operator is timed only after it has passed the tests' error rule on a smaller input. Times are medians of CUDA events over interleaved
rounds; the claim is a ratio of one run. `--device cpu --quick` goes through everything on a CPU, with small sizes, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emc_fast import __version__
from emc_fast.errors import BackendError
from emc_fast.ops import attention, fusion_kl, reparameterize, use_backend
from emc_fast.ops._library import native
from tests.ops import parity

Call = Callable[[], Any]
Sizes = tuple[tuple[int, ...], ...]
#: Sizes to time, to go through quickly, and to look at for correctness: rows of a latent, and (B,T,H,D) of attention.
ROWS: tuple[Sizes, Sizes, tuple[int, ...]] = (((48000, 128), (3_100_000, 128)), ((200, 128),), (300, 128))
HEADS: tuple[Sizes, Sizes, tuple[int, ...]] = (((4, 256, 4, 32), (16, 750, 4, 32), (16, 256, 12, 30)), ((1, 40, 2, 32),), (2, 70, 2, 32))
ROUNDS = 15


def gaussians(mu_r: Tensor, mu_f: Tensor, mu_s: Tensor, lv_r: Tensor, lv_f: Tensor, lv_s: Tensor) -> Tensor:
    return fusion_kl((mu_r, lv_r), (mu_f, lv_f), (mu_s, lv_s))


def plain_gaussians(*x: Tensor) -> Tensor:
    m, v = [t.float() for t in x[:3]], [t.float() for t in x[3:]]

    def kl(p: int, q: int) -> Tensor:
        return 0.5 * ((v[p] - v[q]).exp() - 1 - (v[p] - v[q]) + (m[p] - m[q]).square() * (-v[q]).exp()).sum(-1)

    return (kl(0, 1) + kl(0, 2) + kl(1, 2)).mean()


def plain_draw(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    m, v = mu.float(), logvar.float()
    z = m + (0.5 * v).exp() * torch.randn_like(m)
    return z.to(mu.dtype), 0.5 * (m.square() + v.exp() - 1 - v).sum(-1)


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


#: Operator, its plain form, number of inputs, tensors read and written by forward and by forward with backward, sizes.
OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int, tuple[int, int], tuple[Sizes, Sizes, tuple[int, ...]]]] = {
    "fusion_kl": (gaussians, plain_gaussians, 6, (6, 18), ROWS),
    "reparameterize": (partial(reparameterize, seed=7), plain_draw, 2, (3, 8), ROWS),
    "attention": (attention, plain_attention, 3, (4, 11), HEADS),
}


def milliseconds(call: Call, device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def forward(function: Callable[..., Any], inputs: list[Tensor]) -> Call:
    def call() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return call


def both(function: Callable[..., Any], inputs: list[Tensor]) -> Call:
    leaves = [x.detach().requires_grad_() for x in inputs]
    outs = parity.outputs_of(function(*leaves))
    grads = [torch.ones_like(out) for out in outs]
    return lambda: torch.autograd.grad(parity.outputs_of(function(*leaves)), leaves, grads)


def served_by(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*inputs: Tensor) -> Any:
        with use_backend(backend):  # type: ignore[arg-type]
            return function(*inputs)

    return call


def gate(function: Callable[..., Any], count: int, size: tuple[int, ...], backend: str, dtype: torch.dtype, device: str) -> str:
    """Why the back end is not timed, or the empty string: it cannot serve, or it is not right."""
    inputs = {f"x{i}": torch.randn(size, device=device) for i in range(count)}
    try:
        parity.assert_parity(lambda **x: function(*x.values()), inputs, dtype, parity.Target(backend, device), differentiate=tuple(inputs))
    except (BackendError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def races(device: str, quick: bool, deadline: float) -> Iterator[dict[str, Any]]:
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    for name, (function, plain, count, traffic, (sizes, quick_sizes, small)) in OPERATORS.items():
        for dtype in (torch.float32, torch.bfloat16):
            refused = {backend: gate(function, count, small, backend, dtype, device) for backend in backends}
            for size in quick_sizes if quick else sizes:
                for direction, make in (("forward", forward), ("forward+backward", both)):
                    if time.monotonic() > deadline:
                        yield {"operator": name, "size": size, "dtype": str(dtype), "direction": direction, "skipped": "out of time"}
                        continue
                    inputs = [torch.randn(size, device=device).to(dtype) for _ in range(count)]
                    torch._dynamo.reset()
                    calls = {backend: make(served_by(backend, function), inputs) for backend in backends if not refused[backend]}
                    calls |= {"eager": make(plain, inputs)}
                    if device == "cuda":
                        calls |= {"compile": make(torch.compile(plain), inputs)}
                    moved = traffic[direction != "forward"] * inputs[0].numel() * inputs[0].element_size()
                    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
                    calls["copy"] = source.clone
                    for call in calls.values():
                        for _ in range(3):
                            call()
                    times: dict[str, list[float]] = {key: [] for key in calls}
                    for _ in range(ROUNDS):
                        for key, call in calls.items():
                            times[key].append(milliseconds(call, device))
                    medians = {key: statistics.median(values) for key, values in times.items()}
                    yield {
                        "operator": name,
                        "size": size,
                        "dtype": str(dtype).removeprefix("torch."),
                        "direction": direction,
                        "median_ms": medians,
                        "of_copy_bandwidth": {b: medians["copy"] / medians[b] for b in backends if b in medians},
                        "ratio_to_compile": {b: medians["compile"] / medians[b] for b in backends if b in medians and "compile" in medians},
                        "refused": {b: why for b, why in refused.items() if why},
                    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="what has not begun by then is left out, and named")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    facts = {
        "emc_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor(),
        "library": native().stamp,
    }
    results = []
    for result in races(options.device, options.quick, time.monotonic() + options.seconds):
        results.append(result)
        print(json.dumps(result), flush=True)
        options.out.write_text(json.dumps({"facts": facts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
