"""attention against the same in plain PyTorch and scaled_dot_product_attention; the sequences of a batch are of different lengths or not.

From T = 1024 on the peak memory is measured as well, which has to grow with T and not with its square.
"""

from __future__ import annotations

from functools import partial

import torch

from emc_fast.ops import attention, get_float32_precision, set_float32_precision
from emc_fast.reporting import OURS
from tests.ops import parity

from .costs import attention_work
from .race import Case
from .rivals import eager_attention, sdpa

# (B, T, H, D): Trans-VAE's training clips and whole clips; REGNN's 25 graphs of 50 frames and windows; FaceAIS's context and clips.
SHAPES = [
    (1, 8, 4, 32),
    (25, 50, 4, 16),
    (64, 50, 4, 32),
    (4, 256, 4, 32),
    (16, 256, 12, 30),
    (2, 736, 12, 30),
    (1, 750, 4, 32),
    (4, 750, 4, 32),
    (16, 750, 4, 32),
]
SIZES = (
    [(25, 50, 4, 16, "full"), (2, 736, 12, 30, "full"), (4, 256, 4, 32, "full"), (4, 750, 4, 32, "full"), (4, 750, 4, 32, "masked")],
    [(*shape, "full") for shape in SHAPES] + [(*shape, kind) for kind in ("masked", "causal") for shape in SHAPES[3:8:4]],
)
FRAMES = ([4096], [1024, 2048, 4096])


def case_of(batch: int, frames: int, heads: int, width: int, kind: str) -> Case:
    inputs = {name: torch.randn(batch, frames, heads, width) for name in ("query", "key", "value")}
    keys = batch * frames * (0.5 if kind == "causal" else 1.0)
    if kind == "masked":
        lengths = torch.linspace(frames, frames / 2, batch).long()
        inputs["key_mask"] = torch.arange(frames) < lengths[:, None]
        keys = float(lengths.sum())
    pairs = keys * heads * frames
    flops, exponentials = attention_work(pairs, width)
    ours, eager, fused = (partial(f, causal=kind == "causal") for f in (attention, eager_attention, sdpa))
    return Case(
        "attention",
        f"{batch} x {frames} x {heads} x {width} {kind}",
        ours,
        inputs,
        {"eager": eager, "sdpa": fused},
        differentiate=("query", "key", "value"),
        flops=flops,
        exponentials=exponentials,
        shape={"B": batch, "T": frames, "H": heads, "D": width},
    )


def test_attention(race, size, direction) -> None:
    case = case_of(*size)
    case.compiled = ("eager",) if size[4] == "full" else ()
    race(case, direction)


def test_attention_in_bfloat16(race, direction) -> None:
    """At the lowest precision on both sides: bfloat16 tensors, and ours set to round what it makes on the way as PyTorch's kernel does."""
    case = case_of(1, 750, 4, 32, "full")
    case.inputs = {name: x.bfloat16() for name, x in case.inputs.items()}
    case.size, case.alike = f"{case.size} bfloat16, medium", False  # each rounds otherwise
    case.rivals = {"sdpa": case.rivals["sdpa"]}

    def gate() -> None:
        """No further from the truth than twice what PyTorch's kernel is."""
        grads = [torch.linspace(-1, 1, case.inputs["query"].numel(), dtype=torch.float64).view_as(case.inputs["query"])]
        wanted = case.differentiate if direction != "forward" else ()
        truth = parity.run(sdpa, parity.cast(case.inputs, torch.float64), wanted, grads)
        ours, rival = (parity.run(f, case.inputs, wanted, grads) for f in (case.function, sdpa))
        for name, expected in truth.items():
            error, allowed = ((found[name].double() - expected).norm() for found in (ours, rival))
            assert error <= 2 * allowed, f"{name}: L2 error {error:.3g}, PyTorch's {allowed:.3g}"

    case.gate = gate
    before = get_float32_precision()
    set_float32_precision("medium")
    try:
        race(case, direction)
    finally:
        set_float32_precision(before)


def test_long_attention(race, frames, direction) -> None:
    case = case_of(1, frames, 4, 32, "full")
    case.series, case.memory = "T", True

    def gate() -> None:
        """One head is as good as four, which the float64 truth has no room for."""
        wanted = case.differentiate if direction != "forward" else ()
        one = {name: x[:, :, :1].contiguous() for name, x in case.inputs.items()}
        parity.assert_parity(case.function, one, torch.float32, parity.Target("auto", "cpu"), differentiate=wanted)

    case.gate = gate
    result = race(case, direction)
    if result.peak_bytes and frames >= 4096:
        ours, eager = (result.peak_bytes[name] for name in (OURS, "eager"))
        assert ours <= eager / 10, f"attention at T = {frames} takes {ours} bytes beyond its inputs, more than a tenth of eager's {eager}"
