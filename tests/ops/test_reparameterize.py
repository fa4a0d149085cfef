"""reparameterize: values, gradients, noise, layouts and errors."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from emc_fast.ops import philox_normal, reparameterize, use_backend

from . import parity
from .parity import Target

NAMES = ("mu", "logvar")


def draw(seed: int) -> dict[str, torch.Tensor]:
    rng = random.Random(seed)
    shape = [rng.randrange(1, 4) for _ in range(rng.randrange(0, 3))] + [
        parity.pick(rng, 1, range(2, 40)),
        parity.pick(rng, 1, 25, 58, 64, 128, range(1, 150)),
    ]
    return {"mu": parity.normal(rng, *shape), "logvar": parity.normal(rng, *shape, scale=1.5)}


@parity.seeds(4)
@parity.dtypes()
def test_parity(target: Target, dtype: torch.dtype, seed: int) -> None:
    parity.assert_parity(
        partial(reparameterize, seed=seed, stream=3, frame_offset=5), draw(seed), dtype, target, differentiate=NAMES, seed=seed
    )


@parity.seeds(2)
def test_parity_with_given_noise(target: Target, seed: int) -> None:
    inputs = draw(seed)
    inputs["noise"] = parity.normal(random.Random(-1 - seed), *inputs["mu"].shape)
    parity.assert_parity(reparameterize, inputs, torch.float32, target, differentiate=NAMES)


def test_extreme_variance(target: Target) -> None:
    logvar = torch.tensor([-200.0, -88.0, -40.0, 0.0, 1e-4, 40.0, 80.0, 88.0])
    parity.assert_parity(
        partial(reparameterize, seed=1), {"mu": torch.ones(8), "logvar": logvar}, torch.float32, target, differentiate=NAMES
    )


def test_deterministic(target: Target) -> None:
    rng = random.Random(7)
    inputs = {n: parity.normal(rng, 4, 300, 58) for n in NAMES}
    parity.assert_deterministic(partial(reparameterize, seed=3), inputs, differentiate=NAMES)


@parity.seeds(2)
def test_any_layout(target: Target, seed: int) -> None:
    inputs = draw(seed)
    inputs["noise"] = parity.normal(random.Random(seed), *inputs["mu"].shape)
    parity.assert_any_layout(reparameterize, inputs, differentiate=NAMES)


def test_draws_of_an_expanded_distribution(target: Target) -> None:
    """K draws: mu is expanded, the noise differs, and the gradient is the sum over the draws."""
    rng = random.Random(2)
    mu, logvar = (parity.normal(rng, 2, 1, 9, 30) for _ in range(2))
    seeds = torch.tensor([11, -12])
    z, kl = reparameterize(mu.expand(2, 5, 9, 30), logvar.expand(2, 5, 9, 30), seed=seeds)
    whole = reparameterize(mu.expand(2, 5, 9, 30).contiguous(), logvar.expand(2, 5, 9, 30).contiguous(), seed=seeds)
    assert torch.equal(z, whole[0])
    assert torch.equal(kl, whole[1])
    assert (z[:, 0] - z[:, 1]).abs().min() > 0
    assert torch.equal(kl, kl[:, :1].expand_as(kl))
    parity.assert_parity(
        lambda mu, logvar: reparameterize(mu.expand(2, 5, 9, 30), logvar.expand(2, 5, 9, 30), seed=seeds),
        {"mu": mu, "logvar": logvar},
        torch.float32,
        target,
        differentiate=NAMES,
    )


def test_noise_is_that_of_philox(target: Target) -> None:
    zeros = torch.zeros(3, 4, 21, 33)
    z, kl = reparameterize(zeros, zeros, seed=9, stream=2, frame_offset=100)
    assert torch.equal(z, philox_normal(zeros.shape, 9, stream=2, frame_offset=100))
    assert torch.equal(kl, torch.zeros(3, 4, 21))


def test_windows_are_pieces_of_the_whole(target: Target) -> None:
    inputs = draw(3)
    whole, _ = reparameterize(**inputs, seed=5)
    for start in range(0, inputs["mu"].shape[-2], 7):
        piece, _ = reparameterize(*(x[..., start : start + 7, :] for x in inputs.values()), seed=5, frame_offset=torch.tensor([start]))
        assert torch.equal(piece, whole[..., start : start + 7, :])


def test_nan_stays_in_its_row(target: Target) -> None:
    mu, logvar = torch.zeros(5, 40), torch.zeros(5, 40)
    mu[2, 3] = float("nan")
    z, kl = reparameterize(mu, logvar, seed=0)
    assert z.isnan().sum() == 1
    assert kl.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (0,)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, ...]) -> None:
    mu = torch.zeros(shape, requires_grad=True)
    z, kl = reparameterize(mu, mu.detach(), seed=1)
    assert z.shape == shape
    assert torch.equal(kl, torch.zeros(shape[:-1]))
    (z.sum() + kl.sum()).backward()
    assert mu.grad is not None


def test_rows_beyond_two_to_the_31(target: Target) -> None:
    """Two rows more than 2^31 elements apart; only the pages that are touched cost memory."""
    base = torch.empty(2**31 + 64, dtype=torch.float16)
    far = base.as_strided((2, 1, 30), (2**31 + 17, 30, 1))
    near = parity.normal(random.Random(0), 2, 1, 30, dtype=torch.float16)
    far.copy_(near)
    for mine, plain in zip(reparameterize(far, far, seed=4), reparameterize(near, near, seed=4), strict=True):
        assert torch.equal(mine, plain)


def test_gradcheck() -> None:
    rng = random.Random(5)
    parity.assert_gradcheck(partial(reparameterize, seed=2), {n: parity.normal(rng, 2, 3, 5) for n in NAMES}, NAMES)


def test_second_derivative(target: Target) -> None:
    parity.assert_second_derivative(partial(reparameterize, seed=2), draw(6), NAMES, target)
    same = parity.normal(random.Random(1), 3, 7)
    parity.assert_second_derivative(lambda mu: reparameterize(mu, mu, seed=2), {"mu": same}, ("mu",), target)


def test_only_one_input_needs_a_gradient(target: Target) -> None:
    inputs = draw(1)
    parity.assert_parity(partial(reparameterize, seed=1), inputs, torch.float32, target, differentiate=("logvar",))


def test_autocast_takes_float32() -> None:
    mu = torch.randn(3, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, kl = reparameterize(mu, mu, seed=1)
    expected = reparameterize(mu.float(), mu.float(), seed=1)
    assert z.dtype == kl.dtype == torch.float32
    assert torch.equal(z, expected[0])


def test_default_seed_follows_torch() -> None:
    mu = torch.zeros(4, 4)
    torch.manual_seed(3)
    first, second = reparameterize(mu, mu)[0], reparameterize(mu, mu)[0]
    torch.manual_seed(3)
    assert torch.equal(reparameterize(mu, mu)[0], first)
    assert not torch.equal(first, second)


def test_registration() -> None:
    rng = random.Random(0)
    mu, logvar, noise = (parity.normal(rng, 2, 3, 5).requires_grad_(i < 2) for i in range(3))
    parity.assert_opcheck(torch.ops.emc_fast.reparameterize.default, mu, logvar, torch.tensor([1]), 0, torch.tensor([2]), None)
    parity.assert_opcheck(torch.ops.emc_fast.reparameterize.default, mu, logvar, None, 0, None, noise)
    parity.assert_opcheck(
        torch.ops.emc_fast.reparameterize_backward.default,
        noise,
        noise[..., 0],
        mu.detach(),
        logvar.detach(),
        torch.tensor([1]),
        0,
        None,
        None,
    )


def test_compile_and_export() -> None:
    def make(frames: int) -> dict[str, torch.Tensor]:
        rng = random.Random(frames)
        return {n: parity.normal(rng, 2, frames, 12) for n in NAMES}

    parity.assert_compiles(partial(reparameterize, seed=3), make, (5, 8, 21), NAMES)
    parity.assert_exports(partial(reparameterize, seed=3), make, 1, "emc_fast.reparameterize")


def test_float64_is_served_by_the_definition() -> None:
    mu = torch.randn(2, 3, dtype=torch.float64)
    z, kl = reparameterize(mu, mu, seed=1)
    with use_backend("reference"):
        expected = reparameterize(mu, mu, seed=1)
    assert z.dtype == kl.dtype == torch.float64
    assert torch.equal(z, expected[0])


MU = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"mu": [1.0]}, TypeError, "mu must be a tensor, got list"),
        ({"mu": MU.int()}, TypeError, "mu must be float32, float16, bfloat16 or float64, got torch.int32"),
        ({"mu": torch.zeros(())}, ValueError, "mu needs at least 1 dimension, got shape"),
        ({"logvar": torch.zeros(2, 3, 5)}, ValueError, r"logvar must have the shape of mu, \(2, 3, 4\), got \(2, 3, 5\)"),
        ({"logvar": MU.half()}, TypeError, "logvar must have the dtype of mu"),
        ({"logvar": MU.to("meta")}, ValueError, "logvar must be on the device of mu, cpu, got meta"),
        ({"seed": "x"}, TypeError, "seed must be an int64 tensor, an int or None, got str"),
        ({"seed": 2**63}, ValueError, "seed must fit a signed 64-bit integer"),
        ({"seed": torch.zeros(1)}, TypeError, "seed must be int64, got torch.float32"),
        (
            {"seed": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"seed must have shape \(1,\) or a prefix of the leading dimensions \(2,\)",
        ),
        ({"seed": torch.zeros(1, dtype=torch.int64, device="meta")}, ValueError, "seed must be on cpu"),
        ({"stream": -1}, ValueError, r"stream must be in \[0, 2\*\*32\), got -1"),
        ({"stream": 1.0}, TypeError, "stream must be an int, got float"),
        ({"frame_offset": torch.zeros(2, dtype=torch.int64)}, TypeError, "frame_offset must be int64 with one element"),
        ({"frame_offset": 0.5}, TypeError, "frame_offset must be an int or an int64 tensor"),
        ({"seed": 1, "noise": MU}, ValueError, "give seed or noise, not both"),
        ({"noise": torch.zeros(4)}, ValueError, "noise must have the shape of mu"),
        ({"noise": torch.zeros(2, 3, 4, requires_grad=True)}, ValueError, "noise must not require a gradient"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        reparameterize(**{"mu": MU, "logvar": MU, **change})
