"""Definition of the attention block in plain PyTorch; the truth of every test of :func:`emc_fast.ops.attention_block`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from .attention import attention

__all__ = ["AttentionBlockWeights", "attention_block"]


class AttentionBlockWeights(NamedTuple):
    """Parameters of one attention block of width d; matrices are (d,d) as in ``nn.Linear``, vectors (d,), any bias may be None.

    Without ``ln_weight`` there is no LayerNorm, which only a sublayer can do without.
    """

    w_q: Tensor
    b_q: Tensor | None
    w_k: Tensor
    b_k: Tensor | None
    w_v: Tensor
    b_v: Tensor | None
    w_o: Tensor
    b_o: Tensor | None
    ln_weight: Tensor | None
    ln_bias: Tensor | None
    ln_eps: float = 1e-5


def update_of(
    asked: Tensor,
    told: Tensor,
    w: AttentionBlockWeights,
    *,
    num_heads: int,
    key_mask: Tensor | None,
    causal: bool,
    window: int | None,
    attention_dropout_p: float,
    dropout_p: float,
    seed: Tensor | None,
    stream: int,
) -> Tensor:
    """Dropout(W_o Attn(W_q a, W_k m, W_v m) + b_o) for a (B,T,d) and m (B,S,d), all in one dtype."""
    if key_mask is not None:
        told = torch.where(key_mask[:, :, None], told, 0.0)

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (num_heads, -1))

    attended = attention(
        heads(linear(asked, w.w_q, w.b_q)),
        heads(linear(told, w.w_k, w.b_k)),
        heads(linear(told, w.w_v, w.b_v)),
        key_mask=key_mask,
        causal=causal,
        window=window,
        dropout_p=attention_dropout_p,
        seed=seed,
        stream=stream,
    )
    update = linear(attended.flatten(2), w.w_o, w.b_o)
    if dropout_p > 0.0:
        from .philox import philox_uniform

        assert seed is not None
        uniform = philox_uniform(tuple(update.shape), seed, stream=stream + 1)
        factor = 1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0
        update = torch.where(uniform >= dropout_p, update * factor, 0.0)
    return update


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
    seed: Tensor | None = None,
    stream: int = 0,
) -> Tensor:
    """LayerNorm(x + Dropout(W_o Attn(W_q x, W_k m, W_v m) + b_o)): x (B,T,d), memory (B,S,d), key_mask (B,S) bool; result (B,T,d) like x.

    Attention dropout draws from ``stream``, the output dropout from ``stream + 1``. Half types are computed in float32.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    w = AttentionBlockWeights._make(p.to(compute) if isinstance(p, Tensor) else p for p in weights)
    rows, memory = x.to(compute), memory.to(compute)
    update = update_of(
        rows,
        memory,
        w,
        num_heads=num_heads,
        key_mask=key_mask,
        causal=causal,
        window=window,
        attention_dropout_p=dropout_p,
        dropout_p=dropout_p,
        seed=seed,
        stream=stream,
    )
    assert w.ln_weight is not None
    return layer_norm(rows + update, x.shape[-1:], w.ln_weight, w.ln_bias, w.ln_eps).to(x.dtype)
