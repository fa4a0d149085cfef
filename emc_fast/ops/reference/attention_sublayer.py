"""Definition of the attention sublayer in plain PyTorch; the truth of every test of :func:`emc_fast.ops.attention_sublayer`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from .attention_block import AttentionBlockWeights, update_of

__all__ = ["attention_sublayer"]


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
    seed: Tensor | None = None,
    stream: int = 0,
    residual: bool = True,
) -> Tensor:
    """[x +] Dropout(W_o Attn(W_q n, W_k m, W_v m) + b_o) with n = LayerNorm(x), or x where ``ln_weight`` is None; without a memory m = n.

    x (B,T,d), memory (B,S,d), key_mask (B,S) bool; result (B,T,d) like x. Attention dropout draws from ``stream``, the output's from
    ``stream + 1``. Half types are computed in float32.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    w = AttentionBlockWeights._make(p.to(compute) if isinstance(p, Tensor) else p for p in weights)
    rows = x.to(compute)
    asked = rows if w.ln_weight is None else layer_norm(rows, x.shape[-1:], w.ln_weight, w.ln_bias, w.ln_eps)
    told = asked if memory is None else memory.to(compute)
    update = update_of(
        asked,
        told,
        w,
        num_heads=num_heads,
        key_mask=key_mask,
        causal=causal,
        window=window,
        attention_dropout_p=attention_dropout_p,
        dropout_p=dropout_p,
        seed=seed,
        stream=stream,
    )
    return (rows + update if residual else update).to(x.dtype)
