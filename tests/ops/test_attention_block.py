"""attention_block: values, gradients of every operand, masks, dropout, mixed precision and the rules of an operator."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from emc_fast.ops import AttentionBlockWeights, attention, attention_block, dropout, use_backend

from . import parity
from .block_inputs import (
    BIASES,
    WEIGHTS,
    assert_any_layout,
    assert_masked_memory_may_hold_anything,
    assert_zero_size,
    differentiable,
    draw_weights,
    inputs_of,
)
from .parity import Target


def block(**options: Any) -> Callable[..., Tensor]:
    """The operator as a function of its tensors by name; without `memory` it is self-attention."""

    def function(x: Tensor, memory: Tensor | None = None, **weights: Any) -> Tensor:
        return attention_block(x, x if memory is None else memory, AttentionBlockWeights(**weights), **options)

    return function


def draw(seed: int) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    rng = random.Random(seed)
    heads, width = rng.choice([(1, 64), (2, 16), (4, 30), (4, 32), (3, 5), (12, 30)])
    t, s = (parity.pick(rng, 1, range(2, 90)) for _ in range(2))
    absent = tuple(name for name in BIASES if rng.random() < 0.3)
    b = rng.randrange(1, 4)
    if t == 1:
        b = 8  # of one row alone PyTorch's error, by which ours is judged, is a matter of luck: a statistic's rounding moves all of it
    inputs = inputs_of(rng, b, t, max(s, 2), heads * width, absent)
    causal = rng.random() < 0.4
    options: dict[str, Any] = {"num_heads": heads, "causal": causal, "window": rng.choice([None, 5]) if causal else None}
    if rng.random() < 0.5:
        memory = inputs["memory"]
        assert memory is not None
        options["key_mask"] = parity.mask(seed, *memory.shape[:2], share=0.7)
    return inputs, options


@parity.seeds(4)
@parity.dtypes()
def test_parity(target: Target, dtype: torch.dtype, seed: int) -> None:
    inputs, options = draw(seed)
    # The gradient of b_k is 0 in truth (it shifts all scores of a query alike), so there is nothing to hold its rounding against.
    parity.assert_parity(block(**options), inputs, dtype, target, differentiate=differentiable(inputs, "b_k"), seed=seed)


@parity.seeds(4, first=300)
@parity.dtypes()
def test_parity_of_few_frames(target: Target, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At inference, where CUDA has kernels for the whole of a block of a few frames and narrow heads."""
    module, served = importlib.import_module("emc_fast.ops.attention_block"), []
    real = module._inference
    monkeypatch.setattr(module, "_inference", lambda *args: served.append(1) or real(*args))
    rng = random.Random(seed)
    heads, width = rng.choice([(4, 32), (12, 30), (8, 16), (2, 5), (5, 28)])
    most = 32 if dtype == torch.float32 else 64
    t, s, b = rng.choice([1, 8, most]), rng.randrange(1, most + 1), rng.randrange(4, 8)
    inputs = inputs_of(rng, b, t, s, heads * width, tuple(name for name in BIASES if rng.random() < 0.3))
    causal = rng.random() < 0.4
    options: dict[str, Any] = {"num_heads": heads, "causal": causal, "window": rng.choice([None, 5]) if causal else None}
    if seed % 2:
        options["key_mask"] = parity.mask(seed, b, s, share=0.7)
    parity.assert_parity(block(**options), inputs, dtype, target, seed=seed)
    assert len(served) == (target.backend != "triton")  # which has no kernels for it


@pytest.mark.parametrize(("dtype", "frames", "once"), [(torch.float16, 200, 1), (torch.bfloat16, 128, 1), (torch.bfloat16, 129, 0)])
def test_half_types_on_the_cpu_go_through_float32(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, frames: int, once: int) -> None:
    """Where that is faster, and only where nothing is recorded; by frames, so that a clip's bits do not depend on what stands beside it."""
    module, served = importlib.import_module("emc_fast.ops.attention_block"), []
    real = module._inference
    monkeypatch.setattr(module, "_inference", lambda *args: served.append(1) or real(*args))
    inputs = parity.cast(inputs_of(random.Random(0), 2, frames, 5, 32), dtype)
    found = block(num_heads=2)(**inputs)
    assert len(served) == once
    assert found.dtype == dtype
    alone = block(num_heads=2)(**{**inputs, "x": inputs["x"][:1], "memory": inputs["memory"][:1]})
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=0)
    recorded = block(num_heads=2)(**{**inputs, "x": inputs["x"].detach().requires_grad_()})
    assert len(served) == 2 * once
    assert recorded.requires_grad
    with pytest.raises(TypeError, match=r"weights\.w_k must have the dtype of x"):
        block(num_heads=2)(**{**inputs, "w_k": inputs["w_k"].float()})


@parity.seeds(3, first=50)
def test_parity_with_dropout(target: Target, seed: int) -> None:
    inputs, options = draw(seed)
    function = block(**options, dropout_p=0.3, seed=seed, stream=20)
    parity.assert_parity(function, inputs, torch.float32, target, differentiate=differentiable(inputs, "b_k"), seed=seed)


def test_parity_of_wide_rows(target: Target) -> None:
    """Rows of more columns than a kernel keeps in registers, and an odd number of them."""
    inputs = inputs_of(random.Random(7), 1, 21, 4, 535)
    function = block(num_heads=5, dropout_p=0.2, seed=3)
    parity.assert_parity(function, inputs, torch.float32, target, differentiate=["x", "b_o", "ln_weight", "ln_bias"])


def test_self_attention_adds_both_gradients(target: Target) -> None:
    inputs = inputs_of(random.Random(1), 2, 70, 1, 64)
    del inputs["memory"]
    parity.assert_parity(block(num_heads=2), inputs, torch.float32, target, differentiate=differentiable(inputs, "b_k"))


def test_key_bias_gradient_vanishes(target: Target) -> None:
    inputs = inputs_of(random.Random(1), 2, 70, 60, 64)
    found = parity.run(block(num_heads=2), inputs, ["b_k", "b_v"], [parity.normal(random.Random(0), 2, 70, 64)])
    assert found["d_b_k"].abs().max() < 1e-5 * found["d_b_v"].abs().max()


def test_is_what_its_parts_give(target: Target) -> None:
    """The equation from torch's own layers, with the two dropouts in their streams."""
    rng = random.Random(3)
    inputs = inputs_of(rng, 2, 33, 41, 60)
    x, memory, *weights = inputs.values()
    w = AttentionBlockWeights(*weights)
    mask = torch.rand(2, 41) < 0.8
    seeds = torch.tensor([4, 5])
    found = attention_block(x, memory, w, num_heads=2, key_mask=mask, dropout_p=0.2, seed=seeds, stream=9)
    q, k, v = (
        torch.nn.functional.linear(y, m, b).unflatten(-1, (2, 30)) for y, m, b in ((x, *w[0:2]), (memory, *w[2:4]), (memory, *w[4:6]))
    )
    attended = attention(q, k, v, key_mask=mask, dropout_p=0.2, seed=seeds, stream=9).flatten(2)
    update = dropout(torch.nn.functional.linear(attended, w.w_o, w.b_o), 0.2, seed=seeds, stream=10)
    expected = layer_norm(x + update, (60,), w.ln_weight, w.ln_bias, w.ln_eps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@parity.seeds(2)
def test_masked_memory_may_hold_anything(target: Target, seed: int) -> None:
    assert_masked_memory_may_hold_anything(partial(block, num_heads=2, dropout_p=0.1, seed=seed), seed)


def test_nothing_to_attend_leaves_the_residual(target: Target) -> None:
    inputs = inputs_of(random.Random(2), 2, 5, 7, 16)
    x, memory, *weights = inputs.values()
    w = AttentionBlockWeights(*weights)
    found = attention_block(x, memory, w, num_heads=2, key_mask=torch.zeros(2, 7, dtype=torch.bool))
    torch.testing.assert_close(found, layer_norm(x + w.b_o, (16,), w.ln_weight, w.ln_bias, w.ln_eps))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_at_its_ends(target: Target, p: float) -> None:
    inputs = inputs_of(random.Random(2), 2, 5, 7, 16)
    parity.assert_parity(block(num_heads=2, dropout_p=p, seed=1), inputs, torch.float32, target, differentiate=["x", "w_o", "ln_weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_lowers_the_products(target: Target, dtype: torch.dtype) -> None:
    """Projections and attention in autocast's dtype, residual and LayerNorm in float32, gradients in the parameters' dtype."""
    inputs = inputs_of(random.Random(3), 2, 40, 50, 64)
    leaves = {n: x.requires_grad_() for n, x in inputs.items() if x is not None}
    with torch.autocast(target.device, dtype=dtype):
        out = block(num_heads=2)(**leaves)
    assert out.dtype == torch.float32
    grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
    with use_backend("reference"):
        exact = {n: x.detach().double().requires_grad_() for n, x in leaves.items()}
        truth = block(num_heads=2)(**exact)
        expected = torch.autograd.grad(truth.square().sum(), list(exact.values()))
    unit = torch.finfo(dtype).eps
    assert (out - truth).norm() < unit * truth.norm()
    for name, grad, true in zip(leaves, grads, expected, strict=True):
        assert grad.dtype == torch.float32
        if name != "b_k":
            assert (grad - true).norm() < 8 * unit * true.norm(), name


def test_deterministic(target: Target) -> None:
    inputs = inputs_of(random.Random(2), 2, 300, 130, 64)
    parity.assert_deterministic(block(num_heads=2, dropout_p=0.1, seed=3), inputs, differentiate=["x", "memory", *WEIGHTS])


def test_any_layout(target: Target) -> None:
    assert_any_layout(block(num_heads=2))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, int, int]) -> None:
    assert_zero_size(block(num_heads=2), shape)


def test_gradcheck() -> None:
    inputs = inputs_of(random.Random(5), 2, 3, 4, 4, absent=("b_v",))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    function = block(num_heads=2, key_mask=mask, dropout_p=0.2, seed=2)
    parity.assert_gradcheck(function, inputs, ["x", "memory", "w_q", "w_k", "b_o", "ln_weight"])


def test_second_derivative(target: Target) -> None:
    inputs = inputs_of(random.Random(5), 1, 5, 6, 8)
    parity.assert_second_derivative(block(num_heads=2, causal=True), inputs, ["x", "memory", "w_v", "ln_weight"], target)


def test_frozen_operands_get_no_gradient(target: Target) -> None:
    inputs, options = draw(2)
    parity.assert_parity(block(**options), inputs, torch.float32, target, differentiate=["memory", "w_o"])


def test_compiles() -> None:
    weights = draw_weights(random.Random(0), 32, absent=("b_k",))

    def make(t: int) -> dict[str, Tensor | None]:
        rng = random.Random(t)
        return {"x": parity.normal(rng, 2, t, 32), "memory": parity.normal(rng, 2, t + 3, 32), **weights}

    function = block(num_heads=2, dropout_p=0.1, seed=torch.tensor([4]))
    parity.assert_compiles(function, make, (12, 20, 33), ["x", "memory", "w_q", "w_o", "ln_weight"])


def test_exports() -> None:
    weights = AttentionBlockWeights(*draw_weights(random.Random(0), 32).values())

    def make(t: int) -> dict[str, Tensor]:
        return {"x": parity.normal(random.Random(t), 2, t, 32)}

    parity.assert_exports(lambda x: attention_block(x, x, weights, num_heads=2, causal=True), make, 1, "emc_fast.attention_block")


def test_opcheck() -> None:
    inputs = inputs_of(random.Random(1), 2, 5, 6, 16, absent=("b_k", "ln_bias"))
    tensors = [x if x is None else x.requires_grad_() for x in inputs.values()]
    mask, seed = torch.rand(2, 6) < 0.7, torch.tensor([1])
    options = (1e-5, 2, mask, True, 3, 0.1, seed, 2)
    parity.assert_opcheck(torch.ops.emc_fast.attention_block.default, *tensors, *options)
    detached = [x if x is None else x.detach() for x in tensors]
    out, *saved = torch.ops.emc_fast.attention_block(*detached, *options)
    parity.assert_opcheck(torch.ops.emc_fast.attention_block_backward.default, out, *saved, *detached, *options)
    x, update, weight, mean, deviation = detached[0], saved[5], detached[10], saved[6], saved[7]
    parity.assert_opcheck(torch.ops.emc_fast.attention_block_epilogue.default, x, update, weight, None, 1e-5, 0.1, seed, 3)
    backward = torch.ops.emc_fast.attention_block_epilogue_backward.default
    parity.assert_opcheck(backward, out, x, update, weight, mean, deviation, 0.1, seed, 3)


X, M = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)
W = AttentionBlockWeights(*[torch.zeros(8, 8), torch.zeros(8)] * 4, torch.zeros(8), torch.zeros(8))
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"x": X[0]}, ValueError, r"x must have the 3 dimensions \(B,T,d\), got shape \(3, 8\)"),
    ({"memory": M[:1]}, ValueError, r"memory must have shape \(B,S,d\) with B and d of x, \(2, 'S', 8\), got \(1, 5, 8\)"),
    ({"memory": M.half()}, TypeError, "memory must have the dtype of x, torch.float32, got torch.float16"),
    ({"memory": M.to("meta")}, ValueError, "memory must be on cpu with x, got meta"),
    ({"weights": tuple(W)}, TypeError, "weights must be an AttentionBlockWeights, got tuple"),
    ({"weights": W._replace(w_k=None)}, TypeError, "weights.w_k must be a tensor, got NoneType"),
    ({"weights": W._replace(w_k=torch.zeros(8, 4))}, ValueError, r"weights.w_k must have shape \(8, 8\) for x of width 8, got \(8, 4\)"),
    ({"weights": W._replace(b_o=torch.zeros(4))}, ValueError, r"weights.b_o must have shape \(8,\)"),
    ({"weights": W._replace(ln_weight=torch.zeros(8).half())}, TypeError, "weights.ln_weight must have the dtype of x"),
    ({"weights": W._replace(ln_eps=None)}, TypeError, "weights.ln_eps must be a number, got NoneType"),
    ({"num_heads": 3}, ValueError, "num_heads must be at least 1 and divide the width d = 8 of x, got 3"),
    ({"num_heads": 2.0}, TypeError, "num_heads must be an int, got float"),
    ({"key_mask": torch.ones(2, 3).bool()}, ValueError, r"key_mask must have shape \(B,S\) = \(2, 5\) as memory says"),
    ({"window": 3}, ValueError, "needs causal=True"),
    ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0, 1\], got -0.1"),
    ({"dropout_p": 0.1, "seed": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"seed must have shape \(1,\) or a prefix"),
    ({"stream": 2**32 - 1}, ValueError, "stream must be in"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text[:30] for *_, text in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        partial(attention_block, num_heads=2)(**{"x": X, "memory": M, "weights": W, **change})
