"""attention_sublayer: values and gradients with and without a memory, a LayerNorm and the residual, and the rules of an operator."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from emc_fast.ops import AttentionBlockWeights, attention, attention_sublayer, dropout

from . import parity
from .block_inputs import (
    BIASES,
    assert_any_layout,
    assert_masked_memory_may_hold_anything,
    assert_zero_size,
    differentiable,
    draw_weights,
    inputs_of,
)
from .parity import Target


def sublayer(**options: Any) -> Callable[..., Tensor]:
    """The operator as a function of its tensors by name; memory and LayerNorm may be left out."""

    def function(x: Tensor, memory: Tensor | None = None, **weights: Any) -> Tensor:
        return attention_sublayer(x, memory, AttentionBlockWeights(**{"ln_weight": None, "ln_bias": None, **weights}), **options)

    return function


def without_norm(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: x for name, x in inputs.items() if not name.startswith("ln_")}


def draw(seed: int) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    rng = random.Random(seed)
    heads, width = rng.choice([(1, 64), (2, 16), (4, 12), (4, 30), (4, 32), (3, 5), (12, 30)])
    t, s = (parity.pick(rng, 1, range(2, 90)) for _ in range(2))
    absent = tuple(name for name in BIASES if rng.random() < 0.3)
    inputs = inputs_of(rng, rng.randrange(1, 4), max(t, 2), max(s, 2), heads * width, absent)
    if seed % 2:
        del inputs["memory"]
    if seed % 3 == 2:
        inputs = without_norm(inputs)
    causal = rng.random() < 0.4
    options: dict[str, Any] = {"num_heads": heads, "causal": causal, "window": rng.choice([None, 5]) if causal else None}
    options["residual"] = seed % 4 != 3
    if rng.random() < 0.5:
        told = inputs.get("memory", inputs["x"])
        assert told is not None
        options["key_mask"] = parity.mask(seed, *told.shape[:2], share=0.7)
    return inputs, options


@parity.seeds(12)
def test_parity(target: Target, seed: int) -> None:
    inputs, options = draw(seed)
    # As for the block, the gradient of b_k is 0 in truth.
    parity.assert_parity(sublayer(**options), inputs, torch.float32, target, differentiate=differentiable(inputs, "b_k"), seed=seed)


@parity.seeds(6, first=70)
def test_parity_with_dropout(target: Target, seed: int) -> None:
    inputs, options = draw(seed)
    function = sublayer(**options, attention_dropout_p=[0.3, 0.0, 0.2][seed % 3], dropout_p=[0.1, 0.4, 0.0][seed % 3], seed=seed, stream=20)
    parity.assert_parity(function, inputs, torch.float32, target, differentiate=differentiable(inputs, "b_k"), seed=seed)


def test_self_attention_is_attention_to_the_normalised_rows(target: Target) -> None:
    inputs = inputs_of(random.Random(1), 2, 40, 1, 64)
    x, _, *rest = inputs.values()
    w = AttentionBlockWeights(*rest)
    alone = attention_sublayer(x, None, w, num_heads=2)
    asked = layer_norm(x, (64,), w.ln_weight, w.ln_bias, w.ln_eps)
    torch.testing.assert_close(alone, attention_sublayer(x, asked, w, num_heads=2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_what_its_parts_give(target: Target, dtype: torch.dtype) -> None:
    """The equation from torch's own layers, with the two dropouts in their streams; in the half types that is how it is made."""
    rng = random.Random(3)
    x, memory, *weights = (y.to(dtype) for y in inputs_of(rng, 2, 33, 41, 60).values() if y is not None)
    w = AttentionBlockWeights(*weights)
    mask, seeds = torch.rand(2, 41) < 0.8, torch.tensor([4, 5])
    found = attention_sublayer(
        x, memory, w, num_heads=2, key_mask=mask, attention_dropout_p=0.2, dropout_p=0.3, seed=seeds, stream=9, residual=False
    )
    asked, told = layer_norm(x, (60,), w.ln_weight, w.ln_bias, w.ln_eps), torch.where(mask[..., None], memory, 0.0)
    heads = [linear(y, m, b).unflatten(-1, (2, 30)) for y, m, b in ((asked, *w[0:2]), (told, *w[2:4]), (told, *w[4:6]))]
    attended = attention(*heads, key_mask=mask, dropout_p=0.2, seed=seeds, stream=9).flatten(2)
    expected = dropout(linear(attended, w.w_o, w.b_o), 0.3, seed=seeds, stream=10)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-2)


@parity.seeds(2)
def test_masked_memory_may_hold_anything(target: Target, seed: int) -> None:
    assert_masked_memory_may_hold_anything(partial(sublayer, num_heads=2, attention_dropout_p=0.1, dropout_p=0.1, seed=seed), seed)


@pytest.mark.parametrize("residual", [True, False])
def test_nothing_to_attend_leaves_the_bias(target: Target, residual: bool) -> None:
    inputs = inputs_of(random.Random(2), 2, 5, 7, 16)
    x, memory, *weights = inputs.values()
    w = AttentionBlockWeights(*weights)
    found = attention_sublayer(x, memory, w, num_heads=2, key_mask=torch.zeros(2, 7, dtype=torch.bool), residual=residual)
    torch.testing.assert_close(found, x + w.b_o if residual else w.b_o.expand_as(x))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_at_its_ends(target: Target, p: float) -> None:
    inputs = inputs_of(random.Random(2), 2, 5, 7, 16)
    function = sublayer(num_heads=2, attention_dropout_p=p, dropout_p=p, seed=1)
    parity.assert_parity(function, inputs, torch.float32, target, differentiate=["x", "w_o", "ln_weight"])


def test_autocast_follows_its_parts(target: Target) -> None:
    inputs = inputs_of(random.Random(3), 2, 40, 50, 64)
    leaves = {n: x.requires_grad_() for n, x in inputs.items() if x is not None}
    with torch.autocast(target.device, dtype=torch.bfloat16):
        out = sublayer(num_heads=2)(**leaves)
    grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
    exact = sublayer(num_heads=2)(**{n: x.detach() for n, x in leaves.items()})
    assert (out - exact).norm() < torch.finfo(torch.bfloat16).eps * exact.norm()
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_deterministic(target: Target) -> None:
    inputs = inputs_of(random.Random(2), 2, 300, 130, 64)
    function = sublayer(num_heads=2, attention_dropout_p=0.1, dropout_p=0.1, seed=3)
    parity.assert_deterministic(function, inputs, differentiate=differentiable(inputs))


def test_any_layout(target: Target) -> None:
    assert_any_layout(sublayer(num_heads=2))


def test_takes_parts_of_a_joint_matrix(target: Target) -> None:
    """The three projections of one matrix, as language models keep them: its gradient is whole."""
    rng = random.Random(4)
    inputs = inputs_of(rng, 2, 21, 1, 48)
    joint = torch.cat([x for n in ("w_q", "w_k", "w_v") if (x := inputs[n]) is not None]).requires_grad_()
    parts = dict(zip(("w_q", "w_k", "w_v"), joint.chunk(3), strict=True))
    del inputs["memory"]
    out = sublayer(num_heads=4)(**{**inputs, **parts})
    grad = torch.autograd.grad(out.square().sum(), joint)[0]
    apart = parity.run(sublayer(num_heads=4), inputs, ["w_q", "w_k", "w_v"], [2 * out.detach()])
    torch.testing.assert_close(grad, torch.cat([apart["d_w_q"], apart["d_w_k"], apart["d_w_v"]]))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, int, int]) -> None:
    assert_zero_size(sublayer(num_heads=2), shape)


def test_gradcheck() -> None:
    inputs = inputs_of(random.Random(5), 2, 3, 4, 4, absent=("b_v",))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    function = sublayer(num_heads=2, key_mask=mask, attention_dropout_p=0.1, dropout_p=0.2, seed=2)
    parity.assert_gradcheck(function, inputs, ["x", "memory", "w_q", "w_k", "b_o", "ln_weight"])


def test_second_derivative(target: Target) -> None:
    inputs = inputs_of(random.Random(5), 1, 5, 6, 8)
    parity.assert_second_derivative(sublayer(num_heads=2, causal=True), inputs, ["x", "memory", "w_v", "ln_weight"], target)


def test_frozen_operands_get_no_gradient(target: Target) -> None:
    inputs, options = draw(6)
    parity.assert_parity(sublayer(**options), inputs, torch.float32, target, differentiate=["memory", "w_o"])


@pytest.mark.parametrize("normed", [True, False])
def test_compiles(normed: bool) -> None:
    weights = draw_weights(random.Random(0), 32, absent=("b_k",))

    def make(t: int) -> dict[str, Tensor | None]:
        found = {"x": parity.normal(random.Random(t), 2, t, 32), **weights}
        return found if normed else without_norm(found)

    function = sublayer(num_heads=2, attention_dropout_p=0.1, dropout_p=0.1, seed=torch.tensor([4]), residual=normed)
    parity.assert_compiles(function, make, (12, 20, 33), ["x", "w_q", "w_o", *(["ln_weight"] if normed else [])])


def test_exports() -> None:
    weights = AttentionBlockWeights(*draw_weights(random.Random(0), 32).values())

    def make(t: int) -> dict[str, Tensor]:
        return {"x": parity.normal(random.Random(t), 2, t, 32)}

    parity.assert_exports(lambda x: attention_sublayer(x, None, weights, num_heads=2), make, 1, "emc_fast.attention_sublayer")


@pytest.mark.parametrize("kind", ["whole", "alone", "bare"])
def test_opcheck(kind: str) -> None:
    inputs = inputs_of(random.Random(1), 2, 5, 6, 16, absent=("b_k", "ln_bias"))
    if kind != "whole":
        inputs["memory"] = None
    if kind == "bare":
        inputs["ln_weight"] = None
    tensors = [x if x is None else x.requires_grad_() for x in inputs.values()]
    mask, seed = torch.rand(2, 6 if kind == "whole" else 5) < 0.7, torch.tensor([1])
    options = (1e-5, 2, mask, True, 3, 0.1, seed, 2, 0.2, kind != "bare")
    parity.assert_opcheck(torch.ops.emc_fast.attention_sublayer.default, *tensors, *options)
    detached = [x if x is None else x.detach() for x in tensors]
    out, *saved = torch.ops.emc_fast.attention_sublayer(*detached, *options)
    parity.assert_opcheck(torch.ops.emc_fast.attention_sublayer_backward.default, out, *saved, *detached, *options)
    parity.assert_opcheck(torch.ops.emc_fast.attention_sublayer_inference.default, *detached, *options)


X, M = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)
W = AttentionBlockWeights(*[torch.zeros(8, 8), torch.zeros(8)] * 4, torch.zeros(8), torch.zeros(8))
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"x": X[0]}, ValueError, r"x must have the 3 dimensions \(B,T,d\), got shape \(3, 8\)"),
    ({"memory": 3}, TypeError, "memory must be a tensor, got int"),
    ({"memory": M[:1]}, ValueError, r"memory must have shape \(B,S,d\) with B and d of x, \(2, 'S', 8\), got \(1, 5, 8\)"),
    ({"memory": M.half()}, TypeError, "memory must have the dtype of x, torch.float32, got torch.float16"),
    ({"weights": tuple(W)}, TypeError, "weights must be an AttentionBlockWeights, got tuple"),
    ({"weights": W._replace(w_k=None)}, TypeError, "weights.w_k must be a tensor, got NoneType"),
    ({"weights": W._replace(b_o=torch.zeros(4))}, ValueError, r"weights.b_o must have shape \(8,\)"),
    ({"weights": W._replace(ln_weight=None)}, ValueError, "weights.ln_bias is given without weights.ln_weight"),
    ({"num_heads": 3}, ValueError, "num_heads must be at least 1 and divide the width d = 8 of x, got 3"),
    ({"key_mask": torch.ones(2, 3).bool()}, ValueError, r"key_mask must have shape \(B,S\) = \(2, 5\) as memory says"),
    ({"memory": None, "key_mask": torch.ones(2, 5).bool()}, ValueError, r"key_mask must have shape \(B,S\) = \(2, 3\) as x says"),
    ({"window": 3}, ValueError, "needs causal=True"),
    ({"attention_dropout_p": 1.5}, ValueError, r"attention_dropout_p must be in \[0, 1\], got 1.5"),
    ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0, 1\], got -0.1"),
    ({"dropout_p": 0.1, "seed": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"seed must have shape \(1,\) or a prefix"),
    ({"stream": 2**32 - 1}, ValueError, "stream must be in"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text[:30] for *_, text in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        partial(attention_sublayer, num_heads=2)(**{"x": X, "memory": M, "weights": W, **change})
