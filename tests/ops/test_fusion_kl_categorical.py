"""fusion_kl_categorical: values, gradients, excluded classes, masks, layouts and errors."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from emc_fast.ops import fusion_kl_categorical, use_backend

from . import parity
from .parity import Target

NAMES = ("real", "comp_face", "comp_speech")
INF = float("inf")


def draw(seed: int, *shape: int, masked: bool | None = None, spread: float | None = None) -> dict[str, Tensor]:
    """Three distributions around a common one, from nearly equal to far apart."""
    rng = random.Random(seed)
    shape = shape or (
        *(rng.randrange(1, 5) for _ in range(rng.randrange(0, 4))),
        parity.pick(rng, 1, 2, 16, range(1, 200), 1000, 2048),
    )
    spread = spread or parity.pick(rng, 0.01, 0.3, 1.0, 3.0)
    common = parity.normal(rng, *shape, scale=2.0)
    inputs = {name: common + spread * parity.normal(rng, *shape) for name in NAMES}
    if masked if masked is not None else rng.random() < 0.5:
        inputs["mask"] = parity.normal(rng, *shape[:-1]) > -0.5
    return inputs


def true(function, inputs: dict[str, Tensor], *grads: Tensor) -> dict[str, Tensor]:
    """Values and gradients of the definition in float64."""
    with use_backend("reference"):
        return parity.run(function, {n: x.double() for n, x in inputs.items()}, NAMES, grads)


@parity.seeds(8)
@parity.dtypes()
def test_parity(target: Target, dtype: torch.dtype, seed: int) -> None:
    inputs = draw(seed)
    for reduction in ("mean", "sum", "none"):
        parity.assert_parity(partial(fusion_kl_categorical, reduction=reduction), inputs, dtype, target, differentiate=NAMES, seed=seed)


def test_agrees_with_torch_distributions() -> None:
    inputs = {n: x.double() for n, x in draw(1, 3, 4, 9, masked=False).items()}
    real, face, speech = (Categorical(logits=inputs[name]) for name in NAMES)
    expected = kl_divergence(real, face) + kl_divergence(real, speech) + kl_divergence(face, speech)
    torch.testing.assert_close(fusion_kl_categorical(**inputs, reduction="none"), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(fusion_kl_categorical(**inputs), expected.mean(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_small_losses_keep_their_digits(target: Target, spread: float) -> None:
    """Loss and gradients of close distributions, to a few roundings of what is there: more than the error rule asks."""
    inputs = draw(2, 16, 1000, masked=False, spread=spread)
    grads = [torch.ones(16)]
    function = partial(fusion_kl_categorical, reduction="none")
    got = parity.run(function, inputs, NAMES, grads)
    truth = true(function, inputs, *grads)
    for name, value in got.items():
        error = (value.double() - truth[name]).norm() / truth[name].norm()
        assert error < 4e-7, name


def test_equal_distributions_cost_nothing(target: Target) -> None:
    logits = 5 * torch.randn(3, 77)
    leaves = [logits.clone().requires_grad_() for _ in NAMES]
    value = fusion_kl_categorical(*leaves)
    value.backward()
    assert value == 0
    for leaf in leaves:
        assert leaf.grad.abs().max() < 1e-9


def test_a_constant_added_to_the_logits_changes_little(target: Target) -> None:
    inputs = draw(3, 4, 50, masked=False)
    shifted = {name: x + c for (name, x), c in zip(inputs.items(), (700.0, -900.0, 64.0), strict=True)}
    exact = true(fusion_kl_categorical, shifted, torch.ones(()))["out0"]
    torch.testing.assert_close(fusion_kl_categorical(**shifted).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "rows",
    [
        ((0.0, -300.0, -50.0), (-300.0, 0.0, -50.0), (-50.0, -300.0, 0.0)),  # probabilities underflow, log-ratios are large
        ((1e4, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, -1e4)),
        ((0.0, -80.0, -90.0), (0.0, 3.0, -100.0), (-110.0, 0.0, 0.0)),
        ((-3e38, 0.0, 0.0), (-3e38, 0.0, 1.0), (-3e38, 1.0, 0.0)),
    ],
)
def test_extremes(target: Target, rows: tuple[tuple[float, ...], ...]) -> None:
    """Finite and right wherever the float64 result is."""
    inputs = {name: torch.tensor([row] * 2) for name, row in zip(NAMES, rows, strict=True)}
    function = partial(fusion_kl_categorical, reduction="none")
    grads = [torch.ones(2)]
    got = parity.run(function, inputs, NAMES, grads)
    truth = true(function, inputs, *grads)
    torch.testing.assert_close(got["out0"], truth["out0"].float(), rtol=1e-6, atol=0)
    for name in NAMES:  # p (-y - KL): a difference of numbers of the loss's own size
        torch.testing.assert_close(got[f"d_{name}"], truth[f"d_{name}"].float(), rtol=1e-6, atol=1e-7 * truth["out0"].max().item())


def test_excluded_classes(target: Target) -> None:
    """A logit of -inf: 0 log 0 = 0 where the first distribution has it, gradients included."""
    inputs = draw(4, 6, 37, masked=False)
    inputs["real"][:, 5:9] = -INF
    inputs["comp_face"][:, 7:9] = -INF  # real excludes these as well
    inputs["comp_speech"][:, 8] = -INF
    for dtype in parity.DTYPES:
        parity.assert_parity(partial(fusion_kl_categorical, reduction="none"), inputs, dtype, target, differentiate=NAMES)


def test_class_that_only_the_second_excludes(target: Target) -> None:
    for probable in (0.0, -120.0):  # even where the first distribution's probability underflows
        inputs = draw(5, 3, 20, masked=False)
        inputs["real"][1, 4] = probable
        inputs["comp_face"][1, 4] = -INF
        rows = fusion_kl_categorical(**inputs, reduction="none")
        assert rows.isinf().tolist() == [False, True, False]
        assert not rows.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_no_class_left(target: Target, name: str) -> None:
    inputs = draw(6, 3, 20, masked=False)
    inputs[name][1] = -INF
    assert fusion_kl_categorical(**inputs, reduction="none").isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_row(target: Target, name: str) -> None:
    for value in (torch.nan, INF):
        inputs = draw(7, 5, 40, masked=False)
        inputs[name][2, 3] = value
        assert fusion_kl_categorical(**inputs, reduction="none").isnan().tolist() == [False, False, True, False, False]


def test_masked_rows_do_not_leak(target: Target) -> None:
    clean = draw(8, 4, 9, 58, masked=True)
    mask, dirty = clean["mask"], dict(clean)
    for name, value in zip(NAMES, (torch.nan, INF, -INF), strict=True):
        dirty[name] = torch.where(mask[..., None], clean[name], value)
    for reduction in ("mean", "sum", "none"):
        grads = [torch.ones(mask.shape if reduction == "none" else ())]
        found = [parity.run(partial(fusion_kl_categorical, reduction=reduction), x, NAMES, grads) for x in (clean, dirty)]
        parity.assert_same_bits(*found, "NaN and Inf in masked rows")
        for name in NAMES:
            assert torch.equal(found[1][f"d_{name}"][~mask], torch.zeros(int((~mask).sum()), 58))
        if reduction == "none":
            assert torch.equal(found[1]["out0"][~mask], torch.zeros(int((~mask).sum())))


def test_no_row_counts(target: Target) -> None:
    inputs = [torch.full((2, 3, 8), torch.nan, requires_grad=True) for _ in NAMES]
    value = fusion_kl_categorical(*inputs, mask=torch.zeros(2, 1, dtype=torch.bool))
    assert value == 0
    for grad in torch.autograd.grad(value, inputs):
        assert torch.equal(grad, torch.zeros(2, 3, 8))


def test_deterministic(target: Target) -> None:
    parity.assert_deterministic(fusion_kl_categorical, draw(9, 300, 130, masked=True), differentiate=NAMES)


@parity.seeds(2)
def test_any_layout(target: Target, seed: int) -> None:
    inputs = draw(seed, 3, 5, 61 if seed else 1100, masked=seed > 0)
    for reduction in ("mean", "none"):
        parity.assert_any_layout(partial(fusion_kl_categorical, reduction=reduction), inputs, differentiate=NAMES)


def test_expanded_inputs(target: Target) -> None:
    inputs = draw(10, 6, 33, masked=False)
    inputs["real"] = inputs["real"][:1]
    parity.assert_parity(
        lambda real, **others: fusion_kl_categorical(real.expand(6, 33), **others), inputs, torch.float32, target, differentiate=NAMES
    )


def test_long_rows(target: Target) -> None:
    """Many pieces per row, and the largest logit in a late one."""
    inputs = draw(11, 2, 20000, masked=False)
    for k, name in enumerate(NAMES):
        inputs[name][:, 12000 + 700 * k] += 9.0
    parity.assert_parity(fusion_kl_categorical, inputs, torch.float32, target, differentiate=NAMES)


def test_rows_that_are_near_and_far_by_turns(target: Target) -> None:
    """Long rows in which some pieces hold a class that one distribution all but excludes, finds too probable, or leaves out."""
    inputs = draw(16, 4, 3000, masked=False)
    inputs["comp_face"][1, 300] += 45.0
    inputs["real"][2, 900:1100] -= 200.0
    inputs["comp_speech"][2, 2500] += 20.0
    for name in NAMES:
        inputs[name][3, 2040:2050] = -INF
    parity.assert_parity(partial(fusion_kl_categorical, reduction="none"), inputs, torch.float32, target, differentiate=NAMES)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (0,)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, ...]) -> None:
    inputs = [torch.zeros(shape, requires_grad=True) for _ in NAMES]
    for mask in (None, torch.ones(shape[:-1], dtype=torch.bool)):
        assert torch.equal(fusion_kl_categorical(*inputs, mask=mask, reduction="none"), torch.zeros(shape[:-1]))
        value = fusion_kl_categorical(*inputs, mask=mask)
        assert torch.equal(value, torch.zeros(()))
        assert all(g.shape == shape for g in torch.autograd.grad(value, inputs))


def test_rows_beyond_two_to_the_31(target: Target) -> None:
    """Two rows more than 2^31 elements apart; only the pages that are touched cost memory."""
    base = torch.empty(2**31 + 64, dtype=torch.float16)
    far = base.as_strided((2, 30), (2**31 + 17, 1))
    near = parity.normal(random.Random(0), 2, 30, dtype=torch.float16)
    far.copy_(near)
    mine = parity.run(fusion_kl_categorical, dict(zip(NAMES, (far, near.flip(0), far), strict=True)), NAMES, [torch.ones(())])
    plain = parity.run(fusion_kl_categorical, dict(zip(NAMES, (near, near.flip(0), near), strict=True)), NAMES, [torch.ones(())])
    parity.assert_same_bits(mine, plain, "far rows")


def test_gradcheck() -> None:
    parity.assert_gradcheck(fusion_kl_categorical, draw(12, 2, 3, 5, masked=True), NAMES)


def test_second_derivative(target: Target) -> None:
    parity.assert_second_derivative(fusion_kl_categorical, draw(13, 3, 4, 17, masked=True, spread=1.0), NAMES, target)


def test_only_one_input_needs_a_gradient(target: Target) -> None:
    parity.assert_parity(fusion_kl_categorical, draw(14, 5, 30), torch.float32, target, differentiate=("comp_face",))


def test_autocast() -> None:
    inputs = draw(15, 3, 8, masked=False)
    mixed = {name: x.bfloat16() if name == "real" else x for name, x in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fusion_kl_categorical(**mixed)
    assert value.dtype == torch.float32
    assert torch.equal(value, fusion_kl_categorical(**{name: x.float() for name, x in mixed.items()}))


def test_float64_is_served_by_the_definition() -> None:
    inputs = {n: x.double() for n, x in draw(16, 2, 3, masked=False).items()}
    value = fusion_kl_categorical(**inputs)
    with use_backend("reference"):
        expected = fusion_kl_categorical(**inputs)
    assert value.dtype == torch.float64
    assert torch.equal(value, expected)


def test_registration() -> None:
    inputs = draw(17, 2, 3, 5, masked=True)
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]
    operators = torch.ops.emc_fast
    parity.assert_opcheck(operators.fusion_kl_categorical.default, *leaves, inputs["mask"], 0)
    parity.assert_opcheck(operators.fusion_kl_categorical.default, *leaves, None, 2)
    plain = [x.detach() for x in leaves]
    _, stats = operators.fusion_kl_categorical(*plain, None, 2)
    parity.assert_opcheck(operators.fusion_kl_categorical_backward.default, torch.ones(2, 3), *plain, stats, None, 2)


def test_compile_and_export() -> None:
    def make(frames: int) -> dict[str, Tensor]:
        return draw(frames, 2, frames, 12, masked=True)

    parity.assert_compiles(fusion_kl_categorical, make, (5, 8, 21), NAMES)
    parity.assert_exports(fusion_kl_categorical, make, dict.fromkeys((*NAMES, "mask"), 1), "emc_fast.fusion_kl_categorical")


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"real": [1.0]}, TypeError, "real must be a tensor, got list"),
        ({"real": X.int()}, TypeError, "real must be float32, float16, bfloat16 or float64, got torch.int32"),
        ({"comp_face": torch.zeros(2, 3, 5)}, ValueError, r"comp_face must have the shape of real, \(2, 3, 4\), got \(2, 3, 5\)"),
        ({"comp_speech": X.half()}, TypeError, "comp_speech must have the dtype of real"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"mask must broadcast to the leading dimensions \(2, 3\), got shape"),
        ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got None"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fusion_kl_categorical(**{"real": X, "comp_face": X, "comp_speech": X, **change})
