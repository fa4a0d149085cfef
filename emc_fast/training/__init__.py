"""Training, generation and validation of models (see docs/training.md)."""

from __future__ import annotations

from .baselines import MeanReaction, validate
from .config import TrainConfig
from .generation import Reactions, generate, reactions
from .loading import load_model
from .presets import demo_config, recipe
from .run import RunResult, train
from .timing import epoch_seconds
from .trainer import DivergenceError

__all__ = [
    "DivergenceError",
    "MeanReaction",
    "Reactions",
    "RunResult",
    "TrainConfig",
    "demo_config",
    "epoch_seconds",
    "generate",
    "load_model",
    "reactions",
    "recipe",
    "train",
    "validate",
]
