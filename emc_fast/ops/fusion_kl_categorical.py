"""The fusion loss between the fused categorical distributions of the real and the two compensated streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from .fusion_kl import REDUCTIONS, check_distributions, loss_like
from .reference.fusion_kl_categorical import fusion_kl_categorical as _definition

#: Numbers per row that the forward pass keeps for the backward pass; csrc/cpu/fusion_kl_kernels.h has the same.
_STATS = 12

_INPUTS = "Tensor real, Tensor comp_face, Tensor comp_speech"
_library.define(f"fusion_kl_categorical({_INPUTS}, Tensor? mask, int reduction) -> (Tensor, Tensor)")
_library.define(
    f"fusion_kl_categorical_backward(Tensor grad, {_INPUTS}, Tensor stats, Tensor? mask, int reduction) -> (Tensor, Tensor, Tensor)"
)
_backend.register_operator("fusion_kl_categorical")


def _fake(real: Tensor, comp_face: Tensor, comp_speech: Tensor, mask: Tensor | None, reduction: int) -> tuple[Tensor, Tensor]:
    return loss_like(real, reduction), real.new_empty((*real.shape[:-1], _STATS), dtype=torch.float32)


def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[:3])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.reduction = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *inputs, mask, stats = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    if _autograd.wants_graph():
        return (
            *_autograd.backward_of_definition(
                lambda *x: _definition(*x, mask=mask, reduction=REDUCTIONS[ctx.reduction]), inputs, needed, (grad,)
            ),
            None,
            None,
        )
    found = _library.raw(ctx.backend).fusion_kl_categorical_backward(grad, *inputs, stats, mask, ctx.reduction)
    return *(x if need else None for x, need in zip(found, needed, strict=True)), None, None


_library.register_fake("fusion_kl_categorical", _fake)
_library.register_fake("fusion_kl_categorical_backward", _backward_fake)
_fusion_kl_categorical = _autograd.differentiable("fusion_kl_categorical", setup=_setup, backward=_backward)


def fusion_kl_categorical(
    real: Tensor, comp_face: Tensor, comp_speech: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """KL(real || comp_face) + KL(real || comp_speech) + KL(comp_face || comp_speech) of categorical distributions, in one pass.

    Equation 14 of the EMC paper, not symmetrised and with gradients into all three. With ``log p = log_softmax(logits)`` over
    the last dimension, ``KL(p || q) = sum_i p_i (log p_i - log q_i)``.

    A logit of -inf excludes a class: where ``p`` excludes it the class adds 0 (0 log 0 = 0); where ``q`` alone excludes it the
    loss of that row is inf, and its gradients are not defined. A row in which every logit is -inf is no distribution: NaN.

    Args:
        real: logits (..., V), float32, float16, bfloat16 or float64.
        comp_face: logits (..., V) of the fusion whose face was compensated.
        comp_speech: logits (..., V) of the fusion whose speech was compensated.
        mask: bool, broadcastable to the leading dimensions (...): True where a row counts. Rows that do not count may hold
            NaN or Inf; their gradients are exactly 0.
        reduction: ``"mean"`` over the rows that count (0, with zero gradients, when there is none), ``"sum"``, or ``"none"``
            for one value per row, 0 where masked.

    Returns:
        A scalar, or (...) for ``"none"``; float32, or float64 for float64 inputs. Computed in that precision.

    Raises:
        TypeError: an argument that is no tensor, or a dtype that is not taken or not the same everywhere.
        ValueError: shapes or devices that differ, an unknown reduction.

    """
    tensors, mask = check_distributions({"real": real, "comp_face": comp_face, "comp_speech": comp_speech}, mask, reduction)
    backend = _backend.choose("fusion_kl_categorical", tensors[0].device, tensors[0].dtype)
    if backend == "reference":
        return _definition(*tensors, mask=mask, reduction=reduction)
    return _fusion_kl_categorical(backend, *tensors, mask, REDUCTIONS.index(reduction))[0]
