"""Emotion-aware attention (EA): three attention blocks, f' = Block(f, f), e' = Block(e, e), Block(f', e'), as one call.

At inference on the CPU it is one native call, in float32 also where the tensors are of a half type (:func:`is_lifted`): of a few frames
the work takes less time than three calls with their arguments. Elsewhere, and where something is recorded, it is three calls of
:func:`attention_block`, and derivatives are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from ._checks import check_probability, check_same, check_stream, check_tensor
from .attention import check_span
from .attention_block import BLOCK_WEIGHTS, attention_block, check_block, has_few, is_few, is_lifted, lifted, may_go_at_once
from .philox import as_seed
from .reference.attention_block import AttentionBlockWeights
from .reference.emotion_attention import emotion_attention as _definition

__all__ = ["emotion_attention"]

_WEIGHTS = BLOCK_WEIGHTS + ", float ln_eps"


def _named(prefix: str) -> str:
    """The parameters of a block as arguments whose names begin with ``prefix``."""
    return ", ".join(f"{kind} {prefix}_{name}" for kind, name in (argument.split() for argument in _WEIGHTS.split(", ")))


_library.define(
    f"emotion_attention_inference(Tensor features, Tensor emotion, {_named('features')}, {_named('emotion')}, {_named('both')},"
    " int num_heads, Tensor? key_mask, Tensor? emotion_mask, bool causal, int window) -> Tensor out"
)
_library.register_fake("emotion_attention_inference", lambda features, *_: features.new_empty(features.shape))
_inference = torch.ops.emc_fast.emotion_attention_inference.default


def emotion_attention(
    features: Tensor,
    emotion: Tensor,
    of_features: AttentionBlockWeights,
    of_emotion: AttentionBlockWeights,
    of_both: AttentionBlockWeights,
    *,
    num_heads: int,
    key_mask: Tensor | None = None,
    emotion_mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | int | None = None,
    stream: int = 0,
) -> Tensor:
    """Compute ``Block(Block(f, f), Block(e, e))``, section 3.3 of the paper, with the block of :func:`attention_block`.

    Args:
        features: f (B,T,d) float32, float16, bfloat16 or float64.
        emotion: e (B,S,d) of the same dtype.
        of_features, of_emotion, of_both: :class:`AttentionBlockWeights` of the three blocks, of the same dtype.
        num_heads: of each block; divides d.
        key_mask: (B,T) bool, frames of the features that may be attended; None = all.
        emotion_mask: (B,S) bool, frames of the emotion that may be attended, by itself and by the features; None = all.
        causal, window: as in :func:`attention`, in all three blocks.
        dropout_p: probability in [0, 1], of both dropouts of each block.
        seed: int64 tensor of shape (1,) or (B,), an int, or None to draw one. Not read when ``dropout_p`` is 0.
        stream: first of six noise streams, two for each block; in [0, 2**32 - 6].

    Returns:
        (B,T,d), dense, of the features' dtype. Derivatives as for :func:`attention`.

    Raises:
        TypeError: an argument is of a type or dtype that is not taken, or dtypes differ.
        ValueError: shapes or devices do not fit, ``window`` is given without ``causal``, or a number is out of its range.
    """
    plain = dropout_p == 0 and stream.__class__ is int and 0 <= stream <= 2**32 - 6
    if plain and may_go_at_once(features, num_heads, causal, window, stream):
        found = _at_once(features, emotion, of_features, of_emotion, of_both, num_heads, key_mask, emotion_mask, causal, window)
        if found is not None:
            return found
    check_tensor("features", features)
    check_tensor("emotion", emotion)
    if emotion.dim() != 3 or features.dim() != 3 or emotion.shape[::2] != features.shape[::2]:
        shapes = f"{tuple(features.shape)} and {tuple(emotion.shape)}"
        raise ValueError(f"features and emotion must have shapes (B,T,d) and (B,S,d) with one B and one d, got {shapes}")
    check_same("emotion", emotion, "features", features, shape=False, dtype=not torch.is_autocast_enabled(features.device.type))
    check_stream(stream)
    check_stream(stream + 5)
    check_probability("dropout_p", dropout_p)
    noise = as_seed(seed, features.shape, features.device) if dropout_p > 0 else None
    check_span(causal, window)
    if dropout_p == 0 and has_few(backend := _backend.choose("attention_block", features.device, features.dtype)):
        check_block(features, features, of_features, num_heads, key_mask)
        check_block(emotion, emotion, of_emotion, num_heads, emotion_mask)
        check_block(features, emotion, of_both, num_heads, emotion_mask)
        weights = *of_features, *of_emotion, *of_both
        if is_few(backend, num_heads, features, emotion, *(w for w in weights if isinstance(w, Tensor))):
            return _inference(features, emotion, *weights, num_heads, key_mask, emotion_mask, causal, window or 0)
    options: dict[str, Any] = {"num_heads": num_heads, "causal": causal, "window": window, "dropout_p": dropout_p, "seed": noise}
    options |= {"key_mask": key_mask, "emotion_mask": emotion_mask, "stream": stream}
    return _definition(features, emotion, of_features, of_emotion, of_both, block=attention_block, **options)


def _at_once(
    features: Tensor,
    emotion: Tensor,
    of_features: AttentionBlockWeights,
    of_emotion: AttentionBlockWeights,
    of_both: AttentionBlockWeights,
    num_heads: int,
    key_mask: Tensor | None,
    emotion_mask: Tensor | None,
    causal: bool,
    window: int | None,
) -> Tensor | None:
    """The native call before anything else is checked, for the reason that the block has; None where it does not serve."""
    if _backend.choose("attention_block", features.device, features.dtype) != "cpu":
        return None
    try:
        if torch.is_grad_enabled() and _autograd.is_recorded(features, emotion, *of_features[:10], *of_emotion[:10], *of_both[:10]):
            return None
        dtype = features.dtype
        if dtype != torch.float32:
            if not is_lifted(features, emotion, *of_features[:10], *of_emotion[:10], *of_both[:10]):
                return None
            features, emotion = features.float(), emotion.float()
            of_features, of_emotion, of_both = lifted(of_features), lifted(of_emotion), lifted(of_both)
        out: Tensor = _inference(
            features, emotion, *of_features, *of_emotion, *of_both, num_heads, key_mask, emotion_mask, causal, window or 0
        )
    except (RuntimeError, TypeError, AttributeError):
        return None
    return out if dtype == torch.float32 else out.to(dtype)
