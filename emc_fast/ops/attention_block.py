"""One attention block, LayerNorm(x + Dropout(W_o Attn(W_q x, W_k m, W_v m) + b_o)), as one operator."""

from __future__ import annotations

from torch import Tensor

from .philox import as_seed
from .reference.attention_block import AttentionBlockWeights
from .reference.attention_block import attention_block as _reference

__all__ = ["AttentionBlockWeights", "attention_block"]


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
    """Compute LayerNorm(x + Dropout(W_o Attn(W_q x, W_k m, W_v m) + b_o)) of x (B,T,d) and memory (B,S,d)."""
    return _reference(
        x,
        memory,
        weights,
        num_heads=num_heads,
        key_mask=key_mask,
        causal=causal,
        window=window,
        dropout_p=dropout_p,
        seed=as_seed(seed, x.shape, x.device) if dropout_p > 0 else None,
        stream=stream,
    )
