"""Definition of emotion-aware attention (EA) in terms of its block; the truth of every test of :func:`emc_fast.ops.emotion_attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .attention_block import AttentionBlockWeights, attention_block

__all__ = ["emotion_attention"]


def emotion_attention(
    features: Tensor,
    emotion: Tensor,
    of_features: AttentionBlockWeights,
    of_emotion: AttentionBlockWeights,
    of_both: AttentionBlockWeights,
    *,
    key_mask: Tensor | None = None,
    emotion_mask: Tensor | None = None,
    stream: int = 0,
    block: Callable[..., Tensor] = attention_block,
    **options: Any,
) -> Tensor:
    """f' = Block(f, f), e' = Block(e, e), Block(f', e') for f (B,T,d), e (B,S,d); ``options`` are the blocks'; result (B,T,d) like f.

    ``block`` is what serves the three, in plain PyTorch unless another is given.
    """
    f = block(features, features, of_features, key_mask=key_mask, stream=stream, **options)
    e = block(emotion, emotion, of_emotion, key_mask=emotion_mask, stream=stream + 2, **options)
    return block(f, e, of_both, key_mask=emotion_mask, stream=stream + 4, **options)
