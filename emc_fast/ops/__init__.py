"""Operators: public functions, autograd and the choice of back end."""

from .attention import attention
from .attention_block import AttentionBlockWeights, attention_block

__all__ = ["AttentionBlockWeights", "attention", "attention_block"]
