"""Multi-head attention with key masks, causal windows and reproducible dropout, without ever holding a T x S matrix."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from ._checks import FLOATING, check_probability, check_same, check_stream, check_tensor
from .philox import as_seed
from .reference.attention import attention as _definition

__all__ = ["attention"]

#: Widest head that the CPU kernels take; wider ones are served by the definition.
MAX_CPU_WIDTH = 128

_OPTIONS = "Tensor? key_mask, bool causal, int window, float? scale, float dropout_p, Tensor? seed, int stream"
# window 0 is none. statistics, (2,B,H,T) float32: each query's largest score, or one near it, and its sum
# of exponentials beside that: all that backward keeps.
_library.define(f"attention(Tensor query, Tensor key, Tensor value, {_OPTIONS}) -> (Tensor out, Tensor statistics)")
_library.define(
    f"attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor statistics, {_OPTIONS})"
    " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)"
)
_backend.register_operator("attention")


def _fake(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    b, t, h, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((2, b, h, t), dtype=torch.float32)


def _fake_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, key_mask, *ctx.options, seed, ctx.stream = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, key_mask, seed, output[1])


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 10
    query, key, value, key_mask, seed, statistics = ctx.saved_tensors
    causal, window, scale, dropout_p = ctx.options
    if _autograd.wants_graph():
        options = {"causal": causal, "window": window or None, "scale": scale, "dropout_p": dropout_p, "seed": seed, "stream": ctx.stream}
        definition = partial(_definition, key_mask=key_mask, **options)
        grads = _autograd.backward_of_definition(definition, (query, key, value), ctx.needs_input_grad[:3], (grad_out,))
    else:
        raw = _library.raw(ctx.backend)
        grads = raw.attention_backward(grad_out, query, key, value, statistics, key_mask, *ctx.options, seed, ctx.stream)
    return *grads, *([None] * 7)


_library.register_fake("attention", _fake)
_library.register_fake("attention_backward", _fake_backward)
_attention = _autograd.differentiable("attention", setup=_setup_context, backward=_backward)


def check_span(causal: object, window: object) -> None:
    """``causal`` is a bool; ``window`` is None, or a positive int beside ``causal=True``."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    if window is None:
        return
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f"window must be an int or None, got {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if not causal:
        raise ValueError(f"window={window} counts back from each query, so it needs causal=True, got causal=False")


def check_key_mask(key_mask: object, batch: int, keys: int, device: torch.device, *, keys_of: str) -> None:
    """``key_mask`` is None or a (B,S) bool tensor."""
    if key_mask is None:
        return
    check_tensor("key_mask", key_mask, dtypes=(torch.bool,))
    assert isinstance(key_mask, Tensor)
    if tuple(key_mask.shape) != (batch, keys):
        raise ValueError(f"key_mask must have shape (B,S) = {(batch, keys)} as {keys_of} says, got {tuple(key_mask.shape)}")
    if key_mask.device != device:
        raise ValueError(f"key_mask must be on {device} with {keys_of}, got {key_mask.device}")


def _check(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, x)
        if x.dim() != 4:
            raise ValueError(f"{name} must have the 4 dimensions (B,{'T' if name == 'query' else 'S'},H,D), got shape {tuple(x.shape)}")
    check_same("key", key, "query", query, shape=False)
    b, _, h, d = query.shape
    if (key.shape[0], key.shape[2], key.shape[3]) != (b, h, d):
        raise ValueError(f"key must have shape (B,S,H,D) with B,H,D of query, {(b, 'S', h, d)}, got {tuple(key.shape)}")
    check_same("value", value, "key", key)
    if d < 1:
        raise ValueError(f"query must have a head width D of at least 1, got shape {tuple(query.shape)}")
    check_key_mask(key_mask, b, key.shape[1], query.device, keys_of="key")
    if scale is not None and (not isinstance(scale, int | float) or isinstance(scale, bool)):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")


def refuse_width(width: int) -> tuple[tuple[str, str], ...]:
    """What the choice of the back end must know of a head's width."""
    reason = f"the head width {width} exceeds {MAX_CPU_WIDTH}"
    return tuple((backend, reason) for backend in ("cpu", "cuda", "triton")) if width > MAX_CPU_WIDTH else ()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that torch's autocast gives to an operand of a matrix product; float64 stays as it is."""
    if isinstance(x, Tensor) and x.dtype in FLOATING[:3] and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | int | None = None,
    stream: int = 0,
) -> Tensor:
    """Attend: ``softmax(scale Q K^T) V`` over the keys that each query may see, after dropout on the probabilities.

    Args:
        query: (B,T,H,D) float32, float16, bfloat16 or float64, any strides. The kernels take D up to 128 and accumulate in float32.
        key: (B,S,H,D) of the same dtype.
        value: (B,S,H,D) of the same dtype.
        key_mask: (B,S) bool, True = attend. What stands in masked places is never read: NaN there reaches no value and no gradient, and
            ``key`` and ``value`` get a gradient of exactly 0 there.
        causal: query t sees the keys ``s <= t + S - T``: the last query is aligned with the last key.
        window: with ``causal``, of those the last ``window``, counted by position (masked ones count). None: all.
        scale: default ``1 / sqrt(D)``.
        dropout_p: probability in [0, 1] of dropping a probability; those kept are scaled by 1 / (1 - dropout_p).
        seed: int64 tensor of shape (1,), (B,) or (B,H), an int, or None to draw one; with the noise of a tensor (B,H,T,S), see
            :func:`emc_fast.ops.philox_uniform`. Backward makes the same mask again. Not read when ``dropout_p`` is 0.
        stream: constant of the place of use, in [0, 2**32).

    Returns:
        (B,T,H,D), dense, of query's dtype. A query with nothing to attend gets zeros, and zero gradients.

    Under autocast it is computed in autocast's dtype, like torch's ``scaled_dot_product_attention``. First derivatives come from the
    kernel; where the backward pass is itself differentiated (``create_graph=True``), they come from the definition, to any order.

    Raises:
        TypeError: an argument is of a type or dtype that is not taken, or the three dtypes differ.
        ValueError: shapes or devices do not fit, ``window`` is given without ``causal``, or a number is out of its range.
    """
    if all(isinstance(x, Tensor) for x in (query, key, value)):
        query, key, value = (x.to(autocast_dtype(x)) for x in (query, key, value))
    _check(query, key, value, key_mask, scale)
    check_span(causal, window)
    check_probability("dropout_p", dropout_p)
    check_stream(stream)
    b, t, h, d = query.shape
    noise = as_seed(seed, (b, h, t, key.shape[1]), query.device) if dropout_p > 0 else None

    refuse = refuse_width(d)
    backend = _backend.choose("attention", query.device, query.dtype, refuse)
    if backend == "reference":
        options: dict[str, Any] = {"causal": causal, "window": window, "scale": scale, "dropout_p": dropout_p, "stream": stream}
        return _definition(query, key, value, key_mask=key_mask, seed=noise, **options)
    out: Tensor = _attention(backend, query, key, value, key_mask, causal, window or 0, scale, float(dropout_p), noise, stream)[0]
    return out
