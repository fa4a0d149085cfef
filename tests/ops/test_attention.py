"""attention: values, gradients, masks, dropout, layouts and the rules of an operator."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from cuda_emulator import build
from torch import Tensor

from emc_fast.ops import attention, philox_uniform, use_backend

from . import parity
from .parity import Target

NAMES = ("query", "key", "value")
WIDTHS = (1, 3, 16, 30, 32, 60, 64, 128)


def tensors(rng: random.Random, b: int, t: int, s: int, h: int, d: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    lengths = {"query": t, "key": s, "value": s}
    return {n: parity.normal(rng, b, lengths[n], h, d, dtype=dtype) for n in NAMES}


def draw(seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs and options; sizes on both sides of a vector, a block of keys and a chunk of queries."""
    rng = random.Random(seed)
    t, s = (parity.pick(rng, 7, 16, 33, range(2, 120), range(250, 300)) for _ in range(2))
    d = rng.choice(WIDTHS)
    # Narrow heads get company: the largest of few errors is a matter of luck, for PyTorch and for the kernel alike.
    inputs = tensors(rng, rng.randrange(1, 3), t, s, rng.randrange(1, 4) if d >= 16 else 8, d)
    causal = rng.random() < 0.5
    options: dict[str, Any] = {"causal": causal, "window": rng.choice([None, 2, 40]) if causal else None}
    if rng.random() < 0.3:
        options["scale"] = 0.3
    if rng.random() < 0.6:
        options["key_mask"] = key_mask(rng, inputs["key"], rng.choice([0.3, 0.9]))
    return inputs, options


def key_mask(rng: random.Random, key: Tensor, share: float) -> Tensor:
    return parity.mask(rng.getrandbits(40), *key.shape[:2], share=share)


@parity.seeds(8)
@parity.dtypes()
def test_parity(target: Target, dtype: torch.dtype, seed: int) -> None:
    inputs, options = draw(seed)
    parity.assert_parity(partial(attention, **options), inputs, dtype, target, differentiate=NAMES, seed=seed)


@parity.seeds(4, first=100)
def test_parity_with_dropout(target: Target, seed: int) -> None:
    inputs, options = draw(seed)
    function = partial(attention, **options, dropout_p=0.3, seed=seed, stream=5)
    parity.assert_parity(function, inputs, torch.float32, target, differentiate=NAMES, seed=seed)


@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 9), (9, 1), (1, 300), (300, 1), (600, 601), (1100, 40)])
def test_parity_of_extreme_lengths(target: Target, t: int, s: int) -> None:
    inputs = tensors(random.Random(t + s), 1 if t * s > 1000 else 3, t, s, 4, 30)
    for causal in (False, True):
        parity.assert_parity(partial(attention, causal=causal), inputs, torch.float32, target, differentiate=NAMES)


@pytest.mark.parametrize(("t", "s"), [(16, 285), (285, 16)])
def test_parity_where_a_tile_sees_nothing(target: Target, t: int, s: int) -> None:
    """Whole tiles of keys before every window, or of queries before the first key: zeros, and of nothing else."""
    inputs = tensors(random.Random(t), 2, t, s, 8, 16)
    parity.assert_parity(partial(attention, causal=True, window=2), inputs, torch.float32, target, differentiate=NAMES)


@pytest.mark.parametrize("growth", [4, 6, 30, 60])
@pytest.mark.parametrize("width", [16, 30])
def test_large_scores(target: Target, width: int, growth: int) -> None:
    """The online softmax must not overflow, nor lose the sum when a later block holds the largest score; a little larger, or a lot."""
    inputs = tensors(random.Random(3), 1, 20, 400, 1, width)
    inputs["key"] = inputs["key"] * torch.linspace(1, growth, 400)[None, :, None, None]
    parity.assert_parity(attention, inputs, torch.float32, target, differentiate=NAMES)


def test_one_key_takes_no_gradient(target: Target) -> None:
    """With one key to see the softmax is constant: the gradients of query and key are exactly 0."""
    inputs = tensors(random.Random(4), 2, 70, 70, 2, 30)
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    out = attention(**leaves, causal=True, window=1)
    assert torch.equal(out, leaves["value"])
    grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
    assert not grads[0].any()
    assert not grads[1].any()


@parity.seeds(3)
def test_masked_places_may_hold_anything(target: Target, seed: int) -> None:
    """NaN and Inf in masked keys change no bit and get gradients of exactly 0; so do queries with nothing to attend."""
    rng = random.Random(seed)
    inputs = tensors(rng, 3, 150, 130, 2, 30)
    mask = key_mask(rng, inputs["key"], 0.6)
    mask[1] = False
    mask[2, :70] = False  # with causal and T > S: the first queries of this entry see nothing
    options = {"key_mask": mask, "causal": True, "dropout_p": 0.2, "seed": seed}
    blind = torch.stack([~(mask[b] & (torch.arange(130) <= torch.arange(150)[:, None] - 20)).any(1) for b in range(3)])
    grads = [parity.normal(rng, 3, 150, 2, 30)]
    clean = parity.run(partial(attention, **options), inputs, NAMES, grads)
    dirty = {n: x.clone() for n, x in inputs.items()}
    dirty["key"][~mask] = float("nan")
    dirty["value"][~mask] = float("inf")
    dirty["query"][blind] = float("nan")
    grads[0][blind] = float("nan")
    found = parity.run(partial(attention, **options), dirty, NAMES, grads)
    for name in clean:
        assert torch.equal(clean[name], found[name]), name
    assert not found["out0"][blind].any()
    assert not found["d_query"][blind].any()
    assert not found["d_key"][~mask].any()
    assert not found["d_value"][~mask].any()
    with use_backend("reference"):
        definition = parity.run(partial(attention, **options), dirty, NAMES, grads)
    assert all(x.isfinite().all() for x in definition.values())


def test_nan_in_an_attended_key_shows(target: Target) -> None:
    inputs = tensors(random.Random(1), 1, 5, 9, 1, 8)
    inputs["key"][0, 3, 0, 2] = float("nan")
    assert attention(**inputs).isnan().all()


def test_padding_changes_no_bit(target: Target) -> None:
    """A sequence gives the same bits alone, in a batch, and padded behind its end."""
    inputs = tensors(random.Random(5), 2, 90, 90, 2, 32)
    alone = {n: x[:1, :61] for n, x in inputs.items()}
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[0, 61:] = False
    assert torch.equal(attention(**inputs, key_mask=mask)[:1, :61], attention(**alone))


def test_a_window_beyond_all_keys(target: Target) -> None:
    """As a number for "no limit"."""
    inputs = tensors(random.Random(0), 1, 5, 9, 1, 8)
    without = parity.run(partial(attention, causal=True), inputs, NAMES, [torch.ones(1, 5, 1, 8)])
    for window in (9, 2**31 - 1, 2**40):
        parity.assert_same_bits(
            without, parity.run(partial(attention, causal=True, window=window), inputs, NAMES, [torch.ones(1, 5, 1, 8)]), str(window)
        )


def test_causal_window(target: Target) -> None:
    """Query t sees the last `window` keys up to t + S - T: checked by values that name their key."""
    t, s, window = 7, 11, 3
    value = torch.eye(s)[None, :, None, :]
    out = attention(torch.zeros(1, t, 1, s), torch.zeros(1, s, 1, s), value, causal=True, window=window)[0, :, 0]
    last = torch.arange(t)[:, None] + s - t
    seen = (torch.arange(s) <= last) & (torch.arange(s) > last - window)
    assert torch.equal(out > 0, seen)


def test_dropout_is_the_noise_of_philox(target: Target) -> None:
    """Element (b, h, t, s) of the tensor (B,H,T,S) is kept where u >= p, with one seed or one per sequence or head."""
    b, h, t, s = 2, 3, 21, 37
    query, key = torch.zeros(b, t, h, s), torch.zeros(b, s, h, s)
    value = torch.eye(s)[None, :, None, :].expand(b, s, h, s)
    for seed in (torch.tensor([-9]), torch.tensor([2**40, 3]), torch.arange(6).view(2, 3)):
        out = attention(query, key, value, dropout_p=0.4, seed=seed, stream=7)
        kept = philox_uniform((b, h, t, s), seed, stream=7) >= 0.4
        assert torch.equal(out.transpose(1, 2) > 0, kept)
        assert torch.allclose(out.max(), torch.tensor(1 / (0.6 * s)))
    assert not attention(query, key, value, dropout_p=1.0, seed=1).any()


def test_a_seed_per_sequence_forgets_the_batch(target: Target) -> None:
    inputs = tensors(random.Random(8), 3, 20, 20, 2, 16)
    seeds = torch.tensor([5, 6, 7])
    whole = attention(**inputs, dropout_p=0.5, seed=seeds)
    assert torch.equal(whole[1:2], attention(**{n: x[1:2] for n, x in inputs.items()}, dropout_p=0.5, seed=seeds[1:2]))


def test_default_seed_follows_torch() -> None:
    inputs = tensors(random.Random(8), 1, 9, 9, 1, 16)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(attention(**inputs, dropout_p=0.5))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_deterministic(target: Target) -> None:
    inputs = tensors(random.Random(2), 2, 530, 270, 2, 32)  # several chunks: their sums are added in order
    mask = key_mask(random.Random(1), inputs["key"], 0.8)
    parity.assert_deterministic(partial(attention, key_mask=mask, causal=True, dropout_p=0.1, seed=3), inputs, differentiate=NAMES)


@parity.seeds(2)
def test_any_layout(target: Target, seed: int) -> None:
    inputs, options = draw(seed)
    parity.assert_any_layout(partial(attention, **options), inputs, differentiate=NAMES)


@pytest.mark.parametrize("width", [30, 32, 33, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_copying_ahead_changes_no_bit_when_emulated(dtype: torch.dtype, width: int) -> None:
    """From 8.0 on the next keys are copied while these are multiplied: whatever the lead of a warp, the bits are those of who waits.

    In half types that is a made-up 8.1 without room for a second stage (7.5 multiplies in other steps), in float32 everybody.

    Steps in which no key is seen are left out, the first, some in the middle and the last; a width of 33 cannot be copied in that way.
    """
    rng = random.Random(width)
    inputs = tensors(rng, 2, 150, 420, 1, width, dtype)
    mask = key_mask(rng, inputs["key"], 0.8)
    mask[:, :70] = mask[:, 130:260] = mask[:, 400:] = False
    mask[1] = False
    mask[1, 300:310] = True
    grads = [parity.normal(rng, 2, 150, 1, width, dtype=dtype)]
    for options in ({"key_mask": mask}, {"key_mask": mask, "causal": True, "window": 90, "dropout_p": 0.2, "seed": 4}):
        found = []
        waits = 75 if dtype == torch.float32 else 81
        for order, capability in (("forward", waits), ("forward", 86), *((order, 90) for order in build.ORDERS)):
            with build.enabled(order, capability), use_backend("cpu"):
                found.append(parity.run(partial(attention, **options), inputs, NAMES, grads))
        for other in found[1:]:
            for name, x in found[0].items():
                assert torch.equal(x, other[name]), name


def test_expanded_inputs_and_masks(target: Target) -> None:
    rng = random.Random(6)
    query, key, value = (parity.normal(rng, 1, 40, 1, 16) for _ in range(3))
    mask = key_mask(rng, key, 0.5)
    many = attention(*(x.expand(3, 40, 2, 16) for x in (query, key, value)), key_mask=mask.expand(3, 40))
    assert torch.equal(many, attention(query, key, value, key_mask=mask).expand(3, 40, 2, 16))
    wide = torch.zeros(1, 80, dtype=torch.bool)
    wide[:, ::2] = mask
    assert torch.equal(attention(query, key, value, key_mask=wide[:, ::2]), attention(query, key, value, key_mask=mask))


@pytest.mark.parametrize("shape", [(0, 3, 4, 2, 8), (2, 0, 4, 2, 8), (2, 3, 0, 2, 8), (2, 3, 4, 0, 8), (2, 0, 0, 2, 8)], ids=str)
def test_zero_size(target: Target, shape: tuple[int, ...]) -> None:
    b, t, s, h, d = shape
    leaves = [torch.ones(b, length, h, d, requires_grad=True) for length in (t, s, s)]
    out = attention(*leaves, key_mask=torch.ones(b, s, dtype=torch.bool))
    assert out.shape == (b, t, h, d)
    assert not out.any()
    out.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)


def test_rows_beyond_two_to_the_31(target: Target) -> None:
    """Heads more than 2^31 elements apart; only the pages that are touched cost memory."""
    base = torch.empty(2**31 + 4096, dtype=torch.float16)
    far = base.as_strided((1, 3, 2, 30), (0, 30, 2**31 + 17, 1))
    near = parity.normal(random.Random(0), 1, 3, 2, 30, dtype=torch.float16)
    far.copy_(near)
    assert torch.equal(attention(far, far, far), attention(near, near, near))


def test_wide_heads_go_to_the_definition() -> None:
    inputs = tensors(random.Random(0), 1, 3, 4, 1, 130)
    assert attention(**inputs).shape == (1, 3, 1, 130)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="head width 130 exceeds 128"):
        attention(**inputs)


def test_gradcheck() -> None:
    inputs = tensors(random.Random(5), 2, 3, 4, 2, 3)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    parity.assert_gradcheck(partial(attention, key_mask=mask, causal=True, dropout_p=0.2, seed=2), inputs, NAMES)


def test_second_derivative(target: Target) -> None:
    inputs = tensors(random.Random(5), 1, 5, 6, 2, 4)
    parity.assert_second_derivative(partial(attention, causal=True, window=4), inputs, NAMES, target)
    same = {"x": parity.normal(random.Random(1), 1, 5, 2, 4)}
    parity.assert_second_derivative(lambda x: attention(x, x, x), same, ("x",), target)


def test_only_one_input_needs_a_gradient(target: Target) -> None:
    inputs, options = draw(1)
    for name in NAMES:
        parity.assert_parity(partial(attention, **options), inputs, torch.float32, target, differentiate=(name,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_lowers_like_torch(target: Target, dtype: torch.dtype) -> None:
    inputs = tensors(random.Random(3), 1, 9, 9, 1, 16)
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    with torch.autocast(target.device, dtype=dtype):
        out = attention(**leaves)
        with use_backend("auto"):
            assert attention(*(x.double() for x in inputs.values())).dtype == torch.float64
    assert out.dtype == dtype
    assert torch.equal(out, attention(*(x.detach().to(dtype) for x in inputs.values())))
    out.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in leaves.values())


def test_compiles() -> None:
    def make(t: int) -> dict[str, Tensor]:
        return tensors(random.Random(t), 2, t, t + 3, 2, 16)

    seed = torch.tensor([4])
    parity.assert_compiles(lambda **x: attention(**x, causal=True, dropout_p=0.1, seed=seed), make, (12, 20, 33), NAMES)


def test_exports() -> None:
    def make(t: int) -> dict[str, Tensor]:
        return tensors(random.Random(t), 2, t, t, 2, 16)

    parity.assert_exports(partial(attention, causal=True), make, 1, "emc_fast.attention")


def test_opcheck() -> None:
    query, key, value = (x.requires_grad_() for x in tensors(random.Random(1), 2, 5, 6, 2, 8).values())
    mask, seed = torch.rand(2, 6) < 0.7, torch.tensor([1])
    operator = torch.ops.emc_fast.attention.default
    parity.assert_opcheck(operator, query, key, value, mask, True, 3, None, 0.1, seed, 2)
    parity.assert_opcheck(operator, query, key, value, None, False, 0, 0.5, 0.0, None, 0)
    detached = [x.detach() for x in (query, key, value)]
    out, statistics = operator(*detached, mask, True, 3, None, 0.1, seed, 2)
    saved = (out, *detached, statistics)
    parity.assert_opcheck(torch.ops.emc_fast.attention_backward.default, *saved, mask, True, 3, None, 0.1, seed, 2)


Q, K = torch.zeros(2, 3, 4, 8), torch.zeros(2, 5, 4, 8)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": [1.0]}, TypeError, "query must be a tensor, got list"),
    ({"query": Q.int()}, TypeError, "query must be float32, float16, bfloat16 or float64, got torch.int32"),
    ({"query": Q[0]}, ValueError, r"query must have the 4 dimensions \(B,T,H,D\), got shape \(3, 4, 8\)"),
    ({"value": K[0]}, ValueError, r"value must have the 4 dimensions \(B,S,H,D\)"),
    ({"key": K.half()}, TypeError, "key must have the dtype of query, torch.float32, got torch.float16"),
    ({"key": K[:1]}, ValueError, r"key must have shape \(B,S,H,D\) with B,H,D of query, \(2, 'S', 4, 8\), got \(1, 5, 4, 8\)"),
    ({"value": K[:, :4]}, ValueError, r"value must have the shape of key, \(2, 5, 4, 8\), got \(2, 4, 4, 8\)"),
    ({"query": Q[..., :0], "key": K[..., :0], "value": K[..., :0]}, ValueError, "head width D of at least 1"),
    ({"key_mask": torch.ones(2, 5)}, TypeError, "key_mask must be bool, got torch.float32"),
    ({"key_mask": torch.ones(2, 4).bool()}, ValueError, r"key_mask must have shape \(B,S\) = \(2, 5\) as key says, got \(2, 4\)"),
    ({"causal": 1}, TypeError, "causal must be a bool, got int"),
    ({"window": 3}, ValueError, "window=3 counts back from each query, so it needs causal=True"),
    ({"causal": True, "window": 0}, ValueError, "window must be at least 1, got 0"),
    ({"causal": True, "window": 2.0}, TypeError, "window must be an int or None, got float"),
    ({"scale": "1"}, TypeError, "scale must be a number or None, got str"),
    ({"dropout_p": 1.5}, ValueError, r"dropout_p must be in \[0, 1\], got 1.5"),
    ({"dropout_p": 0.1, "seed": torch.zeros(3, dtype=torch.int64)}, ValueError, r"seed must have shape \(1,\) or a prefix"),
    ({"dropout_p": 0.1, "seed": 0.5}, TypeError, "seed must be an int64 tensor, an int or None, got float"),
    ({"stream": -1}, ValueError, "stream must be in"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text[:30] for *_, text in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        attention(**{"query": Q, "key": K, "value": K, **change})
