"""Definition of masked multi-head attention in plain PyTorch; the truth of every test of :func:`emc_fast.ops.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["allowed_pairs", "attention"]


def allowed_pairs(t: int, s: int, *, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """(T,S) bool: which key each query may see for its position alone.

    The last query is aligned with the last key: query t stands at key position p = t + S - T, and when causal sees the keys s <= p,
    of those the last ``window``.
    """
    if not causal:
        return torch.ones(t, s, dtype=torch.bool, device=device)
    lag = torch.arange(t, device=device)[:, None] + (s - t) - torch.arange(s, device=device)
    return (lag >= 0) if window is None else (lag >= 0) & (lag < window)


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
    seed: Tensor | None = None,
    stream: int = 0,
) -> Tensor:
    """softmax(scale Q K^T restricted to what each query may see) V, after dropout on the probabilities.

    query (B,T,H,D), key and value (B,S,H,D), key_mask (B,S) bool, True = attend; result (B,T,H,D) in query's dtype, half types computed in
    float32. Masked keys and queries that see nothing are selected away before any product, so that NaN in them reaches neither a value nor
    a gradient.
    """
    b, t, h, d = query.shape
    s = key.shape[1]
    compute = torch.promote_types(query.dtype, torch.float32)
    scale = d**-0.5 if scale is None else scale

    allowed = allowed_pairs(t, s, causal=causal, window=window, device=query.device)[None, None]  # (1,1,T,S)
    if key_mask is not None:
        keep = key_mask[:, :, None, None]
        key = torch.where(keep, key, 0.0)
        value = torch.where(keep, value, 0.0)
        allowed = allowed & key_mask[:, None, None, :]
    sees = allowed.any(dim=-1)  # (1 or B,1,T)
    row = sees.transpose(1, 2)[..., None]  # (1 or B,T,1,1)
    query = torch.where(row, query, 0.0)

    scores = torch.einsum("bthd,bshd->bhts", query.to(compute) * scale, key.to(compute))
    scores = scores.masked_fill(~allowed, float("-inf"))
    # A row that sees nothing would be softmax(-inf, ...) = NaN: give it any finite scores and select its result away below.
    probabilities = scores.masked_fill(~sees[..., None], 0.0).softmax(dim=-1)
    if dropout_p > 0.0:
        from .philox import philox_uniform

        assert seed is not None
        uniform = philox_uniform((b, h, t, s), seed, stream=stream)
        factor = 1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0
        probabilities = torch.where(uniform >= dropout_p, probabilities * factor, 0.0)
    out = torch.einsum("bhts,bshd->bthd", probabilities, value.to(compute))
    return torch.where(row, out, 0.0).to(query.dtype)
