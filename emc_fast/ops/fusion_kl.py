"""The fusion loss between the fused Gaussians of the real and the two compensated streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from ._checks import check_same, check_tensor
from .reference.fusion_kl import fusion_kl as _definition

Gaussian = tuple[Tensor, Tensor | None]

#: Numbers of the raw operators for the reductions; csrc/torch/fusion_kl.cpp has the same.
REDUCTIONS = ("mean", "sum", "none")

_INPUTS = "Tensor mu_real, Tensor? logvar_real, Tensor mu_face, Tensor? logvar_face, Tensor mu_speech, Tensor? logvar_speech, Tensor? mask"
_library.define(f"fusion_kl({_INPUTS}, int reduction) -> Tensor")
_library.define(f"fusion_kl_backward(Tensor grad, {_INPUTS}, int reduction) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
_backend.register_operator("fusion_kl")


def loss_like(rows: Tensor, reduction: int) -> Tensor:
    """An empty loss for distributions ``rows`` (..., D)."""
    return rows.new_empty(rows.shape[:-1] if REDUCTIONS[reduction] == "none" else (), dtype=torch.float32)


def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    mu_real, logvar_real, mu_face, logvar_face, mu_speech, logvar_speech, _mask, _reduction = arguments
    inputs = (mu_real, mu_face, mu_speech, logvar_real, logvar_face, logvar_speech)
    return tuple(mu_real.new_empty((0,)) if x is None else x.new_empty(x.shape) for x in inputs)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.reduction = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, mask = ctx.saved_tensors
    needed = ctx.needs_input_grad[:6]
    if _autograd.wants_graph():
        return (
            *_autograd.backward_of_definition(
                lambda *x: _definition(*x, mask=mask, reduction=REDUCTIONS[ctx.reduction]), inputs, needed, (grad,)
            ),
            None,
            None,
        )
    # The raw operator puts the means first and then the log-variances.
    found = _library.raw(ctx.backend).fusion_kl_backward(grad, *inputs, mask, ctx.reduction)
    paired = (found[0], found[3], found[1], found[4], found[2], found[5])
    return *(x if need else None for x, need in zip(paired, needed, strict=True)), None, None


_library.register_fake("fusion_kl", lambda mu_real, *rest: loss_like(mu_real, rest[-1]))
_library.register_fake("fusion_kl_backward", _backward_fake)
_fusion_kl = _autograd.differentiable("fusion_kl", setup=_setup, backward=_backward)


def fusion_kl(real: Gaussian, comp_face: Gaussian, comp_speech: Gaussian, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """KL(real || comp_face) + KL(real || comp_speech) + KL(comp_face || comp_speech) of diagonal Gaussians, in one pass.

    Equation 14 of the EMC paper, not symmetrised and with gradients into all three. One term, summed over the last dimension:
    ``KL(p || q) = 1/2 sum_i [e^x - 1 - x + (mu_p - mu_q)^2 / var_q]``, ``x = logvar_p - logvar_q``;
    with unit variance ``1/2 sum_i (mu_p - mu_q)^2``.

    Args:
        real: ``(mu, logvar)``, each (..., D), float32, float16, bfloat16 or float64; or ``(mu, None)`` for unit variance.
        comp_face: likewise, the fusion whose face was compensated.
        comp_speech: likewise, the fusion whose speech was compensated.
        mask: bool, broadcastable to the leading dimensions (...): True where a row counts. Rows that do not count may hold
            NaN or Inf; their gradients are exactly 0.
        reduction: ``"mean"`` over the rows that count (0, with zero gradients, when there is none), ``"sum"``, or ``"none"``
            for one value per row, 0 where masked.

    Returns:
        A scalar, or (...) for ``"none"``; float32, or float64 for float64 inputs. Computed in that precision.

    Raises:
        TypeError: a pair that is no pair of tensors, or a dtype that is not taken or not the same everywhere.
        ValueError: shapes or devices that differ, a logvar in some pairs only, an unknown reduction.

    """
    means: dict[str, Tensor] = {}
    logvars: dict[str, Tensor] = {}
    for name, pair in zip(("real", "comp_face", "comp_speech"), (real, comp_face, comp_speech), strict=True):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = f"{len(pair)} items" if isinstance(pair, tuple | list) else type(pair).__name__
            raise TypeError(f"{name} must be a pair (mu, logvar) or (mu, None), got {got}")
        means[f"{name}[0] (mu)"] = pair[0]
        if pair[1] is not None:
            logvars[f"{name}[1] (logvar)"] = pair[1]
        elif logvars:
            raise ValueError(f"a logvar must be given in all three pairs or, for unit variance, in none: {name}[1] (logvar) is None")
    if len(logvars) not in (0, 3):
        raise ValueError("a logvar must be given in all three pairs or, for unit variance, in none: real[1] (logvar) is None")
    found, mask = check_distributions(means | logvars, mask, reduction)
    arguments = [x for k in range(3) for x in (found[k], found[3 + k] if logvars else None)]
    backend = _backend.choose("fusion_kl", found[0].device, found[0].dtype)
    if backend == "reference":
        return _definition(*arguments, mask=mask, reduction=reduction)  # type: ignore[arg-type]
    return _fusion_kl(backend, *arguments, mask, REDUCTIONS.index(reduction))


def check_distributions(tensors: Mapping[str, Tensor], mask: Tensor | None, reduction: str) -> tuple[list[Tensor], Tensor | None]:
    """Refuse what the fusion losses do not take. ``tensors`` are named as an error names them.

    Returns:
        The tensors, all of one dtype (under autocast mixed ones become float32), and the mask at the full leading shape.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    for name, tensor in tensors.items():
        check_tensor(name, tensor, min_dim=1)
    (first_name, first), *others = tensors.items()
    if any(tensor.dtype != first.dtype for _, tensor in others) and torch.is_autocast_enabled(first.device.type):
        # A loss is of autocast's float32 kind: there, and only there, may a float16 mean meet a float32 log-variance.
        first = first.to(torch.float32)
        others = [(name, tensor.to(torch.float32)) for name, tensor in others]
    for name, tensor in others:
        check_same(name, tensor, first_name, first)
    return [first, *(tensor for _, tensor in others)], None if mask is None else _full_mask(mask, first)


def _full_mask(mask: Tensor, first: Tensor) -> Tensor:
    check_tensor("mask", mask, dtypes=(torch.bool,))
    if mask.device != first.device:
        raise ValueError(f"mask must be on the device of the distributions, {first.device}, got {mask.device}")
    lead = first.shape[:-1]
    if mask.dim() > len(lead) or any(m not in (1, n) for m, n in zip(mask.shape[::-1], lead[::-1], strict=False)):
        raise ValueError(f"mask must broadcast to the leading dimensions {tuple(lead)}, got shape {tuple(mask.shape)}")
    return mask if mask.shape == lead else mask.expand(lead)
