"""philox_normal, philox_uniform and dropout: known answers, the mapping from elements to counters, statistics, gradients, errors."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
import torch

from emc_fast.ops import draw_seed, dropout, philox_normal, philox_uniform, streams, use_backend
from emc_fast.ops.reference import philox as reference

from . import parity
from .parity import Target

ONES = 0xFFFFFFFF


def word(value: int) -> torch.Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, kat_vectors: philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    got = reference.philox4x32(tuple(map(word, counter)), tuple(map(word, key)))  # type: ignore[arg-type]
    assert tuple(int(w) for w in got) == expected


def test_kernel_gives_the_known_answers(target: Target) -> None:
    """Counter and key of the third vector, spelled as an element: block n, r = 0 and the stream; and the first as it stands."""
    low, high, r, stream = 0x243F6A88, 0x85A308D3, 0, 0x03707344
    key = (0x299F31D0 << 32) | 0xA4093822
    block = (high << 32) | low
    signed = block - 2**64 if block >= 2**63 else block
    got = philox_uniform((1, 4), key, stream=stream, frame_offset=torch.tensor(signed), device=target.device)
    words = reference.philox4x32((word(low), word(high), word(r), word(stream)), (word(key & ONES), word(key >> 32)))
    assert got.flatten().tolist() == [((int(w) >> 9) + 0.5) * 2.0**-23 for w in words]
    first = philox_uniform((4,), 0, device=target.device)
    assert first.tolist() == [((w >> 9) + 0.5) * 2.0**-23 for w in (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)]


def draw(seed: int) -> tuple[tuple[int, ...], torch.Tensor, int, int | torch.Tensor]:
    """Shape, seeds, stream and frame offset."""
    rng = random.Random(seed)
    lead = tuple(rng.randrange(1, 4) for _ in range(rng.randrange(0, 4)))
    shape = (*lead, rng.randrange(1, 12), parity.pick(rng, 1, 2, 3, 30, 58, 64, 128, range(1, 300)))
    own = lead[: rng.randrange(0, len(lead) + 1)] if rng.random() < 0.7 else (1,)
    seeds = torch.tensor([rng.randrange(-(2**63), 2**63) for _ in range(math.prod(own))]).reshape(own)
    offset: int | torch.Tensor = rng.choice([0, 7, 2**33 + 1, 2**62])
    return shape, seeds, rng.choice([0, 5, 2**32 - 1]), torch.tensor([offset]) if rng.random() < 0.5 else offset


@parity.seeds(8)
def test_kernel_matches_definition(target: Target, seed: int) -> None:
    """Uniforms bit for bit, normals within 4 ulp of float32, half types as the rounded float32."""
    shape, seeds, stream, offset = draw(seed)
    seeds = seeds.to(target.device)
    noise = partial(philox_normal, shape, seeds, stream=stream, frame_offset=offset)
    with use_backend("reference"):
        uniforms = philox_uniform(shape, seeds, stream=stream, frame_offset=offset)
        normals = noise()
    assert torch.equal(philox_uniform(shape, seeds, stream=stream, frame_offset=offset), uniforms)
    got = noise()
    assert (got.view(torch.int32) - normals.view(torch.int32)).abs().max() <= 4
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(noise(dtype=dtype), got.to(dtype))


def test_normals_within_four_ulp_of_a_million(target: Target) -> None:
    with use_backend("reference"):
        expected = philox_normal((1000, 1024), 3, device=target.device)
    got = philox_normal((1000, 1024), 3, device=target.device)
    assert (got.view(torch.int32) - expected.view(torch.int32)).abs().max() <= 4


def test_moments(target: Target) -> None:
    """Mean, variance, third and fourth moment within five standard errors; no correlation with the neighbour."""
    count = 2**20
    x = philox_normal((1024, 1024), 12, device=target.device).double().flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean().item() - expected) < 5 * math.sqrt(variance / count)
    for lag in (1, 2, 3, 4, 1024):
        assert abs((x[lag:] * x[:-lag]).mean().item()) < 5 / math.sqrt(count)
    u = philox_uniform((1024, 1024), 12, device=target.device)
    assert 0 < u.min() < u.max() < 1
    assert abs(u.double().mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / count)


def test_a_sequence_is_independent_of_its_batch_and_its_window(target: Target) -> None:
    seeds = torch.tensor([4, -9, 2**40], device=target.device)
    whole = philox_normal((3, 5, 20, 30), seeds)
    assert torch.equal(philox_normal((1, 5, 20, 30), seeds[1:2])[0], whole[1])  # (1,) covers the leading 1 as well
    assert torch.equal(philox_normal((3, 2, 20, 30), seeds), whole[:, :2])
    assert torch.equal(philox_normal((3, 5, 6, 30), seeds, frame_offset=14), whole[..., 14:, :])
    assert torch.equal(philox_normal((5, 1, 30), seeds[0]), whole[0, :, :1])
    assert not torch.equal(philox_normal((3, 5, 20, 30), seeds, stream=1), whole)


@parity.seeds(3)
@parity.dtypes()
def test_dropout_parity(target: Target, dtype: torch.dtype, seed: int) -> None:
    shape, seeds, stream, offset = draw(seed)
    inputs = {"x": parity.normal(random.Random(seed), *shape)}
    function = partial(dropout, p=parity.pick(random.Random(seed), 0.1, 0.5, 0.9), seed=seeds, stream=stream, frame_offset=offset)
    parity.assert_parity(function, inputs, dtype, target, differentiate=("x",))


def test_dropout_keeps_what_the_uniforms_say(target: Target) -> None:
    x = torch.ones(2, 50, 60, device=target.device)
    u = philox_uniform(x.shape, 8, stream=6, device=target.device)
    for p in (0.0, 2.0**-24, 0.1, 0.25, 0.7, 1.0):
        kept = dropout(x, p, seed=8, stream=6)
        assert torch.equal(kept != 0, u.double() >= p)
        assert p == 1.0 or torch.allclose(kept.max(), torch.tensor(1 / (1 - p), dtype=x.dtype))


def test_dropped_nan_is_gone(target: Target) -> None:
    x = torch.full((40, 40), float("nan"), device=target.device)
    y = dropout(x, 0.5, seed=1)
    assert torch.equal(y.isnan(), philox_uniform(x.shape, 1, device=target.device) >= 0.5)
    assert torch.equal(y.nan_to_num(), torch.zeros_like(x))


def test_dropout_layouts_and_threads(target: Target) -> None:
    inputs = {"x": parity.normal(random.Random(1), 2, 3, 17, 30)}
    parity.assert_any_layout(partial(dropout, p=0.4, seed=3), inputs, differentiate=("x",))
    inputs = {"x": parity.normal(random.Random(1), 600, 58)}
    parity.assert_deterministic(partial(dropout, p=0.4, seed=3), inputs, differentiate=("x",))


def test_dropout_gradcheck() -> None:
    parity.assert_gradcheck(partial(dropout, p=0.3, seed=1), {"x": parity.normal(random.Random(2), 3, 4, 5)}, ("x",))


def test_dropout_second_derivative(target: Target) -> None:
    x = parity.normal(random.Random(2), 3, 4, 5).requires_grad_()
    (grad,) = torch.autograd.grad((dropout(x, 0.3, seed=1) ** 2).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(grad.sum(), x)
    mask = dropout(torch.ones_like(x), 0.3, seed=1)
    torch.testing.assert_close(again, 2 * mask * mask)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (0,)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, ...]) -> None:
    assert philox_normal(shape, 1, device=target.device).shape == shape
    assert dropout(torch.zeros(shape, device=target.device), 0.5, seed=1).shape == shape


def test_no_seeds_for_no_sequences(target: Target) -> None:
    assert philox_normal((0, 4, 3), torch.zeros(0, dtype=torch.int64, device=target.device)).shape == (0, 4, 3)


def test_default_seed_follows_torch() -> None:
    torch.manual_seed(5)
    first = philox_normal((3, 4)), dropout(torch.ones(3, 4), 0.5)
    torch.manual_seed(5)
    assert torch.equal(philox_normal((3, 4)), first[0])
    assert draw_seed(shape=(3,)).shape == (3,)


def test_registration_compile_and_export() -> None:
    x = torch.randn(2, 3, 5, requires_grad=True)
    parity.assert_opcheck(torch.ops.emc_fast.dropout.default, x, torch.tensor([1]), 0.5, 0, torch.tensor([2]))
    parity.assert_opcheck(torch.ops.emc_fast.philox_normal.default, x.detach(), torch.tensor([1]), 0, None)

    def make(frames: int) -> dict[str, torch.Tensor]:
        return {"x": parity.normal(random.Random(frames), 2, frames, 12)}

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, 0.5, seed=1) + philox_normal(x.shape, 2, stream=1)

    parity.assert_compiles(noisy, make, (5, 8, 21), ("x",))
    parity.assert_exports(noisy, make, 1, "emc_fast.philox_normal")


def test_inductor_and_a_moving_window() -> None:
    """The default compiler, and a frame offset that changes from call to call without a new graph."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def window(x: torch.Tensor, offset: int) -> torch.Tensor:
        return x + philox_normal(x.shape, 2, frame_offset=offset)

    compiled = torch.compile(window, fullgraph=True, backend=counter)
    x = torch.zeros(2, 4, 6)
    for offset in (0, 4, 8, 12):
        assert torch.equal(compiled(x, offset), window(x, offset))
    assert counter.frame_count <= 3  # zero takes no offset tensor; then one number; then any number


def test_streams_do_not_meet() -> None:
    names = [value for name, value in vars(streams).items() if name.isupper() and name != "SPAN" and not name.startswith("_")]
    assert len(set(names)) == len(names)
    assert max(names) < streams.module_base(0)
    assert streams.module_base(1) - streams.module_base(0) == streams.SPAN
    with pytest.raises(ValueError, match="index must be"):
        streams.module_base(-1)


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: philox_normal((), 1), ValueError, "shape needs at least one dimension"),
        (lambda: philox_normal((2, -1), 1), ValueError, "shape needs at least one dimension and no negative size"),
        (lambda: philox_normal((2,), 1, dtype=torch.int32), TypeError, "dtype must be float32"),
        (lambda: philox_uniform((2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)), ValueError, r"prefix of the leading dimensions \(2,\)"),
        (lambda: philox_uniform((2,), True), TypeError, "seed must be an int64 tensor"),
        (lambda: dropout(X, 1.5), ValueError, r"p must be in \[0, 1\], got 1.5"),
        (lambda: dropout(X, float("nan")), ValueError, "p must be in"),
        (lambda: dropout(X, "a"), TypeError, "p must be a number"),
        (lambda: dropout(X.long(), 0.5), TypeError, "x must be float32"),
        (lambda: dropout(torch.tensor(1.0), 0.5), ValueError, "x needs at least 1 dimension"),
        (lambda: dropout(X, 0.5, stream=2**32), ValueError, "stream must be in"),
        (lambda: dropout(X, 0.5, frame_offset=torch.zeros(1)), TypeError, "frame_offset must be int64"),
    ],
)
def test_bad_arguments(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
