"""attention_block against its definition and against the same block written with scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from emc_fast.ops import AttentionBlockWeights, attention_block
from emc_fast.ops.reference.attention_block import attention_block as definition

from .race import Case

# (B, T, d, heads)
SIZES = ([(4, 256, 128, 4)], [(1, 8, 128, 4), (64, 50, 64, 4), (4, 256, 128, 4), (16, 256, 360, 12), (1, 750, 128, 4), (16, 750, 128, 4)])
MATRICES = ("w_q", "w_k", "w_v", "w_o")


def gather(weights: dict[str, torch.Tensor]) -> AttentionBlockWeights:
    bias = {name.replace("w_", "b_"): weights["w_q"].new_zeros(weights["w_q"].shape[0]) for name in MATRICES}
    ln = torch.ones_like(bias["b_q"]), torch.zeros_like(bias["b_q"])
    return AttentionBlockWeights(**weights, **bias, ln_weight=ln[0], ln_bias=ln[1])


def with_sdpa(x, memory, weights, *, num_heads):
    q, k, v = (
        linear(y, w, b).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for y, w, b in ((x, weights.w_q, weights.b_q), (memory, weights.w_k, weights.b_k), (memory, weights.w_v, weights.b_v))
    )
    attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    return layer_norm(x + linear(attended, weights.w_o, weights.b_o), x.shape[-1:], weights.ln_weight, weights.ln_bias)


def test_attention_block(race, size, direction) -> None:
    batch, frames, width, heads = size
    inputs = {name: torch.randn(batch, frames, width) for name in ("x", "memory")}
    inputs |= {name: torch.randn(width, width) / width**0.5 for name in MATRICES}

    def of(block):
        return lambda x, memory, **weights: block(x, memory, gather(weights), num_heads=heads)

    flops = 4 * 2.0 * batch * frames * width**2 + 4.0 * batch * frames**2 * width
    race(
        Case(
            "attention_block",
            " x ".join(map(str, size)),
            of(attention_block),
            inputs,
            {"eager": of(definition), "sdpa": of(with_sdpa)},
            compiled=("sdpa",),
            differentiate=tuple(inputs),
            flops=(flops, 3 * flops),
        ),
        direction,
    )
