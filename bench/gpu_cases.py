"""What `gpu_ops.py` races: every operator that CUDA C++ or Triton serves, at sizes of the field, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.bench_attention_block import MATRICES, gather
from bench.bench_fusion_kl import LOGVARS, MEANS
from bench.bench_fusion_kl import ours as gaussians
from bench.rivals import block_on, emotion_on, sdpa
from bench.rivals import reparameterize as plain_draw
from emc_fast.ops import (
    AttentionBlockWeights,
    attention,
    attention_block,
    dropout,
    dtw,
    emotion_attention,
    fusion_kl_categorical,
    philox_normal,
    reparameterize,
    use_backend,
)
from emc_fast.ops.reference import dtw as dtw_definition
from emc_fast.ops.reference.fusion_kl import fusion_kl as plain_gaussians
from emc_fast.ops.reference.fusion_kl_categorical import fusion_kl_categorical as plain_categorical
from tests.ops import parity

Inputs = dict[str, Tensor]
Size = tuple[int, ...]
HALF = (torch.float32, torch.bfloat16)
BLOCKS = ("features", "emotion", "both")
ROWS = ((48000, 128), (1024, 128), (3_100_000, 128))


@dataclass(frozen=True)
class Case:
    """An operator as a function of named tensors, its plain form, and how its inputs are made for a size.

    ``sizes`` begin with the one that matters most. ``traffic``: how many times the bytes of the first input are read and written by
    forward, and by forward with backward; None where memory is not what limits. ``latency``: what counts is one call after the other, each
    a CUDA graph, on all sides. ``check`` replaces the error rule of the tests where that does not fit, and there is no plain form where it
    would take seconds.
    """

    operator: str
    function: Callable[..., Any]
    plain: Callable[..., Any] | None
    inputs: Callable[[Size, torch.dtype, str], Inputs]
    sizes: tuple[Size, ...]
    small: Size
    differentiate: tuple[str, ...] = ()
    traffic: tuple[float, float] | None = None
    dtypes: tuple[torch.dtype, ...] = HALF
    latency: bool = False
    check: Callable[[Callable[..., Any], Inputs, str], None] | None = None


def normals(names: Sequence[str]) -> Callable[[Size, torch.dtype, str], Inputs]:
    def make(size: Size, dtype: torch.dtype, device: str) -> Inputs:
        return {name: (0.5 * torch.randn(size, device=device)).to(dtype) for name in names}

    return make


def seeded(names: Sequence[str]) -> Callable[[Size, torch.dtype, str], Inputs]:
    """The seed is a tensor of the device, so that no call waits for it to be copied."""
    return lambda size, dtype, device: normals(names)(size, dtype, device) | {"seed": torch.tensor([7], device=device)}


def block_inputs(size: Size, dtype: torch.dtype, device: str) -> Inputs:
    batch, frames, width, _ = size
    weights = {name: (torch.randn((width, width), device=device) / width**0.5).to(dtype) for name in MATRICES}
    return normals(("x", "memory"))((batch, frames, width), dtype, device) | weights


def block(function: Callable[..., Any], heads: int) -> Callable[..., Any]:
    return lambda x, memory, **weights: function(x, memory, gather(weights), num_heads=heads)


def emotion_inputs(size: Size, dtype: torch.dtype, device: str) -> Inputs:
    batch, frames, width, _ = size
    found = normals(("features", "emotion"))((batch, frames, width), dtype, device)
    for block, name in product(BLOCKS, AttentionBlockWeights._fields[:-1]):
        shape = (width, width) if name.startswith("w_") else (width,)
        found[f"{block}_{name}"] = (torch.randn(shape, device=device) / width**0.5 + (name == "ln_weight")).to(dtype)
    return found


def emotion(function: Callable[..., Any], heads: int) -> Callable[..., Any]:
    def call(features: Tensor, emotion: Tensor, **weights: Tensor) -> Tensor:
        blocks = [AttentionBlockWeights(*(weights[f"{block}_{name}"] for name in AttentionBlockWeights._fields[:-1])) for block in BLOCKS]
        out: Tensor = function(features, emotion, *blocks, num_heads=heads)
        return out

    return call


def warped(size: Size, dtype: torch.dtype, device: str) -> Inputs:
    count, frames, channels = size
    x, y = (torch.randn((64, frames, channels), device=device).to(dtype) for _ in range(2))
    return {"x": x, "y": y, "pairs": torch.randint(64, (count, 2), device=device)}


def same_distances(function: Callable[..., Any], inputs: Inputs, backend: str) -> None:
    with use_backend(backend):  # type: ignore[arg-type]
        found = function(**inputs)
    torch.testing.assert_close(found, dtw_definition.dtw(**inputs), rtol=3e-7, atol=1e-9)


def same_normals(function: Callable[..., Any], inputs: Inputs, backend: str) -> None:
    with use_backend(backend):  # type: ignore[arg-type]
        found = function(**inputs)
    with use_backend("reference"):
        truth = function(**inputs).float()
    step = torch.finfo(found.dtype).eps * 2.0 ** torch.floor(torch.log2(truth.abs().clamp(min=2.0**-20)))
    assert ((found.float() - truth).abs() <= 4 * step).all(), "normals differ from the definition by more than 4 ulp"


def by_the_rule(function: Callable[..., Any], inputs: Inputs, backend: str, differentiate: tuple[str, ...] = ()) -> None:
    """The tests' error rule, values and gradients."""
    first = next(iter(inputs.values()))
    target = parity.Target(backend, first.device.type)
    parity.assert_parity(function, inputs, first.dtype, target, differentiate=differentiate)


CASES = (
    Case(
        "fusion_kl", gaussians, plain_gaussians, normals((*MEANS, *LOGVARS)), ROWS, (300, 128), (*MEANS, *LOGVARS), traffic=(6, 18),
    ),
    Case(
        "reparameterize", reparameterize, lambda mu, logvar, seed: plain_draw(mu, logvar), seeded(("mu", "logvar")), ROWS, (300, 128),
        ("mu", "logvar"), traffic=(3, 8),
    ),
    Case(
        "dropout", partial(dropout, p=0.1), lambda x, seed: torch.nn.functional.dropout(x, 0.1), seeded(("x",)), ROWS, (300, 128), ("x",),
        traffic=(2, 4),
    ),
    Case(
        "philox_normal", lambda like, seed: philox_normal(like.shape, seed, dtype=like.dtype), lambda like, seed: torch.randn_like(like),
        seeded(("like",)), ROWS, (300, 128), traffic=(1, 1), check=same_normals,
    ),
    Case(
        "fusion_kl_categorical", fusion_kl_categorical, plain_categorical, normals(("real", "comp_face", "comp_speech")),
        ((4096, 1000), (32, 1000)), (64, 1000), ("real", "comp_face", "comp_speech"), traffic=(3, 9),
    ),
    Case(
        "attention", attention, sdpa, normals(("query", "key", "value")), ((16, 750, 4, 32), (4, 256, 4, 32)), (2, 70, 4, 32),
        ("query", "key", "value"),
    ),
    Case(
        "attention_block", block(attention_block, 4), block(block_on(sdpa), 4), block_inputs, ((16, 750, 128, 4), (4, 256, 128, 4)),
        (2, 70, 128, 4), ("x", "memory", *MATRICES),
    ),
    Case(
        "emotion_attention", emotion(emotion_attention, 4), emotion(emotion_on(sdpa), 4), emotion_inputs, ((1, 8, 128, 4), (1, 64, 128, 4)),
        (4, 8, 128, 4), latency=True,
    ),
    Case(
        "dtw", dtw, None, warped, ((4096, 750, 15), (256, 750, 2)), (64, 90, 15), dtypes=(torch.float32,), check=same_distances,
    ),
)  # fmt: skip
