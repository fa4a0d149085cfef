"""Operands of an attention block or sublayer by name, and what both are held to."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from emc_fast.ops import AttentionBlockWeights

from . import parity

WEIGHTS = AttentionBlockWeights._fields[:-1]
BIASES = ("b_q", "b_k", "b_v", "b_o", "ln_bias")


def draw_weights(rng: random.Random, d: int, absent: tuple[str, ...] = ()) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {}
    for name in WEIGHTS:
        if name.startswith("w_"):
            found[name] = parity.normal(rng, d, d, scale=d**-0.5)
        else:
            found[name] = None if name in absent else parity.normal(rng, d, scale=0.3) + (1.0 if name == "ln_weight" else 0.0)
    return found


def inputs_of(rng: random.Random, b: int, t: int, s: int, d: int, absent: tuple[str, ...] = ()) -> dict[str, Tensor | None]:
    return {"x": parity.normal(rng, b, t, d), "memory": parity.normal(rng, b, s, d), **draw_weights(rng, d, absent)}


def differentiable(inputs: dict[str, Tensor | None], *without: str) -> list[str]:
    return [n for n, x in inputs.items() if x is not None and n not in without]


def assert_any_layout(function: Callable[..., Tensor]) -> None:
    """Strides of x, memory and the incoming gradient; the products of torch choose their path by strides, so bits may differ there."""
    inputs = inputs_of(random.Random(2), 2, 30, 20, 32)
    names, grads = differentiable(inputs, "b_k"), [parity.normal(random.Random(5), 2, 30, 32)]
    dense = parity.run(function, inputs, names, grads)
    for kind in ("permuted", "spread", "shifted"):
        other = {n: parity.layouts(x)[kind] if x is not None else None for n, x in inputs.items()}
        found = parity.run(function, other, names, [parity.layouts(grads[0])[kind]])
        for name in dense:
            torch.testing.assert_close(found[name], dense[name], rtol=2e-5, atol=2e-5)
    ones = parity.run(function, inputs, names, [torch.ones(()).expand(2, 30, 32)])
    for name, grad in parity.run(function, inputs, names, [torch.ones(2, 30, 32)]).items():
        assert torch.equal(ones[name], grad)


def assert_zero_size(function: Callable[..., Tensor], shape: tuple[int, int, int]) -> None:
    """B, T or S of 0: the result has its shape, and every gradient is finite."""
    inputs = inputs_of(random.Random(1), *shape, 16)
    found = parity.run(function, inputs, differentiable(inputs), [torch.ones(*shape[:2], 16)])
    assert found["out0"].shape == (*shape[:2], 16)
    assert all(x.isfinite().all() for x in found.values())
    assert not found["d_memory"].any()


def assert_masked_memory_may_hold_anything(function: Callable[..., Callable[..., Tensor]], seed: int) -> None:
    """NaN in masked rows changes no bit; `function` takes the mask."""
    rng = random.Random(seed)
    inputs = inputs_of(rng, 3, 20, 50, 64)
    mask = parity.mask(seed, 3, 50, share=0.6)
    mask[1] = False
    names, grads = differentiable(inputs), [parity.normal(rng, 3, 20, 64)]
    clean = parity.run(function(key_mask=mask), inputs, names, grads)
    assert isinstance(inputs["memory"], Tensor)
    dirty = inputs | {"memory": torch.where(mask[..., None], inputs["memory"], float("nan"))}
    found = parity.run(function(key_mask=mask), dirty, names, grads)
    for name in clean:
        assert torch.equal(clean[name], found[name]), name
    assert not found["d_memory"][~mask].any()
