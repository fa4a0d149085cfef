"""Operators: public functions, autograd and the choice of back end."""

from .attention import attention
from .attention_block import AttentionBlockWeights, attention_block
from .fusion_kl import fusion_kl
from .fusion_kl_categorical import fusion_kl_categorical

__all__ = ["AttentionBlockWeights", "attention", "attention_block", "fusion_kl", "fusion_kl_categorical"]
