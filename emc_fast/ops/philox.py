"""Noise that does not depend on the back end, the batch or the window: Philox4x32-10 with a counter per element.

docs/operators.md, "Noise", states how elements map to counters. Same seed, same bits of the underlying integers everywhere; normals agree
within 4 ulp of float32 between back ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from ._checks import FLOATING, check_probability, check_stream, check_tensor
from .reference import philox as reference

for _name in ("philox_normal", "philox_uniform"):
    # `like` gives shape, dtype and device, and is never read: shapes stay symbolic under torch.compile.
    _library.define(f"{_name}(Tensor like, Tensor seed, int stream, Tensor? frame_offset) -> Tensor")
    _library.register_fake(_name, lambda like, seed, stream, frame_offset: like.new_empty(like.shape))
    _backend.register_operator(_name)
_library.define("dropout(Tensor x, Tensor seed, float p, int stream, Tensor? frame_offset) -> Tensor")
_library.register_fake("dropout", lambda x, seed, p, stream, frame_offset: x.new_empty(x.shape))
_backend.register_operator("dropout")


def _dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p, ctx.stream, frame_offset = inputs
    ctx.save_for_backward(seed, frame_offset)


def _dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The operator is linear and its own transpose: the mask is made again, and every further derivative is right as well."""
    seed, frame_offset = ctx.saved_tensors
    return _dropout(ctx.backend, grad, seed, ctx.p, ctx.stream, frame_offset), None, None, None, None


_dropout = _autograd.differentiable("dropout", setup=_dropout_setup, backward=_dropout_backward)


def draw_seed(device: torch.device | str | None = None, shape: Sequence[int] = (1,)) -> Tensor:
    """Seeds from torch's default generator of ``device``, so that ``torch.manual_seed`` governs everything.

    Returns:
        int64 tensor of ``shape`` on ``device``.
    """
    return torch.randint(-(2**63), 2**63 - 1, tuple(shape), dtype=torch.int64, device=device)


def as_seed(seed: Tensor | int | None, shape: Sequence[int], device: torch.device) -> Tensor:
    """``seed`` as a contiguous int64 tensor on ``device`` that fits a noise tensor of ``shape``.

    Args:
        seed: int64 tensor of shape (1,) or a prefix of ``shape[:-2]``, an int, or None to draw one.
        shape: of the noise, ``(*lead, T, d)``.
        device: of the noise.

    Raises:
        TypeError: ``seed`` is neither of these, or not int64.
        ValueError: its shape is no prefix of the leading dimensions, it is on another device, or an int does not fit 64 bits.
    """
    if seed is None:
        return draw_seed(device)
    if isinstance(seed, int) and not isinstance(seed, bool):
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed must fit a signed 64-bit integer, got {seed}")
        return torch.full((1,), seed, dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        raise TypeError(f"seed must be an int64 tensor, an int or None, got {type(seed).__name__}")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed must be int64, got {seed.dtype}")
    if seed.device != device:
        raise ValueError(f"seed must be on {device} with the noise, got {seed.device}")
    lead = tuple(shape[:-2])
    if seed.shape != (1,) and tuple(seed.shape) != lead[: seed.dim()]:
        raise ValueError(f"seed must have shape (1,) or a prefix of the leading dimensions {lead}, got {tuple(seed.shape)}")
    return seed.contiguous()


def as_frame_offset(frame_offset: int | Tensor, device: torch.device) -> Tensor | None:
    """``frame_offset`` as the raw operators take it: None for zero, else an int64 tensor of one element on ``device``."""
    if isinstance(frame_offset, Tensor):
        if frame_offset.dtype != torch.int64 or frame_offset.numel() != 1:
            raise TypeError(f"frame_offset must be int64 with one element, got {frame_offset.dtype} of shape {tuple(frame_offset.shape)}")
        if frame_offset.device != device:
            raise ValueError(f"frame_offset must be on {device} with the noise, got {frame_offset.device}")
        return frame_offset.reshape(1)
    if isinstance(frame_offset, bool) or not isinstance(frame_offset, int | torch.SymInt):
        raise TypeError(f"frame_offset must be an int or an int64 tensor of one element, got {type(frame_offset).__name__}")
    if isinstance(frame_offset, int) and frame_offset == 0:
        return None
    return torch.full((1,), frame_offset, dtype=torch.int64, device=device)


def _fill(
    name: str,
    shape: Sequence[int],
    seed: Tensor | int | None,
    stream: int,
    frame_offset: int | Tensor,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    shape = tuple(shape)
    if not shape or any(size < 0 for size in shape):
        raise ValueError(f"shape needs at least one dimension and no negative size, got {shape}")
    if dtype not in FLOATING:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    check_stream(stream)
    # An element of the result stands for its dtype and device, the default device included; expanded, it costs nothing.
    element = torch.empty((1,), dtype=dtype, device=seed.device if device is None and isinstance(seed, Tensor) else device)
    target = element.device
    seed = as_seed(seed, shape, target)
    offset = as_frame_offset(frame_offset, target)
    backend = _backend.choose(name, target, dtype)
    if backend == "reference":
        definition = reference.philox_normal if name == "philox_normal" else reference.philox_uniform
        return definition(shape, seed, stream=stream, frame_offset=0 if offset is None else offset, dtype=dtype)
    raw = _library.raw(backend)
    operator = raw.philox_normal if name == "philox_normal" else raw.philox_uniform
    return operator(element.expand(shape), seed, stream, offset)


def philox_normal(
    shape: Sequence[int],
    seed: Tensor | int | None = None,
    *,
    stream: int = 0,
    frame_offset: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals of ``shape`` that depend on nothing but the seed, the stream and each element's place.

    Args:
        shape: ``(*lead, T, d)``; ``(d,)`` is one frame.
        seed: int64 tensor of shape (1,) or a prefix of ``lead`` (one seed per sequence), an int, or None to draw one (:func:`draw_seed`).
        stream: constant of the place of use (:mod:`emc_fast.ops.streams`), in [0, 2**32).
        frame_offset: number of the first frame, an int or an int64 tensor of one element: a later window continues where the earlier ended.
        dtype: float32, float16, bfloat16 or float64.
        device: default: the seed's.

    Returns:
        Dense tensor of ``shape``; no gradient.

    Raises:
        TypeError, ValueError: an argument is not as above; the text names it.
    """
    return _fill("philox_normal", shape, seed, stream, frame_offset, dtype, device)


def philox_uniform(
    shape: Sequence[int],
    seed: Tensor | int | None = None,
    *,
    stream: int = 0,
    frame_offset: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniforms in (0, 1), never 0 or 1 in float32; arguments, result and errors as :func:`philox_normal`."""
    return _fill("philox_uniform", shape, seed, stream, frame_offset, dtype, device)


def dropout(x: Tensor, p: float, *, seed: Tensor | int | None = None, stream: int = 0, frame_offset: int | Tensor = 0) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by 1/(1-p); the mask is never stored, backward makes it again.

    Args:
        x: ``(*lead, T, d)`` float32, float16, bfloat16 or float64, any strides.
        p: in [0, 1].
        seed, stream, frame_offset: as in :func:`philox_normal`; element kept where ``u >= p``, u of :func:`philox_uniform`.

    Returns:
        Dense tensor like ``x`` (``x`` itself where ``p`` is 0). Differentiable to any order.

    Raises:
        TypeError, ValueError: an argument is not as above; the text names it.
    """
    check_tensor("x", x, min_dim=1)
    check_probability("p", p)
    check_stream(stream)
    if p == 0:
        return x
    seed = as_seed(seed, x.shape, x.device)
    offset = as_frame_offset(frame_offset, x.device)
    backend = _backend.choose("dropout", x.device, x.dtype)
    if backend == "reference":
        return reference.dropout(x, p, seed=seed, stream=stream, frame_offset=0 if offset is None else offset)
    return _dropout(backend, x, seed, float(p), stream, offset)
