"""One attention block, LayerNorm(x + Dropout(W_o Attn(W_q x, W_k m, W_v m) + b_o)), as one operator and one node of autograd.

In float32 on the CPU all of it is one native call, which at inference takes half types too (:func:`is_lifted`). Elsewhere it is put
together here: the projections are torch's matrix products, attention is the fused kernel, and dropout, residual and LayerNorm are one more
kernel, each with its backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from ._checks import check_probability, check_same, check_stream, check_tensor
from .attention import autocast_dtype, check_key_mask, check_span, refuse_width
from .philox import as_seed
from .reference.attention_block import AttentionBlockWeights
from .reference.attention_block import attention_block as _definition

__all__ = ["AttentionBlockWeights", "attention_block"]

BLOCK_WEIGHTS = (
    "Tensor w_q, Tensor? b_q, Tensor w_k, Tensor? b_k, Tensor w_v, Tensor? b_v, Tensor w_o, Tensor? b_o, Tensor ln_weight, Tensor? ln_bias"
)
BLOCK_OPTIONS = "float ln_eps, int num_heads, Tensor? key_mask, bool causal, int window, float dropout_p, Tensor? seed, int stream"
# Beside the output: what backward reads. Made again there are only the probabilities, the dropout masks and the normalised rows.
# Keeping the projections instead of multiplying again costs 4 N d numbers and saves a third of backward's matrix products.
_SAVED = ("q", "k", "v", "attended", "statistics", "update", "mean", "inverse_deviation")
_GRADS = ("x", "memory", "w_q", "b_q", "w_k", "b_k", "w_v", "b_v", "w_o", "b_o", "ln_weight", "ln_bias")

_SAVED_TENSORS = ", ".join(f"Tensor {name}" for name in _SAVED)
_library.define(f"attention_block(Tensor x, Tensor memory, {BLOCK_WEIGHTS}, {BLOCK_OPTIONS}) -> (Tensor out, {_SAVED_TENSORS})")
_library.define(
    f"attention_block_backward(Tensor grad_out, {_SAVED_TENSORS}, Tensor x, Tensor memory, {BLOCK_WEIGHTS}, {BLOCK_OPTIONS})"
    f" -> ({', '.join(f'Tensor grad_{name}' for name in _GRADS)})"
)
# The whole block in float32 on the CPU: forward and backward with the same arguments, and forward without what backward reads.
_library.define(f"attention_block_fused(Tensor x, Tensor memory, {BLOCK_WEIGHTS}, {BLOCK_OPTIONS}) -> (Tensor out, {_SAVED_TENSORS})")
_library.define(
    f"attention_block_fused_backward(Tensor grad_out, {_SAVED_TENSORS}, Tensor x, Tensor memory, {BLOCK_WEIGHTS}, {BLOCK_OPTIONS})"
    f" -> ({', '.join(f'Tensor grad_{name}' for name in _GRADS)})"
)
_library.define(f"attention_block_inference(Tensor x, Tensor memory, {BLOCK_WEIGHTS}, {BLOCK_OPTIONS}) -> Tensor out")
_library.define(
    "attention_block_epilogue(Tensor x, Tensor update, Tensor weight, Tensor? bias, float eps, float dropout_p, Tensor? seed, int stream)"
    " -> (Tensor out, Tensor mean, Tensor inverse_deviation)"
)
_library.define(
    "attention_block_epilogue_backward(Tensor grad_out, Tensor x, Tensor update, Tensor weight, Tensor mean, Tensor inverse_deviation,"
    " float dropout_p, Tensor? seed, int stream) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_backend.register_operator("attention_block", raw="attention_block_epilogue")


def _forward(backend: str, x: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The kernel of ``attention_block``: projections in the dtype of their weights, residual and LayerNorm in x's."""
    w = AttentionBlockWeights(*rest[:11])
    num_heads, key_mask, causal, window, dropout_p, seed, stream = rest[11:]
    rows, context = _operands(x, memory, key_mask, w.w_q.dtype)

    def project(y: Tensor, weight: Tensor, bias: Tensor | None, length: int) -> Tensor:
        product = torch.mm(y, weight.t()) if bias is None else torch.addmm(bias, y, weight.t())
        return product.view(x.shape[0], length, x.shape[2])

    t, s = x.shape[1], memory.shape[1]
    q, k, v = project(rows, w.w_q, w.b_q, t), project(context, w.w_k, w.b_k, s), project(context, w.w_v, w.b_v, s)
    heads = [y.unflatten(-1, (num_heads, -1)) for y in (q, k, v)]
    attended, statistics = _library.raw(backend).attention(*heads, key_mask, causal, window, None, dropout_p, seed, stream)
    attended = attended.view(q.shape)
    update = project(attended.flatten(0, 1), w.w_o, w.b_o, t)
    out, mean, inverse_deviation = _library.raw(backend).attention_block_epilogue(
        x.contiguous(), update, _dense(w.ln_weight), _dense(w.ln_bias), w.ln_eps, dropout_p, seed, stream + 1
    )
    return out, q, k, v, attended, statistics, update, mean, inverse_deviation


def _backward_of(backend: str, grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The kernel of ``attention_block_backward``; an absent bias has an empty gradient."""
    (q, k, v, attended, statistics, update, mean, inverse_deviation), (x, memory) = rest[:8], rest[8:10]
    w = AttentionBlockWeights(*rest[10:21])
    num_heads, key_mask, causal, window, dropout_p, seed, stream = rest[21:]
    grad_x, grad_update, grad_ln_weight, grad_ln_bias, grad_b_o = _library.raw(backend).attention_block_epilogue_backward(
        grad_out.contiguous(), x.contiguous(), update, _dense(w.ln_weight), mean, inverse_deviation, dropout_p, seed, stream + 1
    )
    grad_update = grad_update.flatten(0, 1)
    grad_attended = torch.mm(grad_update, w.w_o).view(q.shape)
    heads = [y.unflatten(-1, (num_heads, -1)) for y in (grad_attended, q, k, v)]
    grads = _library.raw(backend).attention_backward(*heads, statistics, key_mask, causal, window, None, dropout_p, seed, stream)
    grad_q, grad_k, grad_v = (g.flatten(2).flatten(0, 1) for g in grads)

    rows, context = _operands(x, memory, key_mask, w.w_q.dtype)
    residual = grad_x.flatten(0, 1)
    one_dtype = x.dtype == w.w_q.dtype
    grad_x = torch.addmm(residual, grad_q, w.w_q) if one_dtype else residual + torch.mm(grad_q, w.w_q)
    grad_memory = torch.addmm(torch.mm(grad_k, w.w_k), grad_v, w.w_v)
    results = [grad_x.view(x.shape).to(x.dtype), grad_memory.view(memory.shape).to(memory.dtype)]
    for grad, inputs, bias in ((grad_q, rows, w.b_q), (grad_k, context, w.b_k), (grad_v, context, w.b_v)):
        results += [torch.mm(grad.t(), inputs), _absent(grad) if bias is None else grad.sum(0)]
    results += [torch.mm(grad_update.t(), attended.flatten(0, 1)), _absent(grad_update) if w.b_o is None else grad_b_o]
    return *results, grad_ln_weight, _absent(grad_ln_weight) if w.ln_bias is None else grad_ln_bias


def _forward_cpu(x: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    if not _is_fused(x, memory, rest[0]):
        return _forward("cpu", x, memory, *rest)
    fused: tuple[Tensor, ...] = torch.ops.emc_fast.attention_block_fused(x.contiguous(), memory.contiguous(), *dense_weights(rest))
    return fused


def _backward_cpu(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    saved, (x, memory), weights = rest[:8], rest[8:10], rest[10:]
    if not _is_fused(x, memory, weights[0]):
        return _backward_of("cpu", grad_out, *rest)
    rows = grad_out.contiguous(), *saved, x.contiguous(), memory.contiguous()
    grads = torch.ops.emc_fast.attention_block_fused_backward(*rows, *dense_weights(weights))
    return tuple(_absent(g) if p is None else g for g, p in zip(grads, (x, memory, *weights[:10]), strict=True))


#: What the native call serves at inference: float32, and half types by way of it.
HALF = (torch.float32, torch.bfloat16, torch.float16)
#: Frames up to which a block in bfloat16 is computed in float32 on the CPU: its eighteen calls would take longer than their work.
LIFTED_FRAMES = 128

#: Off while tests put other kernels in the place of the CPU's parts of the block, which the whole one would go past.
whole = True


def _is_fused(x: Tensor, memory: Tensor, weight: Tensor) -> bool:
    """Whether the native call takes it: all in float32 (the caller has seen to one dtype, or to autocast's for the products)."""
    return whole and x.dtype == memory.dtype == weight.dtype == torch.float32


def dense_weights(rest: Sequence[Any]) -> Iterator[Any]:
    """Weights and options with the vectors dense; matrices may have any strides."""
    return (w.contiguous() if isinstance(w, Tensor) and w.dim() == 1 and i < 10 else w for i, w in enumerate(rest))


def _operands(x: Tensor, memory: Tensor, key_mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x and memory as matrices of ``dtype``. Masked rows of memory become 0: 0 * NaN would reach the gradients of the weights."""
    context = memory if key_mask is None else torch.where(key_mask[:, :, None], memory, 0.0)
    return x.reshape(-1, x.shape[2]).to(dtype), context.reshape(-1, x.shape[2]).to(dtype)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _absent(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _fake(x: Tensor, memory: Tensor, w_q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    num_heads = rest[10]
    (b, t, d), s = x.shape, memory.shape[1]

    def statistic(*shape: Any) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    q, k, v, attended, update = (w_q.new_empty((b, length, d)) for length in (t, s, s, t, t))
    return x.new_empty((b, t, d)), q, k, v, attended, statistic(2, b, num_heads, t), update, statistic(b, t), statistic(b, t)


def _fake_backward(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    present = rest[8:20]
    return tuple(_absent(grad_out) if p is None else p.new_empty(p.shape) for p in present)


def _fake_epilogue(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *(x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))


def _fake_epilogue_backward(grad_out: Tensor, x: Tensor, update: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), update.new_empty(update.shape), *(w.new_empty(weight.shape) for w in (weight, weight, update))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, (ctx.ln_eps, ctx.num_heads, key_mask, *ctx.options, seed, ctx.stream) = inputs[:12], inputs[12:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for what is saved would be as large as the block itself
    ctx.save_for_backward(*tensors, key_mask, seed, *output[1:])


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 20
    tensors, (key_mask, seed, *saved) = ctx.saved_tensors[:12], ctx.saved_tensors[12:]
    needed = ctx.needs_input_grad[:12]
    causal, window, dropout_p = ctx.options
    if _autograd.wants_graph():

        def definition(x: Tensor, memory: Tensor, *weights: Any) -> Tensor:
            options = {"causal": causal, "window": window or None, "dropout_p": dropout_p, "seed": seed, "stream": ctx.stream}
            bundle = AttentionBlockWeights._make((*weights, ctx.ln_eps))
            return _definition(x, memory, bundle, num_heads=ctx.num_heads, key_mask=key_mask, **options)

        grads = _autograd.backward_of_definition(definition, tensors, needed, (grad_out,))
    else:
        options = (ctx.ln_eps, ctx.num_heads, key_mask, causal, window, dropout_p, seed, ctx.stream)
        backward = _backward_cpu if ctx.backend == "fused" else _library.raw(ctx.backend).attention_block_backward
        grads = backward(grad_out, *saved, *tensors, *options)
        grads = tuple(g if need else None for g, need in zip(grads, needed, strict=True))
    return *grads, *([None] * 8)


_library.implement("attention_block", "CPU", _forward_cpu)
_library.implement("attention_block_backward", "CPU", _backward_cpu)
for _key, _backend_name in (("CUDA", "cuda"), ("TRITON", "triton")):
    _library.implement("attention_block", _key, partial(_forward, _backend_name))
    _library.implement("attention_block_backward", _key, partial(_backward_of, _backend_name))
_library.register_fake("attention_block", _fake)
_library.register_fake("attention_block_backward", _fake_backward)
_library.register_fake("attention_block_epilogue", _fake_epilogue)
_library.register_fake("attention_block_epilogue_backward", _fake_epilogue_backward)
_attention_block = _autograd.differentiable("attention_block", setup=_setup_context, backward=_backward)


def check_block(
    x: Tensor, memory: Tensor | None, weights: AttentionBlockWeights, num_heads: int, key_mask: Tensor | None, *, sublayer: bool = False
) -> None:
    """Refuse by name what does not fit; a sublayer may be without a memory and without a LayerNorm."""
    if not isinstance(weights, AttentionBlockWeights):
        raise TypeError(f"weights must be an AttentionBlockWeights, got {type(weights).__name__}")
    alone = sublayer and memory is None
    for name, y in (("x", x), ("memory", x if alone else memory)):
        check_tensor(name, y)
        assert isinstance(y, Tensor)
        if y.dim() != 3:
            raise ValueError(f"{name} must have the 3 dimensions (B,{'T' if name == 'x' else 'S'},d), got shape {tuple(y.shape)}")
    told = x if alone else memory
    assert told is not None
    b, _, d = x.shape
    if (told.shape[0], told.shape[2]) != (b, d):
        raise ValueError(f"memory must have shape (B,S,d) with B and d of x, {(b, 'S', d)}, got {tuple(told.shape)}")
    if told.device != x.device:
        raise ValueError(f"memory must be on {x.device} with x, got {told.device}")
    if not isinstance(num_heads, int) or isinstance(num_heads, bool):
        raise TypeError(f"num_heads must be an int, got {type(num_heads).__name__}")
    if num_heads < 1 or d < 1 or d % num_heads:
        raise ValueError(f"num_heads must be at least 1 and divide the width d = {d} of x, got {num_heads}")
    check_key_mask(key_mask, b, told.shape[1], x.device, keys_of="x" if alone else "memory")
    absent = ("b_q", "b_k", "b_v", "b_o", "ln_bias", *(["ln_weight"] if sublayer else []))
    for name, w in zip(AttentionBlockWeights._fields[:-1], weights[:-1], strict=True):
        if w is None and name in absent:
            continue
        check_tensor(f"weights.{name}", w)
        assert isinstance(w, Tensor)
        shape = (d, d) if name.startswith("w_") else (d,)
        if tuple(w.shape) != shape:
            raise ValueError(f"weights.{name} must have shape {shape} for x of width {d}, got {tuple(w.shape)}")
        check_same(f"weights.{name}", w, "x", x, shape=False, dtype=False)
    if weights.ln_weight is None and weights.ln_bias is not None:
        raise ValueError("weights.ln_bias is given without weights.ln_weight: a LayerNorm has a weight, and without one there is none")
    if not isinstance(weights.ln_eps, int | float) or isinstance(weights.ln_eps, bool):
        raise TypeError(f"weights.ln_eps must be a number, got {type(weights.ln_eps).__name__}")


def attention_block(
    x: Tensor,
    memory: Tensor,
    weights: AttentionBlockWeights,
    *,
    num_heads: int,
    key_mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | int | None = None,
    stream: int = 0,
) -> Tensor:
    """Compute ``LayerNorm(x + Dropout(W_o Attn(W_q x, W_k m, W_v m) + b_o))``, a post-norm attention block, in one call.

    Args:
        x: (B,T,d) float32, float16, bfloat16 or float64: the queries and the residual.
        memory: (B,S,d) of the same dtype: keys and values. May be ``x`` itself (self-attention).
        weights: :class:`AttentionBlockWeights` of the same dtype; any bias may be None.
        num_heads: divides d. The kernels take heads up to 128 wide.
        key_mask: (B,S) bool, True = attend; rows of ``memory`` that are masked may hold NaN and get a gradient of exactly 0.
        causal, window: as in :func:`emc_fast.ops.attention`.
        dropout_p: probability in [0, 1], of both dropouts.
        seed: int64 tensor of shape (1,) or (B,), an int, or None to draw one. Not read when ``dropout_p`` is 0.
        stream: the attention's dropout draws from ``stream``, that of the output from ``stream + 1``; in [0, 2**32 - 1).

    Returns:
        (B,T,d), dense, of x's dtype. Where nothing can be attended the block is LayerNorm(x + Dropout(b_o)).

    Under autocast the projections and the attention are computed in autocast's dtype, residual and LayerNorm in x's. Derivatives as for
    :func:`emc_fast.ops.attention`.

    Raises:
        TypeError: an argument is of a type or dtype that is not taken, or dtypes differ.
        ValueError: shapes or devices do not fit, ``window`` is given without ``causal``, or a number is out of its range.
    """
    if isinstance(weights, AttentionBlockWeights):
        found = _at_once(x, memory, weights, num_heads, key_mask, causal, window, dropout_p, seed, stream)
        if found is not None:
            return found
    check_block(x, memory, weights, num_heads, key_mask)
    check_span(causal, window)
    check_probability("dropout_p", dropout_p)
    check_stream(stream)
    check_stream(stream + 1)
    memory, weights = _one_dtype(x, memory, weights)
    noise = as_seed(seed, x.shape, x.device) if dropout_p > 0 else None

    width = x.shape[2] // num_heads
    refuse = refuse_width(width)
    backend = _backend.choose("attention_block", x.device, x.dtype, refuse)
    if dropout_p == 0 and is_few(backend, num_heads, x, memory, *weights[:-1]):
        return _inference(x, memory, *weights, num_heads, key_mask, causal, window or 0, 0.0, None, stream)
    if backend == "reference":
        options: dict[str, Any] = {"causal": causal, "window": window, "dropout_p": dropout_p, "stream": stream}
        return _definition(x, memory, weights, num_heads=num_heads, key_mask=key_mask, seed=noise, **options)
    operator = partial(_attention_block, backend, x, memory, *weights[:-1], float(weights.ln_eps), num_heads)
    out: Tensor = operator(key_mask, causal, window or 0, float(dropout_p), noise, stream)[0]
    return out


def _at_once(
    x: Tensor,
    memory: Tensor,
    weights: AttentionBlockWeights,
    num_heads: int,
    key_mask: Tensor | None,
    causal: bool,
    window: int | None,
    dropout_p: float,
    seed: Tensor | int | None,
    stream: int,
) -> Tensor | None:
    """The whole block by one native call in float32 on the CPU; None where that does not serve.

    A few frames take less time than to check their arguments here. So the call is made at once: it checks for itself, and whatever it
    refuses goes the long way, where it is served otherwise or refused by name.
    """
    if not may_go_at_once(x, num_heads, causal, window, stream, dropout_p):
        return None
    if _backend.choose("attention_block", x.device, x.dtype) != "cpu":
        return None
    noise = as_seed(seed, x.shape, x.device) if dropout_p > 0 else None
    try:
        recorded, dtype = _autograd.is_recorded(x, memory, *weights[:10]), x.dtype
        if dtype != torch.float32:
            if recorded or not is_lifted(x, memory, *weights[:10]):
                return None
            x, memory, weights = x.float(), memory.float(), lifted(weights)
        args = x, memory, *weights, num_heads, key_mask, causal, window or 0, float(dropout_p), noise, stream
        out: Tensor = _fused(*args)[0] if recorded else _inference(*args)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return out if dtype == torch.float32 else out.to(dtype)


def is_lifted(x: Tensor, memory: Tensor, *weights: Tensor | None) -> bool:
    """Whether blocks of a half type are computed by the float32 call: all in float16, in which products are slow on a CPU, and few frames.

    By frames and not by rows: a clip must not get other bits because more clips stand beside it.
    """
    few = max(x.shape[1], memory.shape[1]) <= LIFTED_FRAMES
    return (x.dtype == torch.float16 or few) and all(w is None or w.dtype == x.dtype for w in (memory, *weights))


def lifted(weights: AttentionBlockWeights) -> AttentionBlockWeights:
    """The weights in float32."""
    return AttentionBlockWeights._make(w.float() if isinstance(w, Tensor) else w for w in weights)


def may_go_at_once(
    x: Tensor, num_heads: int, causal: bool, window: int | None, stream: int, *probabilities: float, dtypes: tuple[torch.dtype, ...] = HALF
) -> bool:
    """Whether a call is of the kind whose other arguments the native operators check for themselves: plain, on the CPU, of such dtypes."""
    plain = whole and isinstance(x, Tensor) and x.is_cpu and x.dtype in dtypes and x.dim() == 3 and causal.__class__ is bool
    plain = plain and (window is None or (causal and window.__class__ is int and window > 0))
    plain = plain and num_heads.__class__ is int and stream.__class__ is int and 0 <= stream < 2**32 - 1
    return plain and all(isinstance(p, float | int) and 0.0 <= p <= 1.0 for p in probabilities) and _autograd.is_plain()


def has_few(backend: str) -> bool:
    """Whether a back end has the CUDA kernels of a few frames."""
    return backend == "cuda" or (backend == "cpu" and not whole)


def is_few(backend: str, num_heads: int, x: Tensor, memory: Tensor, *weights: Tensor | None) -> bool:
    """Whether a block, or several on x and memory, is what the CUDA kernels of a few frames take: inference, short, narrow heads, dense.

    That these are faster up to so many rows is a guess: no GPU has run them.
    """
    if not has_few(backend) or torch.compiler.is_compiling() or not _autograd.is_plain():
        return False
    tensors = [t for t in (x, memory, *weights) if t is not None]
    most = FEW_FLOATS if x.dtype == torch.float32 else FEW_HALVES
    lengths = x.shape[1], memory.shape[1]
    few = min(lengths) > 0 and max(lengths) <= most and 0 < x.shape[0] * max(lengths) <= FEW_ROWS
    if not (few and x.shape[2] <= FEW_HEAD_WIDTH * num_heads) or _autograd.is_recorded(*tensors):
        return False
    return all(t.dtype == x.dtype and t.is_contiguous() for t in tensors)


#: As in csrc/cuda/emotion_attention_arguments.h: frames in float32 and in the half types, width of a head; and rows of a batch.
FEW_FLOATS, FEW_HALVES, FEW_HEAD_WIDTH, FEW_ROWS = 32, 64, 32, 512

_inference = torch.ops.emc_fast.attention_block_inference.default
_fused = _autograd.recorded(torch.ops.emc_fast.attention_block_fused.default, "fused", setup=_setup_context, backward=_backward)


def _one_dtype(x: Tensor, memory: Tensor, weights: AttentionBlockWeights) -> tuple[Tensor, AttentionBlockWeights]:
    """One dtype everywhere, or an error; under autocast the operands of the products in its dtype, as torch does it for a Linear."""
    dtype = autocast_dtype(x)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        lowered: list[Any] = [w if w is None else w.to(dtype) for w in weights[:8]]
        return memory.to(dtype), AttentionBlockWeights._make((*lowered, *weights[8:]))
    same_dtype(x, memory, weights)
    return memory, weights


def same_dtype(x: Tensor, memory: Tensor | None, weights: AttentionBlockWeights) -> None:
    """Refuse operands that are not of x's dtype."""
    named = zip(("memory", *(f"weights.{name}" for name in AttentionBlockWeights._fields[:-1])), (memory, *weights[:-1]), strict=True)
    for name, y in named:
        if y is not None:
            check_same(name, y, "x", x, shape=False)
