"""From one person's part to the numbers of a face tracker: 25 emotion columns and 58 3DMM coefficients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..names import COEFFICIENT_NAMES, EXPRESSIONS
from ..prosody import EXPRESSION_PLACES, softmax
from .script import Part, drift

_PLACE = {name: i for i, name in enumerate(COEFFICIENT_NAMES)}

#: Rest pose and expression: what ``mean_face.npy`` of the synthetic corpus holds. The pose offsets are of the size that trackers give.
MEAN_FACE: NDArray[np.float32] = np.zeros(len(COEFFICIENT_NAMES), np.float32)
MEAN_FACE[:52] = 0.08
MEAN_FACE[52:] = (3.19, 0.045, 0.002, -0.006, -0.018, 1.838)

# Contribution of each series of a part to each coefficient; both sides of the face where the name has them.
_MIXTURE: dict[str, dict[str, float]] = {
    "smile": {"mouthSmile": 0.7, "cheekSquint": 0.45, "eyeSquint": 0.25, "mouthDimple": 0.2, "mouthUpperUp": 0.15, "mouthStretch": 0.1},
    "brow": {"browInnerUp": 0.55, "browOuterUp": 0.5},
    "surprise": {"eyeWide": 0.6, "browInnerUp": 0.2, "jawOpen": 0.25},
    "frown": {"browDown": 0.6, "mouthFrown": 0.4, "eyeSquint": 0.15, "mouthPress": 0.2, "noseSneer": 0.15, "mouthShrugLower": 0.2},
    "blink": {"eyeBlink": 0.8},
    "awake": {"eyeWide": 0.3, "browOuterUp": 0.15, "mouthStretch": 0.15},
    "tired": {"eyeBlink": 0.2, "eyeSquint": 0.25, "eyeLookDown": 0.3},
    "jaw": {"jawOpen": 0.5, "mouthLowerDown": 0.3, "mouthFunnel": 0.15, "mouthClose": -0.1, "mouthUpperUp": 0.1},
}


def _sided(name: str) -> list[int]:
    return [_PLACE[full] for full in (name, f"{name}Left", f"{name}Right") if full in _PLACE]


def _mixing() -> tuple[list[str], NDArray[np.float64]]:
    matrix = np.zeros((len(_MIXTURE), len(COEFFICIENT_NAMES)))
    for row, parts in enumerate(_MIXTURE.values()):
        for name, weight in parts.items():
            matrix[row, _sided(name)] = weight
    return list(_MIXTURE), matrix


_SOURCES, _MATRIX = _mixing()


def coefficients(rng: np.random.Generator, part: Part, fps: float, noise: float) -> NDArray[np.float32]:
    """58 coefficients per frame, mean face and personal offset included: ``(T, 58)``."""
    frames = len(part.valence)
    series = {"awake": np.maximum(part.arousal, 0), "tired": np.maximum(-part.arousal, 0)}
    face = np.stack([series[name] if name in series else getattr(part, name) for name in _SOURCES], 1) @ _MATRIX
    face[:, :52] *= rng.uniform(0.9, 1.1, 52)
    face[:, :52] += 0.01 * rng.standard_normal(52) + 0.04 * noise * rng.standard_normal((frames, 52))
    sway = np.stack([drift(rng, frames, fps, 3.0) for _ in range(6)], 1)
    face[:, 52:55] = 0.03 * sway[:, :3]
    face[:, 52] += 0.08 * part.nod + 0.03 * part.arousal
    face[:, 55:] = 0.01 * sway[:, 3:] + 0.01 * rng.standard_normal(3)
    return (face + MEAN_FACE).astype(np.float32)


def emotion(rng: np.random.Generator, part: Part, noise: float) -> NDArray[np.float32]:
    """15 action unit occurrences (nearly 0 or 1), valence and arousal in [-1, 1], 8 expression probabilities: ``(T, 25)``."""
    frames = len(part.valence)
    happy = np.maximum(part.valence, 0)
    tense = part.frown * np.clip(0.5 + part.arousal, 0, 1)
    intensity = np.stack(
        [
            part.brow,  # AU1 inner brow
            0.95 * part.brow,  # AU2 outer brow
            part.frown,  # AU4 brow lowerer
            part.smile,  # AU6 cheek raiser
            0.6 * part.smile + 0.4 * tense,  # AU7 lid tightener
            0.7 * tense,  # AU9 nose wrinkler
            0.5 * part.smile + 0.3 * part.frown,  # AU10 upper lip raiser
            part.smile + 0.2 * happy,  # AU12 lip corner puller
            0.7 * part.smile,  # AU14 dimpler
            part.frown * np.clip(0.9 - part.arousal, 0, 1),  # AU15 lip corner depressor
            0.8 * part.frown,  # AU17 chin raiser
            tense,  # AU23 lip tightener
            0.9 * tense,  # AU24 lip pressor
            1.3 * part.jaw + 0.5 * part.surprise,  # AU25 lips part
            0.9 * part.jaw + 0.7 * part.surprise,  # AU26 jaw drop
        ],
        axis=1,
    )
    occurrence = 1 / (1 + np.exp(-14 * (intensity + 0.1 * noise * rng.standard_normal((frames, 15)) - 0.42)))
    affect = np.clip(np.stack([part.valence, part.arousal], 1) + 0.05 * noise * rng.standard_normal((frames, 2)), -1, 1)
    nearness = -5.0 * ((affect[:, None] - EXPRESSION_PLACES) ** 2).sum(-1)
    seen = np.zeros((frames, len(EXPRESSIONS)))
    for name, series in {"Happy": part.smile, "Surprise": part.surprise, "Anger": tense, "Sad": 0.5 * part.frown}.items():
        seen[:, EXPRESSIONS.index(name)] = series
    return np.concatenate([occurrence, affect, softmax(nearness + 1.5 * seen)], axis=1).astype(np.float32)
