"""The fusion loss between the fused Gaussians of the real and the two compensated streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .reference.fusion_kl import fusion_kl as _reference

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_REDUCTIONS = ("mean", "sum", "none")
_PAIRS = ("real", "comp_face", "comp_speech")

Gaussian = tuple[Tensor, Tensor | None]


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
    names, tensors = [], []
    for name, pair in zip(_PAIRS, (real, comp_face, comp_speech), strict=True):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"fusion_kl: {name} must be a pair (mu, logvar) or (mu, None), got {_describe(pair)}")
        names += [f"{name}[0] (mu)", f"{name}[1] (logvar)"]
        tensors += list(pair)
    given = [name for name, tensor in zip(names[1::2], tensors[1::2], strict=True) if tensor is not None]
    if given and len(given) < 3:
        missing = next(name for name in names[1::2] if name not in given)
        raise ValueError(f"fusion_kl: give a logvar in all three pairs or in none (unit variance); {missing} is None but {given[0]} is not")
    if not given:
        names, tensors = names[::2], tensors[::2]
    tensors = check_inputs("fusion_kl", names, tensors, mask, reduction)
    arguments = tensors if given else [x for mu in tensors for x in (mu, None)]
    return _reference(*arguments, mask, reduction)


def check_inputs(op: str, names: Sequence[str], tensors: Sequence[Tensor], mask: Tensor | None, reduction: str) -> list[Tensor]:
    """Refuse what the fusion losses do not take; return the tensors, of one dtype (under autocast mixed ones become float32)."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {_describe(tensor)}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")
    first = tensors[0]
    if first.ndim == 0:
        raise ValueError(f"{op}: {names[0]} must have at least one dimension (..., D), got a scalar")
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != first.shape:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, but {names[0]} has {tuple(first.shape)}; all must be the same")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but {names[0]} on {first.device}")
    if any(tensor.dtype != first.dtype for tensor in tensors):
        # A loss is of torch's float32 kind under autocast: there alone may a float16 mean meet a float32 variance.
        if not torch.is_autocast_enabled(first.device.type):
            odd = next(i for i, tensor in enumerate(tensors) if tensor.dtype != first.dtype)
            raise TypeError(f"{op}: {names[odd]} is {tensors[odd].dtype}, but {names[0]} is {first.dtype}; all must be the same")
        tensors = [tensor.to(torch.float32) for tensor in tensors]
    if mask is not None:
        _check_mask(op, mask, first)
    return list(tensors)


def _check_mask(op: str, mask: Tensor, first: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: mask must be a bool tensor or None, got {_describe(mask)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{op}: mask must be bool (True where a row counts), got {mask.dtype}")
    if mask.device != first.device:
        raise ValueError(f"{op}: mask is on {mask.device}, but the distributions on {first.device}")
    lead = first.shape[:-1]
    fits = mask.ndim <= len(lead) and all(m in (1, n) for m, n in zip(reversed(mask.shape), reversed(lead), strict=False))
    if not fits:
        raise ValueError(f"{op}: mask has shape {tuple(mask.shape)}, which does not broadcast to the leading dimensions {tuple(lead)}")


def _describe(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}"
