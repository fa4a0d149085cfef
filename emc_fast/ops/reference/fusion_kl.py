"""Definition of the fusion loss for Gaussians: plain PyTorch, any dtype, differentiable; the truth of the kernels' tests."""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a loss is computed and returned in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def select_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (..., D) in its working dtype, with the rows where ``mask`` (...) is False replaced by zeros.

    A row is chosen and not multiplied by zero, so that NaN or Inf in a masked row reaches neither a value nor a gradient.
    """
    x = x.to(working_dtype(x.dtype))
    return x if mask is None else torch.where(mask.unsqueeze(-1), x, torch.zeros((), dtype=x.dtype, device=x.device))


def reduce_rows(rows: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """The ``"none"``, ``"sum"`` or ``"mean"`` of one loss per row; a mean counts the valid rows alone, and over no row it is 0."""
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if mask is None:
        return rows.sum() / max(rows.numel(), 1)
    return rows.sum() / mask.expand(rows.shape).sum().clamp(min=1)


def _gaussian_kl(mu_p: Tensor, logvar_p: Tensor | None, mu_q: Tensor, logvar_q: Tensor | None) -> Tensor:
    """KL(p || q) per row: 1/2 sum_i [e^x - 1 - x + (mu_p - mu_q)^2 e^-logvar_q], x = logvar_p - logvar_q."""
    difference = mu_p - mu_q
    if logvar_p is None or logvar_q is None:
        return 0.5 * difference.square().sum(-1)
    x = logvar_p - logvar_q
    # The quotient is squared, not the difference alone: with a tiny variance, 0 * inf would make NaN of equal means.
    scaled = difference * torch.exp(-0.5 * logvar_q)
    return 0.5 * (torch.expm1(x) - x + scaled.square()).sum(-1)


def fusion_kl(
    mu_real: Tensor,
    logvar_real: Tensor | None,
    mu_face: Tensor,
    logvar_face: Tensor | None,
    mu_speech: Tensor,
    logvar_speech: Tensor | None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """KL(real || comp_face) + KL(real || comp_speech) + KL(comp_face || comp_speech) of diagonal Gaussians.

    Equation 14 of the paper; see :func:`emc_fast.ops.fusion_kl` for the arguments, which are taken as checked here.
    """
    real = (select_rows(mu_real, mask), None if logvar_real is None else select_rows(logvar_real, mask))
    face = (select_rows(mu_face, mask), None if logvar_face is None else select_rows(logvar_face, mask))
    speech = (select_rows(mu_speech, mask), None if logvar_speech is None else select_rows(logvar_speech, mask))
    rows = _gaussian_kl(*real, *face) + _gaussian_kl(*real, *speech) + _gaussian_kl(*face, *speech)
    return reduce_rows(rows, mask, reduction)
