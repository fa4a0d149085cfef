"""What ours is raced against: the operators as one writes them in plain PyTorch, and a whole model put on them.

A model's definition is no fair rival in training: it makes the specified noise in float64. The rivals here draw from torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emc_fast import ops
from emc_fast.ops.reference.attention import allowed_pairs
from emc_fast.ops.reference.emotion_attention import emotion_attention as emotion_definition
from emc_fast.ops.reference.fusion_kl import fusion_kl as fusion_definition
from emc_fast.ops.reference.fusion_kl_categorical import fusion_kl_categorical as categorical_definition

Attention = Callable[..., Tensor]


def _allowed(query: Tensor, key: Tensor, key_mask: Tensor | None, causal: bool, window: int | None) -> Tensor | None:
    """What may be seen, broadcastable to (B,H,T,S); None = all."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        pairs = allowed_pairs(query.shape[1], key.shape[1], causal=True, window=window, device=query.device)
        mask = pairs if mask is None else mask & pairs
    return mask


def eager_attention(query, key, value, *, key_mask=None, causal=False, window=None, scale=None, dropout_p=0.0, **_: Any) -> Tensor:
    """Scores, softmax, dropout, product; (B,T,H,D)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    scores = torch.matmul(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-1, -2))
    mask = _allowed(query, key, key_mask, causal, window)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.matmul(F.dropout(scores.softmax(-1), dropout_p), v).transpose(1, 2)


def sdpa(query, key, value, *, key_mask=None, causal=False, window=None, scale=None, dropout_p=0.0, **_: Any) -> Tensor:
    """PyTorch's fused attention; (B,T,H,D)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if causal and window is None and key_mask is None and query.shape[1] == key.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True, scale=scale).transpose(1, 2)
    mask = _allowed(query, key, key_mask, causal, window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale).transpose(1, 2)


def _projected(inputs: list[tuple[Tensor, Tensor, Tensor | None]]) -> list[Tensor]:
    """`F.linear` of each, those with one input and neighbouring parts of one matrix by one product, as one writes it."""
    found: list[Tensor] = []
    while inputs:
        (x, weight, bias), base = inputs[0], inputs[0][1]._base
        alike = [x is y and base is not None and w._base is base for y, w, _ in inputs]
        count = sum(alike) if sum(alike) * len(weight) == len(weight if base is None else base) else 1
        if count > 1:
            assert base is not None
            found += F.linear(x, base, None if bias is None else bias._base).chunk(count, dim=-1)
        else:
            found.append(F.linear(x, weight, bias))
        inputs = inputs[count:]
    return found


def _update_on(
    attention: Attention, asked: Tensor, told: Tensor, weights: ops.AttentionBlockWeights, num_heads: int, **options: Any
) -> Tensor:
    w = weights
    projected = _projected([(asked, w.w_q, w.b_q), (told, w.w_k, w.b_k), (told, w.w_v, w.b_v)])
    q, k, v = (y.unflatten(-1, (num_heads, -1)) for y in projected)
    return F.linear(attention(q, k, v, **options).flatten(2), w.w_o, w.b_o)


def block_on(attention: Attention) -> Callable[..., Tensor]:
    """`attention_block` on another attention, the rest in plain PyTorch."""

    def block(
        x: Tensor, memory: Tensor, weights: ops.AttentionBlockWeights, *, num_heads: int, dropout_p: float = 0.0, **span: Any
    ) -> Tensor:
        update = F.dropout(_update_on(attention, x, memory, weights, num_heads, dropout_p=dropout_p, **span), dropout_p)
        return F.layer_norm(x + update, x.shape[-1:], weights.ln_weight, weights.ln_bias, weights.ln_eps)

    return block


def emotion_on(attention: Attention) -> Callable[..., Tensor]:
    """`emotion_attention` of three such blocks, without dropout."""
    return partial(emotion_definition, block=block_on(attention))


def sublayer_on(attention: Attention) -> Callable[..., Tensor]:
    """`attention_sublayer` on another attention, the rest in plain PyTorch."""

    def sublayer(
        x: Tensor,
        memory: Tensor | None,
        weights: ops.AttentionBlockWeights,
        *,
        num_heads: int,
        attention_dropout_p: float = 0.0,
        dropout_p: float = 0.0,
        residual: bool = True,
        **span: Any,
    ) -> Tensor:
        w = weights
        asked = x if w.ln_weight is None else F.layer_norm(x, x.shape[-1:], w.ln_weight, w.ln_bias, w.ln_eps)
        told = asked if memory is None else memory
        update = _update_on(attention, asked, told, weights, num_heads, dropout_p=attention_dropout_p, **span)
        update = F.dropout(update, dropout_p) if dropout_p else update
        return x + update if residual else update

    return sublayer


def reparameterize(mu: Tensor, logvar: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """A draw on torch's own noise, and the divergence to N(0, I)."""
    variance = logvar.exp()
    return mu + variance.sqrt() * torch.randn_like(mu), 0.5 * (mu.square() + variance - 1 - logvar).sum(-1)


def _fusion_kl(real, comp_face, comp_speech, **options: Any) -> Tensor:
    return fusion_definition(*real, *comp_face, *comp_speech, **options)


def _noise(maker: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def noise(shape, seed=None, *, stream=0, frame_offset=0, dtype=torch.float32, device=None) -> Tensor:
        return maker(tuple(shape), dtype=dtype, device=device)

    return noise


@contextmanager
def plain_torch(attention: Attention) -> Iterator[None]:
    """Have every model inside the block run on plain PyTorch with this attention, whatever `emc_fast.ops` has."""
    mine = {
        "attention": attention,
        "attention_block": block_on(attention),
        "attention_sublayer": sublayer_on(attention),
        "emotion_attention": emotion_on(attention),
        "dropout": lambda x, p, **_: F.dropout(x, p),
        "reparameterize": reparameterize,
        "fusion_kl": _fusion_kl,
        "fusion_kl_categorical": categorical_definition,
        "philox_normal": _noise(torch.randn),
        "philox_uniform": _noise(torch.rand),
    }
    before = {name: getattr(ops, name) for name in mine}
    vars(ops).update(mine)
    try:
        yield
    finally:
        vars(ops).update(before)


PLAIN = {"eager": partial(plain_torch, eager_attention), "sdpa": partial(plain_torch, sdpa)}
"""Contexts that put a model on plain PyTorch: with attention as one writes it, and with the fused one."""
