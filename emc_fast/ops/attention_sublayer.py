"""One attention with what stands around it in a pre-norm transformer, x + Dropout(W_o Attn(W_q n, W_k m, W_v m) + b_o), as one operator.

In float32 on the CPU all of it is one native call and one node of autograd. Elsewhere it is put together of torch's LayerNorm and matrix
products, the attention kernel and the dropout kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from . import _autograd, _backend, _library
from ._checks import check_probability, check_stream
from .attention import attention, check_span, refuse_width
from .attention_block import BLOCK_OPTIONS, BLOCK_WEIGHTS, check_block, dense_weights, may_go_at_once, same_dtype
from .philox import as_seed, dropout
from .reference.attention_block import AttentionBlockWeights
from .reference.attention_sublayer import attention_sublayer as _definition

__all__ = ["attention_sublayer"]

_ARGUMENTS = (
    f"Tensor x, Tensor? memory, {BLOCK_WEIGHTS.replace('Tensor ln_weight', 'Tensor? ln_weight')}, {BLOCK_OPTIONS},"
    " float output_dropout_p, bool residual"
)
_SAVED = ("q", "k", "v", "attended", "statistics", "normalised", "mean", "inverse_deviation")
_SAVED_TENSORS = ", ".join(f"Tensor {name}" for name in _SAVED)
_GRADS = 12  # x, memory and the ten parameters; what is absent has an empty one

_library.define(f"attention_sublayer({_ARGUMENTS}) -> (Tensor out, {_SAVED_TENSORS})")
_library.define(f"attention_sublayer_backward(Tensor grad_out, {_SAVED_TENSORS}, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * _GRADS)})")
_library.define(f"attention_sublayer_inference({_ARGUMENTS}) -> Tensor out")
_backend.register_operator("attention_sublayer", dtypes=(torch.float32,))


def _fake(x: Tensor, memory: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    (b, t, d), s, heads = x.shape, (x if memory is None else memory).shape[1], rest[11]
    q, k, v, attended = (x.new_empty((b, length, d)) for length in (t, s, s, t))
    norm = ((b, t, d), (b, t), (b, t)) if rest[8] is not None else ((0,),) * 3
    return x.new_empty((b, t, d)), q, k, v, attended, x.new_empty((2, b, heads, t)), *(x.new_empty(shape) for shape in norm)


def _fake_backward(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    x, memory, *weights = rest[8:20]
    d, normed = x.shape[2], weights[8] is not None
    shapes = [x.shape, (0,) if memory is None else memory.shape, *[(d, d), (d,)] * 4, *[(d,) if normed else (0,)] * 2]
    return tuple(x.new_empty(shape) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, (ctx.ln_eps, ctx.num_heads, key_mask, *ctx.options, seed, ctx.stream, ctx.dropout_p, ctx.residual) = inputs[:12], inputs[12:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, key_mask, seed, *output[1:])


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 22
    tensors, (key_mask, seed, *saved) = ctx.saved_tensors[:12], ctx.saved_tensors[12:]
    needed = ctx.needs_input_grad[:12]
    causal, window, attention_dropout_p = ctx.options
    if _autograd.wants_graph():

        def definition(x: Tensor, memory: Tensor | None, *weights: Any) -> Tensor:
            return _definition(
                x, memory, AttentionBlockWeights._make((*weights, ctx.ln_eps)), num_heads=ctx.num_heads, key_mask=key_mask, causal=causal,
                window=window or None, attention_dropout_p=attention_dropout_p, dropout_p=ctx.dropout_p, seed=seed, stream=ctx.stream,
                residual=ctx.residual,
            )  # fmt: skip

        grads = _autograd.backward_of_definition(definition, tensors, needed, (grad_out,))
    else:
        options = (ctx.ln_eps, ctx.num_heads, key_mask, causal, window, attention_dropout_p, seed, ctx.stream, ctx.dropout_p, ctx.residual)
        x, memory, *weights = tensors
        memory = None if memory is None else memory.contiguous()
        args = x.contiguous(), memory, *dense_weights(weights), *options
        grads = torch.ops.emc_fast.attention_sublayer_backward(grad_out.contiguous(), *saved, *args)
        grads = tuple(g if need else None for g, need in zip(grads, needed, strict=True))
    return *grads, *([None] * 10)


_library.register_fake("attention_sublayer", _fake)
_library.register_fake("attention_sublayer_backward", _fake_backward)
_library.register_fake("attention_sublayer_inference", lambda x, *_: x.new_empty(x.shape))
_recorded = _autograd.differentiable("attention_sublayer", setup=_setup_context, backward=_backward)
_inference = torch.ops.emc_fast.attention_sublayer_inference.default


def attention_sublayer(
    x: Tensor,
    memory: Tensor | None,
    weights: AttentionBlockWeights,
    *,
    num_heads: int,
    key_mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | int | None = None,
    stream: int = 0,
    residual: bool = True,
) -> Tensor:
    """Compute ``[x +] Dropout(W_o Attn(W_q n, W_k m, W_v m) + b_o)`` with ``n = LayerNorm(x)``, a pre-norm layer's attention, in one call.

    Args:
        x: (B,T,d) float32, float16, bfloat16 or float64: what asks, and the residual.
        memory: (B,S,d) of the same dtype: what keys and values are made of, as it is; None makes them of n (self-attention).
        weights: :class:`AttentionBlockWeights` of the same dtype; any bias may be None. Where ``ln_weight`` is None, n is x.
        num_heads: divides d. The kernels take heads up to 128 wide.
        key_mask: (B,S) bool, True = attend; rows of ``memory`` that are masked may hold NaN and get a gradient of exactly 0.
        causal, window: as in :func:`emc_fast.ops.attention`.
        attention_dropout_p: probability in [0, 1], of the attention's weights.
        dropout_p: probability in [0, 1], of the output.
        seed: int64 tensor of shape (1,) or (B,), an int, or None to draw one. Not read when both probabilities are 0.
        stream: the attention's dropout draws from ``stream``, that of the output from ``stream + 1``; in [0, 2**32 - 1).
        residual: whether x is added.

    Returns:
        (B,T,d), dense, of x's dtype. Where nothing can be attended the update is Dropout(b_o).

    The native call takes float32 on the CPU. Elsewhere, and under autocast, LayerNorm and the projections are torch's and follow its rules.
    Derivatives as for :func:`emc_fast.ops.attention`.

    Raises:
        TypeError: an argument is of a type or dtype that is not taken, or dtypes differ.
        ValueError: shapes or devices do not fit, ``window`` is given without ``causal``, or a number is out of its range.
    """
    if isinstance(weights, AttentionBlockWeights):
        probabilities = attention_dropout_p, dropout_p
        found = _at_once(x, memory, weights, num_heads, key_mask, causal, window, probabilities, seed, stream, residual)
        if found is not None:
            return found
    check_block(x, memory, weights, num_heads, key_mask, sublayer=True)
    check_span(causal, window)
    check_probability("attention_dropout_p", attention_dropout_p)
    check_probability("dropout_p", dropout_p)
    check_stream(stream)
    check_stream(stream + 1)
    lowered = torch.is_autocast_enabled(x.device.type)
    if not lowered:
        same_dtype(x, memory, weights)
    noise = as_seed(seed, x.shape, x.device) if max(dropout_p, attention_dropout_p) > 0 else None

    native = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not lowered
    backend = _backend.choose("attention_sublayer", x.device, x.dtype, refuse_width(x.shape[2] // num_heads)) if native else ""
    if backend == "cpu":
        memory = None if memory is None else memory.contiguous()
        args = (
            x.contiguous(), memory, *dense_weights(weights[:10]), float(weights.ln_eps), num_heads, key_mask, causal, window or 0,
            float(attention_dropout_p), noise, stream, float(dropout_p), residual,
        )  # fmt: skip
        out: Tensor = _recorded(backend, *args)[0]
        return out
    options: dict[str, Any] = {"key_mask": key_mask, "causal": causal, "window": window, "seed": noise, "stream": stream}
    if backend == "reference":
        return _definition(
            x, memory, weights, num_heads=num_heads, residual=residual, attention_dropout_p=attention_dropout_p, dropout_p=dropout_p,
            **options,
        )  # fmt: skip
    asked = x if weights.ln_weight is None else layer_norm(x, x.shape[-1:], weights.ln_weight, weights.ln_bias, weights.ln_eps)
    told = asked if memory is None else memory
    if key_mask is not None:
        told = torch.where(key_mask[:, :, None], told, 0.0)  # 0 * NaN would reach the gradients of the weights
    w = weights
    heads = [linear(y, m, b).unflatten(-1, (num_heads, -1)) for y, m, b in ((asked, *w[0:2]), (told, *w[2:4]), (told, *w[4:6]))]
    update = linear(attention(*heads, dropout_p=attention_dropout_p, **options).flatten(2), w.w_o, w.b_o)
    if dropout_p > 0:
        update = dropout(update, dropout_p, seed=noise, stream=stream + 1)
    return x + update if residual else update


def _at_once(
    x: Tensor,
    memory: Tensor | None,
    weights: AttentionBlockWeights,
    num_heads: int,
    key_mask: Tensor | None,
    causal: bool,
    window: int | None,
    probabilities: tuple[float, float],
    seed: Tensor | int | None,
    stream: int,
    residual: bool,
) -> Tensor | None:
    """The native call before anything else is checked, for the reason that the block has; None where it does not serve."""
    if not may_go_at_once(x, num_heads, causal, window, stream, *probabilities, dtypes=(torch.float32,)) or residual.__class__ is not bool:
        return None
    if _backend.choose("attention_sublayer", x.device, x.dtype) != "cpu":
        return None
    of_attention, of_output = probabilities
    noise = as_seed(seed, x.shape, x.device) if of_attention > 0 or of_output > 0 else None
    args = (
        x, memory, *weights, num_heads, key_mask, causal, window or 0, float(of_attention), noise, stream, float(of_output), residual,
    )  # fmt: skip
    try:
        out: Tensor = _recorded("cpu", *args)[0] if _autograd.is_recorded(x, memory, *weights[:10]) else _inference(*args)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return out
