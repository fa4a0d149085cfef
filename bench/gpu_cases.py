"""What is raced on a GPU: every operator that CUDA C++ or Triton serves, at sizes of the field, beside plain PyTorch.

`bench_gpu.py` and `gpu_ops.py` race them, `tune_triton.py` searches tiles by them, `gpu_targets.py` holds the races against the aims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.bench_attention_block import MATRICES, gather
from bench.bench_fusion_kl import LOGVARS, MEANS
from bench.bench_fusion_kl import ours as gaussians
from bench.costs import Amounts, attention_work, block_work
from bench.race import Case
from bench.rivals import block_on, eager_attention, emotion_on, sdpa
from bench.rivals import reparameterize as plain_draw
from emc_fast.errors import BackendError
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
from emc_fast.ops._backend import choose
from emc_fast.ops.reference import dtw as dtw_definition
from emc_fast.ops.reference.fusion_kl import fusion_kl as plain_gaussians
from emc_fast.ops.reference.fusion_kl_categorical import fusion_kl_categorical as plain_categorical
from tests.ops import parity

Inputs = dict[str, Tensor]
Size = tuple[int, ...]
Function = Callable[..., Any]
HALF = (torch.float32, torch.bfloat16)
ALL = (torch.bfloat16, torch.float16, torch.float32)
BLOCKS = ("features", "emotion", "both")
ROWS = ((48000, 128), (1024, 128), (3_100_000, 128))


@dataclass(frozen=True)
class Subject:
    """An operator as a function of named tensors, its rivals, and how its inputs are made for a size.

    ``sizes`` begin with the one that matters most. ``traffic``: how many times the bytes of the first input are read and written by
    forward, and by forward with backward; where memory is not what limits, ``work`` has flops and exponentials of a size. ``check``
    replaces the error rule of the tests where that does not fit. The other fields are those of `race.Case`.
    """

    operator: str
    function: Function
    rivals: Mapping[str, Function]
    inputs: Callable[[Size, torch.dtype, str], Inputs]
    sizes: tuple[Size, ...]
    small: Size
    differentiate: tuple[str, ...] = ()
    traffic: Amounts | None = None
    work: Callable[[Size], tuple[Amounts, Amounts]] | None = None
    dtypes: tuple[torch.dtype, ...] = HALF
    check: Callable[[Function, Inputs, str], None] | None = None
    contexts: Mapping[str, Callable[[], AbstractContextManager[Any]]] = field(default_factory=dict)
    compiled: tuple[str, ...] = ()
    shares: Callable[[Size], Mapping[str, float]] = lambda size: {}
    alike: bool = True
    graph: bool = False
    series: str = ""

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "forward+backward") if self.differentiate else ("forward",)

    def size_in_words(self, size: Size, dtype: torch.dtype) -> str:
        of = "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"
        return " x ".join(map(str, size)) + of + (", a CUDA graph" if self.graph else "")

    def gate(self, backend: str, dtype: torch.dtype, device: str) -> None:
        """Raises where a back end of ours is wrong, or fails, on the small size; `BackendError` where it cannot serve."""
        inputs = self.inputs(self.small, dtype, device)
        if self.check is not None:
            self.check(self.function, inputs, backend)
        else:
            parity.assert_parity(self.function, inputs, dtype, parity.Target(backend, device), differentiate=self.differentiate)

    def case(self, size: Size, dtype: torch.dtype, device: str) -> Case:
        """The race, ours being what `auto` takes; another back end of ours that can serve runs beside it, and one that cannot is named."""
        others, missing = [], {}
        for backend in ("cuda", "triton") if device == "cuda" else ():
            if backend == choose(self.operator if self.operator != "emotion_attention" else "attention_block", torch.device(device), dtype):
                continue
            try:
                passed(self, backend, dtype, device)
            except BackendError as error:
                missing[backend] = str(error).splitlines()[0]
            else:
                others.append(backend)
        inputs = self.inputs(size, dtype, device)
        first = next(iter(inputs.values()))
        moved = first.numel() * first.element_size()
        flops, exponentials = self.work(size) if self.work else (None, None)
        return Case(
            self.operator,
            self.size_in_words(size, dtype),
            self.function,
            inputs,
            self.rivals,
            compiled=self.compiled,
            contexts=self.contexts,
            differentiate=self.differentiate,
            bytes_moved=(self.traffic[0] * moved, self.traffic[1] * moved) if self.traffic else None,
            flops=flops,
            exponentials=exponentials,
            gate=lambda: passed(self, "auto", dtype, device),
            alike=self.alike,
            shape=dict(zip(("B", "T", "H", "D"), size, strict=False)) if self.series else {},
            series=self.series,
            memory=bool(self.series),
            shares=self.shares(size),
            missing=missing,
            optional=tuple(self.rivals),
            others=tuple(others),
            graph=self.graph,
            compile_mode="max-autotune-no-cudagraphs" if self.graph else "default",
        )


_passed: dict[tuple[int, str, torch.dtype, str], Exception | None] = {}


def passed(subject: Subject, backend: str, dtype: torch.dtype, device: str) -> None:
    """The gate, gone through once for all sizes."""
    key = (id(subject), backend, dtype, device)
    if key not in _passed:
        try:
            subject.gate(backend, dtype, device)
        except Exception as error:
            _passed[key] = error
        else:
            _passed[key] = None
    if (found := _passed[key]) is not None:
        raise found


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


def on_one_core(x: Tensor, y: Tensor, pairs: Tensor) -> Tensor:
    """Some of the pairs by the CPU's own kernel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return dtw(x.cpu(), y.cpu(), pairs[:ON_ONE_CORE].cpu())
    finally:
        torch.set_num_threads(threads)


ON_ONE_CORE = 64


def attended(size: Size) -> tuple[Amounts, Amounts]:
    batch, frames, heads, width = size
    return attention_work(float(batch) * heads * frames**2, width)


def attended_blocks(size: Size, blocks: int = 1) -> tuple[Amounts, Amounts]:
    return block_work(*size, blocks=blocks)


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


FUSED = {
    "sdpa": sdpa,
    "sdpa(flash)": sdpa,
    "sdpa(efficient)": sdpa,
    "sdpa(cudnn)": sdpa,
}
"""PyTorch's fused attention: its own choice among its kernels, and each of them; which serve depends on the device and the dtype."""

KERNELS = {
    "sdpa(flash)": partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION),
    "sdpa(efficient)": partial(sdpa_kernel, SDPBackend.EFFICIENT_ATTENTION),
    "sdpa(cudnn)": partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION),
}

EMOTION = {"eager": emotion(emotion_on(eager_attention), 4), "sdpa": emotion(emotion_on(sdpa), 4)}
# All but the keys' bias, whose gradient is 0 in truth: there is nothing to hold its rounding against.
PARAMETERS = tuple(f"{block}_{name}" for block, name in product(BLOCKS, AttentionBlockWeights._fields[:-1]) if name != "b_k")

SUBJECTS = (
    Subject(
        "fusion_kl", gaussians, {"eager": plain_gaussians}, normals((*MEANS, *LOGVARS)), ROWS, (300, 128), (*MEANS, *LOGVARS),
        traffic=(6, 18), compiled=("eager",),
    ),
    Subject(
        "reparameterize", reparameterize, {"eager": lambda mu, logvar, seed: plain_draw(mu, logvar)}, seeded(("mu", "logvar")), ROWS,
        (300, 128), ("mu", "logvar"), traffic=(3, 8), compiled=("eager",), alike=False,
    ),
    Subject(
        "attention", attention, FUSED, normals(("query", "key", "value")), ((64, 750, 4, 32), (64, 750, 12, 30), (4, 256, 4, 32)),
        (2, 70, 4, 32), ("query", "key", "value"), work=attended, dtypes=ALL, contexts=KERNELS,
    ),
    Subject(
        "emotion_attention", emotion(emotion_attention, 4), EMOTION, emotion_inputs, ((1, 8, 128, 4), (1, 64, 128, 4)), (4, 8, 128, 4),
        work=partial(attended_blocks, blocks=3), compiled=("eager", "sdpa"), graph=True,
    ),
    Subject(
        "emotion_attention", emotion(emotion_attention, 4), EMOTION, emotion_inputs, ((64, 750, 128, 4),), (2, 70, 128, 4),
        ("features", "emotion", *PARAMETERS), work=partial(attended_blocks, blocks=3), compiled=("eager", "sdpa"),
    ),
    Subject(
        "dtw", dtw, {"one CPU core": on_one_core}, warped, ((4096, 750, 25), (256, 750, 2)), (64, 90, 15), dtypes=(torch.float32,),
        check=same_distances, shares=lambda size: {"one CPU core": min(1.0, ON_ONE_CORE / size[0])}, alike=False,
    ),
    Subject(
        "dropout", partial(dropout, p=0.1), {"eager": lambda x, seed: torch.nn.functional.dropout(x, 0.1)}, seeded(("x",)), ROWS,
        (300, 128), ("x",), traffic=(2, 4), alike=False,
    ),
    Subject(
        "philox_normal", lambda like, seed: philox_normal(like.shape, seed, dtype=like.dtype),
        {"eager": lambda like, seed: torch.randn_like(like)}, seeded(("like",)), ROWS, (300, 128), traffic=(1, 1), check=same_normals,
        alike=False,
    ),
    Subject(
        "fusion_kl_categorical", fusion_kl_categorical, {"eager": plain_categorical}, normals(("real", "comp_face", "comp_speech")),
        ((4096, 1000), (32, 1000)), (64, 1000), ("real", "comp_face", "comp_speech"), traffic=(3, 9), compiled=("eager",),
    ),
    Subject(
        "attention_block", block(attention_block, 4), {"sdpa": block(block_on(sdpa), 4)}, block_inputs,
        ((16, 750, 128, 4), (4, 256, 128, 4)), (2, 70, 128, 4), ("x", "memory", *MATRICES), work=attended_blocks,
    ),
    Subject(
        "attention", attention, {"eager": eager_attention, "sdpa": sdpa}, normals(("query", "key", "value")),
        ((1, 1024, 4, 32), (1, 4096, 4, 32), (1, 16384, 4, 32)), (2, 70, 4, 32), ("query", "key", "value"), work=attended,
        dtypes=(torch.bfloat16,), series="T",
    ),
)  # fmt: skip


def subject_of(operator: str) -> Subject:
    """The first of that operator, which has what it is tuned by."""
    return next(subject for subject in SUBJECTS if subject.operator == operator)


def all_races() -> list[tuple[Subject, Size, torch.dtype, str]]:
    """Every race: the sizes that matter most of all operators first."""
    longest = max(len(subject.sizes) for subject in SUBJECTS)
    return [
        (subject, subject.sizes[number], dtype, direction)
        for number in range(longest)
        for subject in SUBJECTS
        if number < len(subject.sizes)
        for dtype in subject.dtypes
        for direction in subject.directions
    ]
