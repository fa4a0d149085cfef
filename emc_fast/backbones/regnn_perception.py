"""REGNN's perceptual processor: speech and face become one sequence, by cross-modal attention and a transformer after it.

The transformers are those of the Multimodal Transformer (Tsai et al., ACL 2019).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.emotion_attention import AttentionBlock
from ..nn.noise import Dropout
from ..nn.transformer import FeedForward

NOISE_STREAMS_PER_LAYER = 4


def positions_from_one(length: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Positions 1, 2, ... as this family of transformers has them: first all sines, then all cosines, rates down to 1/10000.

    Returns:
        (length, width) float32; `width` is even and at least 4.
    """
    half = width // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float32, device=device) * (-math.log(10000.0) / (half - 1)))
    angle = torch.arange(1, length + 1, dtype=torch.float32, device=device)[:, None] * rate
    return torch.cat((torch.sin(angle), torch.cos(angle)), dim=-1)


class PreNormLayer(nn.Module):
    """Attention and feed-forward, each on the LayerNorm of its input; one LayerNorm serves queries and memory.

    Args:
        d_model, num_heads: width and heads; the hidden width is four times the width.
        dropout: on the outputs and in the feed-forward, in training; attention weights are not dropped.
        stream: first of four noise streams.
    """

    def __init__(self, d_model: int, num_heads: int, *, dropout: float, stream: int) -> None:
        super().__init__()
        self.attention = AttentionBlock(d_model, num_heads, dropout=dropout, attention_dropout=0.0, norm="pre", stream=stream)
        self.feed_forward = FeedForward(d_model, 4 * d_model, dropout=dropout, norm="pre", stream=stream + 2)
        for layer in (self.attention.output, self.feed_forward.expand, self.feed_forward.contract):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, memory: Tensor | None, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """`x` (N, T, d) attends to `memory` (N, T, d), or to itself where that is None; `key_mask` (N, T) may be attended."""
        keys = None if memory is None else self.attention.norm(memory)
        return self.feed_forward(self.attention(x, keys, key_mask=key_mask, seed=seed), seed=seed)


class PerceptualProcessor(nn.Module):
    """Face asks speech, then asks itself; a residual projection and a linear layer to the fused width.

    The embedding dropout draws one mask for what is both key and value (the released code draws two).

    Args:
        d_model: width of both streams.
        out_dim: width of the fused sequence.
        num_heads: attention heads.
        layers: layers of each of the two transformers.
        window: frames for which positions are kept at hand.
        dropout: see `PreNormLayer`.
        embedding_dropout: on what enters the transformers, in training.
        stream: first of 4 + 8 * `layers` noise streams.
    """

    positions: Tensor

    def __init__(
        self,
        d_model: int,
        out_dim: int,
        *,
        num_heads: int,
        layers: int,
        window: int,
        dropout: float,
        embedding_dropout: float,
        stream: int,
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(d_model)
        self.register_buffer("positions", positions_from_one(window, d_model), persistent=False)
        self.face_dropout, self.speech_dropout, self.fused_dropout = (Dropout(embedding_dropout, stream=stream + i) for i in range(3))

        def stack(first: int) -> nn.ModuleList:
            return nn.ModuleList(
                PreNormLayer(d_model, num_heads, dropout=dropout, stream=stream + NOISE_STREAMS_PER_LAYER * (1 + first + i))
                for i in range(layers)
            )

        self.cross_layers, self.cross_norm = stack(0), nn.LayerNorm(d_model)
        self.self_layers, self.self_norm = stack(layers), nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, d_model)
        self.contract = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, out_dim)

    def forward(self, face: Tensor, speech: Tensor, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """(N, T, d_model) twice to (N, T, out_dim); frames that `key_mask` (N, T) leaves out are not attended."""
        x = self.face_dropout(self._embed(face), seed=seed)
        memory = self.speech_dropout(self._embed(speech), seed=seed)
        for layer in self.cross_layers:
            x = layer(x, memory, key_mask=key_mask, seed=seed)
        x = self.fused_dropout(self._embed(self.cross_norm(x)), seed=seed)
        for layer in self.self_layers:
            x = layer(x, None, key_mask=key_mask, seed=seed)
        x = self.self_norm(x)
        return self.output(x + self.contract(F.relu(self.expand(x))))

    def _embed(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        where = self.positions[:length]
        if length > where.shape[0]:
            where = positions_from_one(length, x.shape[-1], device=x.device)
        return self.scale * x + where.to(x.dtype)
