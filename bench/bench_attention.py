"""attention against its definition and scaled_dot_product_attention; the sequences of a batch are of different lengths or not."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from emc_fast.ops import attention
from emc_fast.ops.reference.attention import attention as definition

from .race import Case

# (B, T, H, D): Trans-VAE's training clips and whole clips; REGNN's windows; FaceAIS's context.
SHAPES = [
    (1, 8, 4, 32),
    (4, 50, 4, 16),
    (64, 50, 4, 32),
    (4, 256, 4, 32),
    (16, 256, 12, 30),
    (1, 750, 4, 32),
    (4, 750, 4, 32),
    (16, 750, 4, 32),
]
SIZES = (
    [(4, 256, 4, 32, "full"), (4, 750, 4, 32, "full"), (4, 750, 4, 32, "masked")],
    [(*shape, kind) for kind in ("full", "masked", "causal") for shape in SHAPES],
)


def sdpa(query, key, value, key_mask=None, causal=False):
    mask = None if key_mask is None else key_mask[:, None, None, :]
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*heads_first, attn_mask=mask, is_causal=causal).transpose(1, 2)


def test_attention(race, size, direction) -> None:
    *shape, kind = size
    batch, frames, heads, width = shape
    inputs = {name: torch.randn(shape) for name in ("query", "key", "value")}
    if kind == "masked":
        lengths = torch.linspace(frames, frames / 2, batch).long()
        inputs["key_mask"] = torch.arange(frames) < lengths[:, None]
    products = 2.0 * batch * heads * frames * frames * width * (0.5 if kind == "causal" else 1.0)
    functions = [partial(f, causal=kind == "causal") for f in (attention, definition, sdpa)]
    race(
        Case(
            "attention",
            " x ".join(map(str, shape)) + f" {kind}",
            functions[0],
            inputs,
            {"eager": functions[1], "sdpa": functions[2]},
            compiled=("eager",),
            differentiate=("query", "key", "value"),
            flops=(2 * products, 7 * products),  # two products forward, five backward
        ),
        direction,
    )
