"""The model's own modules: emotion-aware attention, modality compensation, the emotion MLP, and lean layers on the operators."""

from .compensation import CompensatoryModalityAlignment
from .emc import EMC
from .emotion import EmotionMLP
from .emotion_attention import AttentionBlock, EmotionAddNorm, EmotionAwareAttention
from .noise import Dropout, clip_seeds
from .positions import SinusoidalPositions
from .transformer import DecoderLayer, EncoderLayer, FeedForward

__all__ = [
    "EMC",
    "AttentionBlock",
    "CompensatoryModalityAlignment",
    "DecoderLayer",
    "Dropout",
    "EmotionAddNorm",
    "EmotionAwareAttention",
    "EmotionMLP",
    "EncoderLayer",
    "FeedForward",
    "SinusoidalPositions",
    "clip_seeds",
]
