"""Readers, features and the synthetic corpus of the facial-reaction field (see docs/data.md).

Names are loaded on first use: the worker processes that compute features need NumPy alone and must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .appropriateness import appropriateness_of_split, load_appropriateness
    from .audio import load_audio, mfcc
    from .batch import collate
    from .cache import FeatureCache, default_cache_dir
    from .corpus import Corpus, RoleClip
    from .dataset import REACTDataset
    from .mars import MarsClip, list_clips, read_attributes
    from .names import COEFFICIENT_NAMES, EMOTION_NAMES, SPEECH_EMOTION_NAMES
    from .prosody import speech_emotion
    from .react2024 import React2024
    from .readers import read_coefficients, read_emotion
    from .synthetic import synthesize_corpus

_HOME = {
    "COEFFICIENT_NAMES": "names",
    "EMOTION_NAMES": "names",
    "SPEECH_EMOTION_NAMES": "names",
    "Corpus": "corpus",
    "FeatureCache": "cache",
    "MarsClip": "mars",
    "REACTDataset": "dataset",
    "React2024": "react2024",
    "RoleClip": "corpus",
    "appropriateness_of_split": "appropriateness",
    "collate": "batch",
    "default_cache_dir": "cache",
    "load_appropriateness": "appropriateness",
    "list_clips": "mars",
    "load_audio": "audio",
    "mfcc": "audio",
    "read_attributes": "mars",
    "read_coefficients": "readers",
    "read_emotion": "readers",
    "speech_emotion": "prosody",
    "synthesize_corpus": "synthetic",
}

__all__ = [
    "COEFFICIENT_NAMES",
    "EMOTION_NAMES",
    "SPEECH_EMOTION_NAMES",
    "Corpus",
    "FeatureCache",
    "MarsClip",
    "REACTDataset",
    "React2024",
    "RoleClip",
    "appropriateness_of_split",
    "collate",
    "default_cache_dir",
    "list_clips",
    "load_appropriateness",
    "load_audio",
    "mfcc",
    "read_attributes",
    "read_coefficients",
    "read_emotion",
    "speech_emotion",
    "synthesize_corpus",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
