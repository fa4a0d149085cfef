"""fusion_kl: values, gradients, masks, accuracy near 0 and far from it, layouts and errors."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from emc_fast.ops import fusion_kl, use_backend

from . import parity
from .parity import Target

MEANS = ("mu_r", "mu_f", "mu_s")
NAMES = (*MEANS, "lv_r", "lv_f", "lv_s")


def loss(mu_r, mu_f, mu_s, lv_r=None, lv_f=None, lv_s=None, mask=None, *, reduction="mean") -> Tensor:
    return fusion_kl((mu_r, lv_r), (mu_f, lv_f), (mu_s, lv_s), mask=mask, reduction=reduction)


def draw(seed: int, *shape: int, unit: bool = False, masked: bool | None = None) -> dict[str, Tensor]:
    """Three Gaussians around a common one, from nearly equal to far apart."""
    rng = random.Random(seed)
    shape = shape or (
        *(rng.randrange(1, 9) for _ in range(rng.randrange(0, 4))),
        parity.pick(rng, 1, 16, 25, 30, 50, 58, 64, 128, range(1, 200), 1250),
    )
    spread = parity.pick(rng, 0.01, 0.3, 1.0, 2.0)
    inputs = {}
    for names in (MEANS,) if unit else (MEANS, NAMES[3:]):
        common = parity.normal(rng, *shape)
        inputs |= {name: common + spread * parity.normal(rng, *shape) for name in names}
    if masked if masked is not None else rng.random() < 0.5:
        inputs["mask"] = parity.normal(rng, *shape[:-1]) > -0.5
    return inputs


def floats(inputs: dict[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name in inputs if name != "mask")


@parity.seeds(6)
@parity.dtypes()
@pytest.mark.parametrize("unit", [False, True], ids=["diagonal", "unit"])
def test_parity(target: Target, dtype: torch.dtype, seed: int, unit: bool) -> None:
    inputs = draw(seed, unit=unit)
    for reduction in ("mean", "sum", "none"):
        parity.assert_parity(partial(loss, reduction=reduction), inputs, dtype, target, differentiate=floats(inputs), seed=seed)


@pytest.mark.parametrize(("rows", "width"), [(100, 1), (37, 3), (100, 8), (9, 20), (8192 * 9 + 5, 12), (8192 * 11, 20)])
def test_every_row_counts_once(target: Target, rows: int, width: int) -> None:
    """Where several narrow rows are taken at a time, whatever the number of them that are summed together: by the sum of known losses."""
    if target.backend == "triton" and rows > 1000 and target.device == "cpu":
        pytest.skip("minutes in the interpreter")
    shift = torch.arange(rows) % 5
    inputs = {name: torch.zeros(rows, width) for name in NAMES} | {"mu_r": shift[:, None].expand(rows, width).float()}
    assert loss(**inputs, reduction="sum").item() == pytest.approx(2 * width * shift.square().sum().item() / 2, rel=1e-6)
    inputs["mask"] = shift < 3
    assert loss(**inputs).item() == pytest.approx(width * shift[shift < 3].square().float().mean().item(), rel=1e-6)


def test_agrees_with_torch_distributions() -> None:
    inputs = {n: x.double() for n, x in draw(1, 3, 4, 5, masked=False).items()}
    real, face, speech = (Normal(inputs[f"mu_{k}"], (inputs[f"lv_{k}"] / 2).exp()) for k in "rfs")
    expected = (kl_divergence(real, face) + kl_divergence(real, speech) + kl_divergence(face, speech)).sum(-1)
    torch.testing.assert_close(loss(**inputs, reduction="none"), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(**inputs), expected.mean(), rtol=1e-12, atol=0)
    means = {name: inputs[name] for name in MEANS}
    ones = {f"lv_{k}": torch.zeros_like(inputs["mu_r"]) for k in "rfs"}
    torch.testing.assert_close(loss(**means), loss(**means, **ones), rtol=1e-12, atol=0)


@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2, 0.3, 3.0, 30.0])
def test_accuracy_does_not_depend_on_the_gap(target: Target, gap: float) -> None:
    """Every row, however small its loss, and every derivative is right to a few roundings: more than the error rule asks."""
    rng = random.Random(1)
    common = parity.normal(rng, 64, 48, scale=3.0)
    inputs = {name: common + gap * parity.normal(rng, 64, 48) for name in NAMES}
    for name in MEANS:
        inputs[name] = inputs["mu_r"]  # the quadratic term is tested elsewhere; here it would cover the other
    exact = {name: x.double() for name, x in inputs.items()}
    lv_r, lv_f, lv_s = (exact[name] for name in NAMES[3:])

    def phi(x: Tensor) -> Tensor:
        # float64's own cancellation is too much for the smallest gaps: a series there
        series = x.square() * (1 / 2 + x / 6 + x.square() / 24 + x**3 / 120 + x**4 / 720)
        return torch.where(x.abs() < 1e-2, series, torch.expm1(x) - x)

    pairs = (lv_r - lv_f, lv_r - lv_s, lv_f - lv_s)
    truth = 0.5 * sum(phi(x) for x in pairs).sum(-1)
    slopes = [torch.expm1(x) for x in pairs]
    grads = (0.5 * (slopes[0] + slopes[1]), 0.5 * (slopes[2] - slopes[0]), -0.5 * (slopes[1] + slopes[2]))
    scales = (slopes[0].abs() + slopes[1].abs(), slopes[2].abs() + slopes[0].abs(), slopes[1].abs() + slopes[2].abs())

    # A few roundings, and what the one rounding of x = lv_p - lv_q makes of e^x.
    allowed = 4e-7 + 6e-8 * torch.stack(pairs).abs().amax(0)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    rows = loss(**leaves, reduction="none")
    rows.sum().backward()
    holds = truth < 3e38
    assert holds.any()
    assert ((rows.double() - truth).abs() <= allowed.amax(-1) * truth)[holds].all()
    for name, grad, scale in zip(NAMES[3:], grads, scales, strict=True):
        assert ((leaves[name].grad.double() - grad).abs() <= allowed * scale)[scale < 3e38].all(), name


def test_equal_distributions_cost_nothing(target: Target) -> None:
    mu, logvar = torch.randn(5, 77), 4 * torch.randn(5, 77)
    leaves = [x.clone().requires_grad_() for _ in range(3) for x in (mu, logvar)]
    value = loss(*leaves[::2], *leaves[1::2])
    value.backward()
    assert value == 0
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(mu))


@pytest.mark.parametrize(
    ("mu", "logvar"),
    [
        ((0.0, 0.0, 0.0), (-100.0, 60.0, 100.0)),  # e^x underflows, -x stays
        ((0.0, 0.0, 0.0), (-1e4, -10.0, 1e4)),
        ((1.0, 1.0, 1.0), (-150.0, -150.0, -150.0)),  # 1 / variance overflows, times no distance
        ((3.0, 3.0, 3.0), (-300.0, -300.0, -300.0)),
        ((0.0, 1e-30, 2e-30), (-100.0, -100.0, -100.0)),  # 1 / variance overflows, the square underflows, the term is neither
        ((0.0, 1e-38, -1e-38), (-174.0, -174.0, -174.0)),
        ((0.0, 1e25, -1e25), (0.0, 100.0, 100.0)),  # the square overflows, the term does not
        ((0.0, 1.0, 2.0), (88.0, 88.5, 89.0)),
        ((0.0, 1e30, 0.0), (0.0, 0.0, 0.0)),  # overflows as it must
    ],
)
def test_extremes(target: Target, mu: tuple[float, ...], logvar: tuple[float, ...]) -> None:
    """Finite and right wherever float32 can hold the float64 result; never NaN."""
    tensors = [torch.full((2, 20), value) for value in (*mu, *logvar)]
    exact = [x.double().requires_grad_() for x in tensors]
    leaves = [x.clone().requires_grad_() for x in tensors]
    with use_backend("reference"):
        truth = loss(*exact, reduction="none")
    got = loss(*leaves, reduction="none")
    torch.testing.assert_close(got, truth.float(), rtol=2e-6, atol=0)
    truth.sum().backward()
    got.sum().backward()
    for leaf, real in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, real.grad.float(), rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("far", [45.0, 85.0, -85.0, float("nan")])
@pytest.mark.parametrize("which", range(6))
def test_one_element_far_from_the_others(target: Target, which: int, far: float) -> None:
    """Kernels may count on what is near; one element that is not changes its own terms alone, wherever it stands."""
    rng = random.Random(which)
    tensors = [parity.normal(rng, 3, 300) for _ in range(6)]
    tensors[which][1, 270] = far

    def terms(values: list[Tensor], backend: str) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in values]
        with use_backend(backend):  # type: ignore[arg-type]
            out = loss(*leaves, reduction="none")
            out.sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]

    for k, (got, truth) in enumerate(zip(terms(tensors, target.backend), terms([x.double() for x in tensors], "reference"), strict=True)):
        torch.testing.assert_close(got, truth.float(), rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda text, k=k: f"{k}: {text}")


@pytest.mark.parametrize("unit", [False, True], ids=["diagonal", "unit"])
def test_masked_rows_do_not_leak(target: Target, unit: bool) -> None:
    clean = draw(3, 4, 9, 58, unit=unit, masked=True)
    mask, names = clean["mask"], floats(clean)
    dirty = dict(clean)
    for name, value in zip(names, (torch.nan, torch.inf, -torch.inf, torch.nan, torch.inf, -torch.inf), strict=False):
        dirty[name] = torch.where(mask[..., None], clean[name], value)
    for reduction in ("mean", "sum", "none"):
        found = [
            parity.run(partial(loss, reduction=reduction), inputs, names, [torch.ones(mask.shape if reduction == "none" else ())])
            for inputs in (clean, dirty)
        ]
        parity.assert_same_bits(*found, "NaN and Inf in masked rows")
        for name in names:
            assert torch.equal(found[1][f"d_{name}"][~mask], torch.zeros(int((~mask).sum()), 58))
        if reduction == "none":
            assert torch.equal(found[1]["out0"][~mask], torch.zeros(int((~mask).sum())))
    kept = {name: clean[name][mask] for name in names}
    torch.testing.assert_close(loss(**clean), loss(**kept), rtol=1e-6, atol=0)


def test_no_row_counts(target: Target) -> None:
    inputs = {name: torch.full((2, 3, 8), torch.nan, requires_grad=True) for name in NAMES}
    for reduction in ("mean", "sum"):
        value = loss(**inputs, mask=torch.zeros(2, 3, dtype=torch.bool), reduction=reduction)
        assert value == 0
        for grad in torch.autograd.grad(value, list(inputs.values())):
            assert torch.equal(grad, torch.zeros(2, 3, 8))


@pytest.mark.parametrize("shape", [(4, 1), (1, 7), (7,), (1, 1)], ids=str)
def test_mask_broadcasts(target: Target, shape: tuple[int, ...]) -> None:
    inputs = draw(4, 4, 7, 30, masked=False)
    mask = torch.rand(shape) > 0.4
    assert torch.equal(loss(**inputs, mask=mask), loss(**inputs, mask=mask.expand(4, 7).contiguous()))


def test_nan_stays_in_its_row(target: Target) -> None:
    for name in NAMES:
        inputs = draw(5, 5, 40, masked=False)
        inputs[name][2, 3] = torch.nan
        assert loss(**inputs, reduction="none").isnan().tolist() == [False, False, True, False, False]


def test_deterministic(target: Target) -> None:
    inputs = draw(6, 3, 300, 128, masked=True)
    for reduction in ("mean", "none"):
        parity.assert_deterministic(partial(loss, reduction=reduction), inputs, differentiate=NAMES)


@parity.seeds(3)
def test_any_layout(target: Target, seed: int) -> None:
    inputs = draw(seed, 3, 5, 4, 61 if seed else 600, masked=seed > 0)
    for reduction in ("mean", "none"):
        parity.assert_any_layout(partial(loss, reduction=reduction), inputs, differentiate=NAMES)


def test_expanded_inputs(target: Target) -> None:
    """One distribution against many: its gradient is the sum over the rows."""
    inputs = draw(7, 6, 33, masked=False)
    real = {name: inputs.pop(name)[:1] for name in ("mu_r", "lv_r")}

    def against_all(mu_r, lv_r, **others):
        return loss(mu_r=mu_r.expand(6, 33), lv_r=lv_r.expand(6, 33), **others)

    parity.assert_parity(against_all, real | inputs, torch.float32, target, differentiate=NAMES)


def test_long_rows(target: Target) -> None:
    parity.assert_parity(loss, draw(8, 2, 20000, masked=False), torch.float32, target, differentiate=NAMES)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (0,)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, ...]) -> None:
    inputs = {name: torch.zeros(shape, requires_grad=True) for name in NAMES}
    for mask in (None, torch.ones(shape[:-1], dtype=torch.bool)):
        rows = loss(**inputs, mask=mask, reduction="none")
        assert torch.equal(rows, torch.zeros(shape[:-1]))
        value = loss(**inputs, mask=mask)
        assert torch.equal(value, torch.zeros(()))
        assert all(g.shape == shape for g in torch.autograd.grad(value, list(inputs.values())))


def test_rows_beyond_two_to_the_31(target: Target) -> None:
    """Two rows more than 2^31 elements apart; only the pages that are touched cost memory."""
    base = torch.empty(2**31 + 64, dtype=torch.float16)
    far = base.as_strided((2, 30), (2**31 + 17, 1))
    near = parity.normal(random.Random(0), 2, 30, dtype=torch.float16)
    far.copy_(near)
    other = near.flip(0)
    mine = parity.run(loss, {"mu_r": far, "mu_f": other, "mu_s": far}, MEANS, [torch.ones(())])
    plain = parity.run(loss, {"mu_r": near, "mu_f": other, "mu_s": near}, MEANS, [torch.ones(())])
    parity.assert_same_bits(mine, plain, "far rows")


@pytest.mark.parametrize("unit", [False, True], ids=["diagonal", "unit"])
def test_gradcheck(unit: bool) -> None:
    inputs = draw(9, 2, 3, 4, unit=unit, masked=True)
    parity.assert_gradcheck(loss, inputs, floats(inputs))


def test_second_derivative(target: Target) -> None:
    inputs = draw(10, 3, 4, 17, masked=True)
    parity.assert_second_derivative(loss, inputs, NAMES, target)
    same = parity.normal(random.Random(1), 3, 7)
    parity.assert_second_derivative(lambda mu: loss(mu, 2 * mu, mu, mu, mu, mu), {"mu": same}, ("mu",), target)


def test_only_some_inputs_need_a_gradient(target: Target) -> None:
    parity.assert_parity(loss, draw(11, 5, 30), torch.float32, target, differentiate=("mu_f", "lv_s"))


def test_autocast() -> None:
    """The loss is float32 under autocast, and there alone the dtypes may be mixed."""
    inputs = draw(12, 3, 8, masked=False)
    mixed = {name: x.bfloat16() if name in MEANS else x for name, x in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(**mixed)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(**{name: x.float() for name, x in mixed.items()}))
    with pytest.raises(TypeError, match="must have the dtype of"):
        loss(**mixed)


def test_float64_is_served_by_the_definition() -> None:
    inputs = {n: x.double() for n, x in draw(13, 2, 3, masked=False).items()}
    value = loss(**inputs)
    with use_backend("reference"):
        expected = loss(**inputs)
    assert value.dtype == torch.float64
    assert torch.equal(value, expected)


def test_registration() -> None:
    inputs = draw(14, 2, 3, 5, masked=True)
    paired = [inputs[f"{kind}_{k}"].clone().requires_grad_() for k in "rfs" for kind in ("mu", "lv")]
    unit = [x if i % 2 == 0 else None for i, x in enumerate(paired)]
    operators = torch.ops.emc_fast
    parity.assert_opcheck(operators.fusion_kl.default, *paired, inputs["mask"], 0)
    parity.assert_opcheck(operators.fusion_kl.default, *paired, None, 2)
    parity.assert_opcheck(operators.fusion_kl.default, *unit, None, 1)
    plain = [x.detach() for x in paired]
    parity.assert_opcheck(operators.fusion_kl_backward.default, torch.ones(()), *plain, inputs["mask"], 0)
    unit = [x if i % 2 == 0 else None for i, x in enumerate(plain)]
    parity.assert_opcheck(operators.fusion_kl_backward.default, torch.ones(2, 3), *unit, None, 2)


def test_compile_and_export() -> None:
    def make(frames: int) -> dict[str, Tensor]:
        return draw(frames, 2, frames, 12, masked=True)

    parity.assert_compiles(loss, make, (5, 8, 21), NAMES)
    dims = dict.fromkeys((*NAMES, "mask"), 1)
    parity.assert_exports(loss, make, dims, "emc_fast.fusion_kl")


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"real": X}, TypeError, r"real must be a pair \(mu, logvar\) or \(mu, None\), got Tensor"),
        ({"comp_face": (X,)}, TypeError, r"comp_face must be a pair \(mu, logvar\) or \(mu, None\), got 1 items"),
        ({"comp_face": (X, None)}, ValueError, r"in all three pairs or, for unit variance, in none: comp_face\[1\] \(logvar\) is None"),
        ({"real": ([0.0], X)}, TypeError, r"real\[0\] \(mu\) must be a tensor, got list"),
        ({"comp_speech": (X, 1.0)}, TypeError, r"comp_speech\[1\] \(logvar\) must be a tensor, got float"),
        ({"real": (X.int(), X)}, TypeError, r"real\[0\] \(mu\) must be float32, float16, bfloat16 or float64, got torch.int32"),
        ({"real": (torch.zeros(()), X)}, ValueError, r"real\[0\] \(mu\) needs at least 1 dimension"),
        ({"comp_face": (X, X[:1])}, ValueError, r"comp_face\[1\] \(logvar\) must have the shape of real\[0\] \(mu\)"),
        ({"comp_face": (X.half(), X)}, TypeError, r"comp_face\[0\] \(mu\) must have the dtype of real\[0\] \(mu\)"),
        (
            {"comp_speech": (X.to("meta"), X)},
            ValueError,
            r"comp_speech\[0\] \(mu\) must be on the device of real\[0\] \(mu\), cpu, got meta",
        ),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must be bool, got torch.float32"),
        ({"mask": [True]}, TypeError, "mask must be a tensor, got list"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"mask must broadcast to the leading dimensions \(2, 3\), got shape"),
        ({"mask": torch.ones(2, 3, 4, dtype=torch.bool)}, ValueError, "mask must broadcast"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool, device="meta")}, ValueError, "mask must be on the device of the distributions, cpu"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fusion_kl(**{"real": (X, X), "comp_face": (X, X), "comp_speech": (X, X), **change})
