"""attention_block against the same block in plain PyTorch and with scaled_dot_product_attention; how its cost grows."""

from __future__ import annotations

import torch

from emc_fast.ops import AttentionBlockWeights, attention_block

from .costs import block_work
from .race import Case
from .rivals import block_on, eager_attention, sdpa

# (B, T, d, heads)
SIZES = (
    [(1, 8, 128, 4), (4, 256, 128, 4)],
    [(1, 8, 128, 4), (64, 50, 64, 4), (4, 256, 128, 4), (16, 256, 360, 12), (1, 750, 128, 4), (16, 750, 128, 4)],
)
MATRICES = ("w_q", "w_k", "w_v", "w_o")

# What grows: sizes as above, and the number of threads.
GROWTH = (
    [("T", (1, frames, 128, 4), 1) for frames in (8, 128, 512)],
    [("T", (1, frames, 128, 4), 1) for frames in (8, 32, 128, 512, 1024, 2048, 4096)]
    + [("B", (batch, 50, 128, 4), 1) for batch in (1, 4, 16, 64)]
    + [("d", (4, 256, width, heads), 1) for width, heads in ((64, 2), (128, 4), (256, 8), (360, 12), (512, 16))]
    + [("threads", (4, 256, 128, 4), threads) for threads in (1, 2)],
)


def gather(weights: dict[str, torch.Tensor]) -> AttentionBlockWeights:
    bias = {name.replace("w_", "b_"): weights["w_q"].new_zeros(weights["w_q"].shape[0]) for name in MATRICES}
    ln = torch.ones_like(bias["b_q"]), torch.zeros_like(bias["b_q"])
    return AttentionBlockWeights(**weights, **bias, ln_weight=ln[0], ln_bias=ln[1])


def case_of(batch: int, frames: int, width: int, heads: int) -> Case:
    inputs = {name: torch.randn(batch, frames, width) for name in ("x", "memory")}
    inputs |= {name: torch.randn(width, width) / width**0.5 for name in MATRICES}

    def of(block):
        return lambda x, memory, **weights: block(x, memory, gather(weights), num_heads=heads)

    flops, exponentials = block_work(batch, frames, width, heads)
    return Case(
        "attention_block",
        f"{batch} x {frames} x {width} x {heads}",
        of(attention_block),
        inputs,
        {"eager": of(block_on(eager_attention)), "sdpa": of(block_on(sdpa))},
        differentiate=tuple(inputs),
        flops=flops,
        exponentials=exponentials,
        shape={"B": batch, "T": frames, "d": width, "H": heads},
    )


def test_attention_block(race, size, direction) -> None:
    case = case_of(*size)
    case.compiled = ("sdpa",)
    race(case, direction)


def test_growth(race, growth, direction) -> None:
    """Without torch.compile, which would take minutes for it."""
    grows, size, threads = growth
    case = case_of(*size)
    case.series = grows
    case.size = f"{case.size}, along {grows}"
    race(case, direction, threads=threads)
