"""set_float32_precision: the setting, and what attention and its block lose by it.

Bounds are derived from the units that a precision cuts operands to, u = 2^-8 for one bfloat16 and 2^-17 for two. Both operands of a product
are off by u of themselves, and with two pieces the product of the second ones, up to 2 u, is left out: a sum of products is off by at most
4 u times the sum of the products' sizes. In attention the scores are off by that, e = 4 u max(sum |q k|) scale; probabilities by 2 e of
themselves, for the sum of exponentials is off as well, by u more for the exponential and u more where they are cut.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from emc_fast.ops import attention, get_float32_precision, set_float32_precision, use_backend
from emc_fast.ops._library import native

from . import parity, test_attention, test_attention_block

ISAS = ("base", "v3", "v4", "bf16", "amx")
#: Where a precision is a lower one: matrix tiles take any number of pieces, products of bfloat16 pairs one.
LOWER = [("amx", "high"), ("amx", "medium"), ("bf16", "medium")]
UNIT = {"high": 2.0**-17, "medium": 2.0**-8}
NAMES = test_attention.NAMES


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = get_float32_precision()
    yield
    set_float32_precision(before)


@contextmanager
def kernels_of(isa: str) -> Iterator[None]:
    """The CPU kernels of an instruction set; the one that was in use comes back."""
    if reason := parity.needs_for_isa(isa):
        (pytest.fail if "EMC_FAST_NO_SKIP" in os.environ else pytest.skip)(reason)
    before = native().isa
    native().set_isa(isa)
    try:
        with use_backend("cpu"):
            yield
    finally:
        native().set_isa(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels_of(request.param):
        yield request.param


@pytest.fixture(params=LOWER, ids="-".join)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """A lower precision, with kernels that have it; elsewhere it computes what `highest` does, which has a test."""
    isa, name = request.param
    with kernels_of(isa):
        yield name


@pytest.fixture(params=["bf16", "amx"])
def lowering(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels that have a lower precision."""
    with kernels_of(request.param):
        yield request.param


def at(precision: Any, function: Any, inputs: parity.Inputs, names: Any, grads: Any) -> dict[str, Tensor]:
    set_float32_precision(precision)
    return parity.run(function, inputs, names, grads)


def problem(seed: int, width: int = 32) -> tuple[dict[str, Tensor], list[Tensor]]:
    """More than one step of keys, the last one not full, and more than one chunk of queries."""
    rng = random.Random(seed)
    inputs = test_attention.tensors(rng, 2, 290, 135, 2, width)
    return inputs, [parity.normal(rng, 2, 290, 2, width)]


def truth_of(function: Any, inputs: parity.Inputs, names: Any, grads: list[Tensor]) -> dict[str, Tensor]:
    with use_backend("reference"):
        return parity.run(function, parity.cast(inputs, torch.float64), names, [g.double() for g in grads])


# --- the setting ---


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_what_is_set_is_there(precision: Any) -> None:
    set_float32_precision(precision)
    assert get_float32_precision() == precision


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="precision must be one of 'highest', 'high', 'medium', got 'low'"):
        set_float32_precision("low")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="precision must be a string, got int"):
        set_float32_precision(16)  # type: ignore[arg-type]
    assert get_float32_precision() == "highest"


def test_torch_has_its_own_setting() -> None:
    """Neither follows the other."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert get_float32_precision() == "highest"
        torch.set_float32_matmul_precision("highest")
        set_float32_precision("medium")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("value", "expected"), [("high", "high"), ("", "highest"), ("low", "'highest', 'high', 'medium', got 'low'")])
def test_environment(value: str, expected: str) -> None:
    environment = {**os.environ, "EMC_FAST_FLOAT32_PRECISION": value, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = "from emc_fast import ops; print(ops.get_float32_precision())"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert expected in (done.stdout if done.returncode == 0 else done.stderr)
    if done.returncode:
        assert f"ValueError: EMC_FAST_FLOAT32_PRECISION must be one of {expected}" in done.stderr


# --- what it changes ---


def test_a_lower_precision_is_one_where_there_are_kernels_for_it(isa: str) -> None:
    inputs, grads = problem(1)
    names = [*inputs]
    found = {p: at(p, attention, inputs, names, grads) for p in ("highest", "high", "medium")}
    for precision in ("high", "medium"):
        for name, exact in found["highest"].items():
            assert torch.equal(found[precision][name], exact) == ((isa, precision) not in LOWER), name
    for a in found["high"]:
        assert torch.equal(found["high"][a], found["medium"][a]) == ((isa, "medium") not in LOWER), a


@pytest.mark.parametrize("width", [30, 32, 64, 128])
def test_errors_are_those_of_the_pieces(precision: str, width: int) -> None:
    """With P the probabilities, g the incoming gradient, r the relative error of a probability:

    the output is off by (r + 4 u) sum |P v|, dV likewise, dP = g V^T by 4 u sum |g v|, dS = P (dP - mean) by
    P (4 r + 8 u) max(sum |g v|), and the gradients of query and key are sums of dS, cut once more, times keys and queries.
    """
    inputs, grads = problem(width, width)
    unit, scale = UNIT[precision], width**-0.5
    q, k, v = (inputs[n].double().transpose(1, 2).abs() for n in NAMES)
    g = grads[0].double().transpose(1, 2).abs()
    signed_q, signed_k = (inputs[n].double().transpose(1, 2) for n in NAMES[:2])
    p = (signed_q @ signed_k.mT * scale).softmax(-1)
    relative = 2 * 4 * unit * float((q @ k.mT).max()) * scale + 2 * unit
    d_scores = p * (4 * relative + 16 * unit) * (g @ v.mT).amax()
    bounds = {
        "out0": (relative + 4 * unit) * p @ v,
        "d_query": d_scores @ k * scale,
        "d_key": d_scores.mT @ q * scale,
        "d_value": (relative + 4 * unit) * p.mT @ g,
    }
    truth, found = truth_of(attention, inputs, NAMES, grads), at(precision, attention, inputs, NAMES, grads)
    for name, bound in bounds.items():
        error = (found[name].double() - truth[name]).abs()
        assert bool((error <= bound.transpose(1, 2)).all()), f"{name}: {float((error / bound.transpose(1, 2)).max()):.3g} of its bound"
        # The bound is of the worst case; errors of either sign that come together are far below it.
        l2 = float(error.norm() / truth[name].norm())
        assert unit / 8 <= l2 <= 4 * unit, f"{name}: relative L2 error {l2:.3g}, cut to {unit:.3g}"


def test_errors_of_the_block(precision: str) -> None:
    """Values and the gradient of every operand: a few units in relative L2, for the dozen products that lie behind each other."""
    rng = random.Random(5)
    inputs = test_attention_block.inputs_of(rng, 2, 140, 70, 128)
    function, names = test_attention_block.block(num_heads=4), test_attention_block.differentiable(inputs)
    grads = [parity.normal(rng, 2, 140, 128)]
    truth, found = truth_of(function, inputs, names, grads), at(precision, function, inputs, names, grads)
    exact = at("highest", function, inputs, names, grads)
    for name, expected in truth.items():
        if name == "d_b_k":  # 0: a constant beside all keys changes no softmax
            continue
        assert not torch.equal(found[name], exact[name]) or name == "d_ln_bias"
        l2 = float((found[name].double() - expected).norm() / expected.norm())
        assert l2 <= 8 * UNIT[precision], f"{name}: relative L2 error {l2:.3g}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("lowering")
def test_half_types_keep_their_rule(dtype: torch.dtype) -> None:
    """`high` leaves them alone, and so does `medium` float16; bfloat16 then has its probabilities rounded as its inputs are."""
    inputs, grads = problem(3)
    inputs, grads = {n: x.to(dtype) for n, x in inputs.items()}, [g.to(dtype) for g in grads]
    found = {p: at(p, attention, inputs, NAMES, grads) for p in ("highest", "high", "medium")}
    parity.assert_same_bits(found["highest"], found["high"], "high")
    if dtype == torch.float16:
        parity.assert_same_bits(found["highest"], found["medium"], "medium")
    else:
        assert not torch.equal(found["highest"]["d_query"], found["medium"]["d_query"])


def test_deterministic(precision: Any) -> None:
    set_float32_precision(precision)
    inputs, _ = problem(7)
    parity.assert_deterministic(partial(attention, causal=True, dropout_p=0.2, seed=3), inputs, differentiate=NAMES)
    operands = test_attention_block.inputs_of(random.Random(8), 3, 70, 90, 64)
    function = test_attention_block.block(num_heads=2, dropout_p=0.1, seed=5)
    parity.assert_deterministic(function, operands, differentiate=test_attention_block.differentiable(operands))


# --- what it leaves ---

SPECIAL = {"nan": float("nan"), "loudest nan": -1, "inf": float("inf")}  # -1: all bits are set, and rounding up would leave a number


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.usefixtures("isa")
def test_nan_and_inf_show(precision: Any, kind: str) -> None:
    """In an attended place NaN goes where the definition has it; Inf makes NaN at least there, and nowhere in another sequence or head."""
    set_float32_precision(precision)
    for name in NAMES:
        inputs, _ = problem(9)
        place = inputs[name].view(torch.int32) if kind == "loudest nan" else inputs[name]
        place[0, 60, 1, 5] = SPECIAL[kind]
        # Without the window alone: what a hidden value does depends on whether the block that it stands in was left out whole.
        for causal in (False,) if name == "value" else (False, True):
            found = attention(**inputs, causal=causal).isnan().any(-1)
            with use_backend("reference"):
                expected = attention(**inputs, causal=causal).isnan().any(-1)
            if kind == "inf":
                assert bool(found[expected].all())
                assert not bool(found[1].any())
                assert not bool(found[:, :, 0].any())
            else:
                assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.usefixtures("isa")
def test_nan_in_a_projection_shows(precision: Any) -> None:
    set_float32_precision(precision)
    inputs = test_attention_block.inputs_of(random.Random(11), 1, 40, 40, 64)
    x = inputs["x"]
    assert x is not None
    x.view(torch.int32)[0, 20, 13] = -1
    out = test_attention_block.block(num_heads=2)(**inputs)
    assert torch.equal(out.isnan().any(-1)[0], torch.arange(40) == 20)


@parity.seeds(3)
def test_masked_places_may_hold_anything(precision: Any, seed: int) -> None:
    """NaN and Inf in masked keys change no bit, and get gradients of exactly 0."""
    set_float32_precision(precision)
    inputs, grads = problem(seed)
    mask = test_attention.key_mask(random.Random(seed), inputs["key"], 0.6)
    function = partial(attention, key_mask=mask, causal=True, dropout_p=0.2, seed=seed)
    clean = parity.run(function, inputs, NAMES, grads)
    dirty = {n: x.clone() for n, x in inputs.items()}
    dirty["key"][~mask], dirty["value"][~mask] = float("nan"), float("inf")
    found = parity.run(function, dirty, NAMES, grads)
    parity.assert_same_bits(clean, found, "what masked places hold")
    assert not found["d_key"][~mask].any()
    assert not found["d_value"][~mask].any()
    assert not any(bool(x.isnan().any()) for x in found.values())


def test_one_key_takes_no_gradient(precision: Any) -> None:
    """The softmax of one key is exactly 1, at every precision: query and key get gradients of exactly 0."""
    set_float32_precision(precision)
    inputs, grads = problem(4)
    found = parity.run(partial(attention, causal=True, window=1), inputs, NAMES, grads)
    assert not found["d_query"].any()
    assert not found["d_key"].any()
    seen = found["out0"][:, 290 - 135 :]
    assert bool(((seen - inputs["value"]).abs() <= UNIT[precision] * inputs["value"].abs()).all())


@pytest.mark.usefixtures("lowering")
def test_backward_at_another_precision_than_forward() -> None:
    """Allowed, though not asked for: gradients are off as those of the lower one are."""
    inputs, grads = problem(12)
    truth = truth_of(attention, inputs, NAMES, grads)
    for first, second in (("medium", "highest"), ("highest", "medium")):
        set_float32_precision(first)  # type: ignore[arg-type]
        leaves = [inputs[n].clone().requires_grad_() for n in NAMES]
        out = attention(*leaves)
        set_float32_precision(second)  # type: ignore[arg-type]
        for name, grad in zip(NAMES, torch.autograd.grad(out, leaves, grads[0]), strict=True):
            expected = truth[f"d_{name}"]
            assert float((grad.double() - expected).norm() / expected.norm()) <= 4 * UNIT["medium"], name


def test_compiled_programs_follow_the_setting() -> None:
    """It is no constant of the graph: one graph serves all."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    inputs, _ = problem(14)
    for precision in ("highest", "medium", "high"):
        set_float32_precision(precision)  # type: ignore[arg-type]
        assert torch.equal(compiled(**inputs), attention(**inputs))
    assert counter.frame_count == 1
