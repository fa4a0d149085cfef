"""Transformer layers as the backbones need them; each post-norm attention with its residual and LayerNorm is one operator call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .emotion_attention import AttentionBlock
from .noise import Dropout


class FeedForward(nn.Module):
    """LayerNorm(x + Dropout(W_2 Dropout(ReLU(W_1 x)))); with `norm="pre"` x + Dropout(W_2 Dropout(ReLU(W_1 LayerNorm(x)))).

    Args:
        d_model: width d.
        d_hidden: hidden width.
        dropout: in training.
        norm: `post` or `pre`.
        stream: first of two noise streams.
    """

    def __init__(self, d_model: int, d_hidden: int, *, dropout: float = 0.1, norm: str = "post", stream: int = 0) -> None:
        super().__init__()
        self.norm_first = norm == "pre"
        self.expand = nn.Linear(d_model, d_hidden)
        self.contract = nn.Linear(d_hidden, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.inner_dropout = Dropout(dropout, stream=stream)
        self.dropout = Dropout(dropout, stream=stream + 1)

    def forward(self, x: Tensor, *, seed: Tensor | None = None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        hidden = self.inner_dropout(F.relu(self.expand(self.norm(x) if self.norm_first else x)), seed=seed)
        result = x + self.dropout(self.contract(hidden), seed=seed)
        return result if self.norm_first else self.norm(result)


class EncoderLayer(nn.Module):
    """Self-attention block and feed-forward (torch's `TransformerEncoderLayer`, post-norm, ReLU).

    Args:
        d_model, num_heads, d_hidden, dropout: as in torch's layer.
        stream: first of four noise streams.
    """

    def __init__(self, d_model: int, num_heads: int, d_hidden: int, *, dropout: float = 0.1, stream: int = 0) -> None:
        super().__init__()
        self.attention = AttentionBlock(d_model, num_heads, dropout=dropout, stream=stream)
        self.feed_forward = FeedForward(d_model, d_hidden, dropout=dropout, stream=stream + 2)

    def forward(
        self, x: Tensor, *, rows: int | None = None, key_mask: Tensor | None = None, causal: bool = False, seed: Tensor | None = None
    ) -> Tensor:
        """Encode `x` (B, T, d).

        Args:
            x: (B, T, d).
            rows: give only the first so many rows of the result; the others are then not computed at all. Not with `causal`.
            key_mask: (B, T) bool, True = may be attended.
            causal: row t sees rows up to t.
            seed: int64 (B,) or (1,), for dropout.

        Returns:
            (B, rows or T, d).
        """
        query = x if rows is None else x[:, :rows]
        return self.feed_forward(self.attention(query, x, key_mask=key_mask, causal=causal, seed=seed), seed=seed)


class DecoderLayer(nn.Module):
    """Self-attention block, cross-attention block and feed-forward (torch's `TransformerDecoderLayer`, post-norm, ReLU).

    Args:
        d_model, num_heads, d_hidden, dropout: as in torch's layer.
        stream: first of six noise streams.
    """

    def __init__(self, d_model: int, num_heads: int, d_hidden: int, *, dropout: float = 0.1, stream: int = 0) -> None:
        super().__init__()
        self.attention = AttentionBlock(d_model, num_heads, dropout=dropout, stream=stream)
        self.cross = AttentionBlock(d_model, num_heads, dropout=dropout, stream=stream + 2)
        self.feed_forward = FeedForward(d_model, d_hidden, dropout=dropout, stream=stream + 4)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        key_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        aligned: bool = False,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Decode `x` (B, T, d) against `memory` (B, S, d).

        Args:
            x: (B, T, d), or (1, T, d) where all rows are alike; they stay one until they meet the memory.
            memory: (B, S, d).
            key_mask: as x, (B, T) or (1, T) bool, rows of x that may be attended.
            memory_mask: (B, S) bool, rows of the memory that may be attended.
            causal: self-attention sees no later row.
            aligned: row t of x reads row t of the memory and no other (S = T).
            seed: int64 (B,) or (1,), for dropout.

        Returns:
            (B, T, d).
        """
        x = self.attention(x, key_mask=key_mask, causal=causal, seed=seed)
        if (aligned or memory.shape[1] == 1) and not self.training and not torch.is_grad_enabled():
            # The softmax over a single row is 1: its value is what attention gives, and queries and keys play no part.
            # With gradients the plain path is taken, so that those weights get their (zero) gradients.
            value = self.cross.value(memory)
            if memory_mask is not None:
                value = value.masked_fill(~memory_mask[..., None], 0)
            x = self.cross.norm(x + self.cross.output(value))
        else:
            x = self.cross(
                x.expand(memory.shape[0], -1, -1), memory, key_mask=memory_mask, causal=aligned, window=1 if aligned else None, seed=seed
            )
        return self.feed_forward(x, seed=seed)
