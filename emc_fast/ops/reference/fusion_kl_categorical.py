"""Definition of the fusion loss for categorical distributions: plain PyTorch, any dtype, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from .fusion_kl import reduce_rows, select_rows


def _categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per row, sum_i p_i (log p_i - log q_i); a class that p excludes (log p = -inf) adds nothing, as 0 log 0 = 0."""
    ratio = torch.where(log_p == -torch.inf, torch.zeros((), dtype=log_p.dtype, device=log_p.device), log_p - log_q)
    return (log_p.exp() * ratio).sum(-1)


def fusion_kl_categorical(
    real: Tensor, comp_face: Tensor, comp_speech: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """KL(real || comp_face) + KL(real || comp_speech) + KL(comp_face || comp_speech) of logits (..., V).

    Equation 14 of the paper; see :func:`emc_fast.ops.fusion_kl_categorical` for the arguments, which are taken as checked here.
    """
    log_real, log_face, log_speech = (torch.log_softmax(select_rows(logits, mask), dim=-1) for logits in (real, comp_face, comp_speech))
    rows = _categorical_kl(log_real, log_face) + _categorical_kl(log_real, log_speech) + _categorical_kl(log_face, log_speech)
    return reduce_rows(rows, mask, reduction)
