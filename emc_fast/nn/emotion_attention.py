"""Emotion-aware attention (EA): features ask, emotion answers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops


class AttentionBlock(nn.Module):
    """Multi-head attention, residual sum and LayerNorm as one operator call.

    post: `LayerNorm(x + Dropout(W_o Attn(W_q x, W_k m, W_v m) + b_o))`;
    pre:  `x + Dropout(W_o Attn(W_q n, W_k n_m, W_v n_m) + b_o)` with n = LayerNorm(x), and n_m = n in self-attention,
    a LayerNorm of its own over the memory in cross-attention.

    Args:
        d_model: width d; num_heads divides it.
        num_heads: number of heads.
        dropout: on the attention weights and on the output, in training.
        attention_dropout: on the attention weights alone, where that differs; only in a `pre` block.
        norm: `post` or `pre`.
        cross: the block is given a memory; only a `pre` block needs to know, for the memory's own LayerNorm.
        stream: first of two noise streams (attention dropout, output dropout).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        norm: str = "post",
        cross: bool = False,
        stream: int = 0,
    ) -> None:
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm takes 'post' or 'pre'; got {norm!r}")
        if d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model; got {num_heads} heads for a width of {d_model}")
        if attention_dropout is not None and norm != "pre":
            raise ValueError("attention_dropout goes with norm='pre'; a 'post' block has one dropout for weights and output")
        self.num_heads = num_heads
        self.dropout = dropout
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.norm_first = norm == "pre"
        self.stream = stream
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.memory_norm = nn.LayerNorm(d_model) if self.norm_first and cross else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialisation of torch's own multi-head attention, whose three input projections are one (3d, d) matrix."""
        bound = math.sqrt(6 / (4 * self.query.in_features))
        for layer in (self.query, self.key, self.value):
            nn.init.uniform_(layer.weight, -bound, bound)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.zeros_(layer.bias)

    def weights(self) -> ops.AttentionBlockWeights:
        """The tensors of the block in the order of the operator."""
        if not torch.compiler.is_compiling():
            # Twenty look-ups through nn.Module take as long as eight frames of the block do.
            m: Any = self._modules
            try:
                q, k, v = m["query"]._parameters, m["key"]._parameters, m["value"]._parameters
                o, n = m["output"]._parameters, m["norm"]._parameters
                return ops.AttentionBlockWeights._make(
                    (q["weight"], q["bias"], k["weight"], k["bias"], v["weight"], v["bias"], o["weight"], o["bias"], n["weight"], n["bias"],
                     m["norm"].eps)
                )  # fmt: skip
            except KeyError:  # a parametrisation keeps its tensors elsewhere
                pass
        return ops.AttentionBlockWeights(
            self.query.weight, self.query.bias, self.key.weight, self.key.bias, self.value.weight, self.value.bias,
            self.output.weight, self.output.bias, self.norm.weight, self.norm.bias, self.norm.eps,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        causal: bool = False,
        window: int | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Attend from `x` to `memory`.

        Args:
            x: (B, T, d).
            memory: (B, S, d); None attends to x itself.
            key_mask: (B, S) bool, True = may be attended; a row with nothing to attend adds only the output's bias.
            causal: query t sees keys s <= t + (S - T).
            window: of those only the last so many.
            seed: int64 (B,) or (1,), for dropout in training.

        Returns:
            (B, T, d).
        """
        p = self.dropout if self.training else 0.0
        if not self.norm_first:
            return ops.attention_block(
                x, x if memory is None else memory, self.weights(), num_heads=self.num_heads, key_mask=key_mask,
                causal=causal, window=window, dropout_p=p, seed=seed, stream=self.stream,
            )  # fmt: skip
        if memory is not None and self.memory_norm is not None:
            memory = self.memory_norm(memory)
        return ops.attention_sublayer(
            x, memory, self.weights(), num_heads=self.num_heads, key_mask=key_mask, causal=causal, window=window,
            attention_dropout_p=self.attention_dropout if self.training else 0.0, dropout_p=p, seed=seed, stream=self.stream,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"num_heads={self.num_heads}, dropout={self.dropout}, norm={'pre' if self.norm_first else 'post'}, stream={self.stream}"


class EmotionAwareAttention(nn.Module):
    """EA(f, e) of section 3.3: f' = Block(f, f); e' = Block(e, e); out = Block(f', e').

    The emotion branch e' depends on e alone, so several features under one emotion share it: compute it once by
    `encode_emotion` and hand it to `forward` as `encoded`.

    Args:
        d_model: width d of features and emotion.
        num_heads: number of heads.
        dropout: in training.
        norm: `post` or `pre`, see `AttentionBlock`.
        stream: first of six noise streams.
    """

    def __init__(self, d_model: int, num_heads: int, *, dropout: float = 0.1, norm: str = "post", stream: int = 0) -> None:
        super().__init__()
        self.features = AttentionBlock(d_model, num_heads, dropout=dropout, norm=norm, stream=stream)
        self.emotion = AttentionBlock(d_model, num_heads, dropout=dropout, norm=norm, stream=stream + 2)
        self.cross = AttentionBlock(d_model, num_heads, dropout=dropout, norm=norm, cross=True, stream=stream + 4)

    def encode_emotion(
        self,
        emotion: Tensor,
        *,
        key_mask: Tensor | None = None,
        causal: bool = False,
        window: int | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """The emotion branch e' (B, S, d) of an emotion sequence (B, S, d)."""
        return self.emotion(emotion, key_mask=key_mask, causal=causal, window=window, seed=seed)

    def forward(
        self,
        features: Tensor,
        emotion: Tensor | None,
        *,
        key_mask: Tensor | None = None,
        emotion_mask: Tensor | None = None,
        causal: bool = False,
        window: int | None = None,
        seed: Tensor | None = None,
        encoded: Tensor | None = None,
    ) -> Tensor:
        """Features with the emotion taken in.

        Args:
            features: (B, T, d), or (B * K, T, d) for K draws, side by side, under one emotion.
            emotion: (B, S, d), usually S = T; not read when `encoded` is given.
            key_mask: (B, T) or (B * K, T) bool as the features, frames of them that may be attended; None = all.
            emotion_mask: (B, S) bool, frames that have an emotion; None takes `key_mask` where S = T, else all.
            causal: no later frame is seen; with S > T the last frames of both coincide.
            window: of the frames that may be seen only the last so many.
            seed: int64, for dropout in training: (1,), or one for each row of the features.
            encoded: e' (B, S, d) from `encode_emotion`.

        Returns:
            As the features.
        """
        memory = emotion if encoded is None else encoded
        if memory is None:
            raise ValueError("EmotionAwareAttention takes an emotion (B, S, d), or its encoded form; got None for both")
        draws = features.shape[0] // memory.shape[0]
        if emotion_mask is None and key_mask is not None and memory.shape[1] == features.shape[1]:
            emotion_mask = key_mask[::draws]
        if encoded is None and draws == 1 and (blocks := self._unheard()):
            of_features, of_emotion, of_both = blocks
            return ops.emotion_attention(
                features, memory, of_features.weights(), of_emotion.weights(), of_both.weights(), num_heads=of_both.num_heads,
                key_mask=key_mask, emotion_mask=emotion_mask, causal=causal, window=window,
            )  # fmt: skip
        if encoded is None:
            seeds = seed if seed is None or seed.shape[0] == 1 else seed[::draws]
            encoded = self.encode_emotion(memory, key_mask=emotion_mask, causal=causal, window=window, seed=seeds)
        attended = self.features(features, key_mask=key_mask, causal=causal, window=window, seed=seed)
        if draws == 1:
            return self.cross(attended, encoded, key_mask=emotion_mask, causal=causal, window=window, seed=seed)
        if not causal and not self.training:
            # Queries of all draws side by side: keys and values are projected once for all of them.
            rows, frames, d = attended.shape
            queries = attended.reshape(rows // draws, draws * frames, d)
            return self.cross(queries, encoded, key_mask=emotion_mask).view(rows, frames, d)
        encoded = encoded.repeat_interleave(draws, 0)
        emotion_mask = None if emotion_mask is None else emotion_mask.repeat_interleave(draws, 0)
        return self.cross(attended, encoded, key_mask=emotion_mask, causal=causal, window=window, seed=seed)

    def _unheard(self) -> tuple[Any, ...]:
        """The three blocks where they may be one operator call: at inference, and unless somebody listens to one of them; else nothing."""
        modules = self._modules  # nn.Module's own look-up of a child takes longer than all that is asked here
        blocks: tuple[Any, ...] = modules["features"], modules["emotion"], modules["cross"]
        if self.training or torch.is_grad_enabled() or blocks[2].norm_first:
            return ()
        return () if any(block._forward_hooks or block._forward_pre_hooks for block in blocks) else blocks


class EmotionAddNorm(nn.Module):
    """The ablation `ea="add_norm"`: LayerNorm(f + e), frame by frame; frames without an emotion add nothing.

    Args:
        d_model: width d.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)

    def encode_emotion(self, emotion: Tensor, *, key_mask: Tensor | None = None, **_: object) -> Tensor:
        """The emotion itself, zero where `key_mask` (B, S) says that there is none."""
        return emotion if key_mask is None else emotion.masked_fill(~key_mask[..., None], 0)

    def forward(
        self,
        features: Tensor,
        emotion: Tensor | None,
        *,
        emotion_mask: Tensor | None = None,
        encoded: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """LayerNorm(features + emotion).

        Features are (B, T, d), or (B * K, T, d) for K draws under one emotion (B, S, d); of a longer emotion the last T frames count.
        """
        if encoded is None:
            if emotion is None:
                raise ValueError("EmotionAddNorm takes an emotion (B, S, d), or its encoded form; got None for both")
            encoded = self.encode_emotion(emotion, key_mask=emotion_mask)
        rows, frames, d = features.shape
        total = features.view(encoded.shape[0], -1, frames, d) + encoded[:, None, encoded.shape[1] - frames :]
        total = total.view(rows, frames, d)
        return F.layer_norm(total, self.norm.normalized_shape, self.norm.weight, self.norm.bias, self.norm.eps)
