"""From one person's part to a waveform with the prosody of it: a buzz through formants, no words.

Arousal raises pitch, level and brightness; pleasantness and smiling raise the second and third formant (a smile shortens the vocal
tract); surprise and raised brows lift the pitch; the jaw opens the first formant and gates the level. So a microphone alone tells part
of what the face shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .script import Part

_VOWELS = ((320.0, 2000.0, 2800.0), (740.0, 1250.0, 2450.0))  # closed and open jaw
_SMILE = 1.18  # rise of the second and third formant from frown to smile


@dataclass(frozen=True)
class Voice:
    """What stays the same about a person: ``pitch`` in Hz and ``size`` of the vocal tract (formants divide by it)."""

    pitch: float
    size: float


def draw_voice(rng: np.random.Generator) -> Voice:
    """A low or a high voice."""
    low = rng.random() < 0.5
    pitch, size = ((105, 125), (1.0, 1.04)) if low else ((180, 205), (0.91, 0.95))
    return Voice(pitch=rng.uniform(*pitch), size=rng.uniform(*size))


def speak(rng: np.random.Generator, part: Part, voice: Voice, *, fps: float, sample_rate: int, samples: int) -> NDArray[np.float32]:
    """The waveform of a part: ``(samples,)`` float32, peaks below 1."""
    size = int(sample_rate / fps)

    def at_samples(series: NDArray) -> NDArray[np.float32]:
        return _between_frames(series, size, samples)

    arousal, valence = np.clip(part.arousal, -1, 1), np.clip(part.valence, -1, 1)
    octaves = 0.45 * arousal + 0.12 * valence + 0.2 * part.surprise + 0.12 * part.brow
    turns = np.cumsum(at_samples(voice.pitch * 2.0**octaves), dtype=np.float64) / sample_rate + rng.random()
    cosine = np.cos((turns - np.floor(turns)).astype(np.float32) * np.float32(2 * np.pi))
    # sum_k r^k cos(k phase) in closed form: harmonics whose fall-off r is the effort of the voice
    decay = at_samples(np.clip(0.82 + 0.09 * arousal, 0.7, 0.93))
    buzz = decay * (cosine - decay) / (1 - 2 * decay * cosine + decay * decay)
    breath = rng.standard_normal(samples, dtype=np.float32)
    spectrum = np.fft.rfft(buzz + 0.12 * breath)

    hertz = np.arange(len(spectrum), dtype=np.float32) * (sample_rate / samples)
    opening, smiling = np.clip(2.2 * part.jaw, 0, 1), np.clip(0.45 + 0.3 * valence + 0.4 * part.smile - 0.25 * part.frown, 0, 1)
    wave = np.zeros(samples, np.float32)
    for share, vowel in zip((1 - opening, opening), _VOWELS, strict=True):
        for smiled in (False, True):
            shape = _formants(hertz, [vowel[0], *(f * (_SMILE if smiled else 1 / _SMILE) for f in vowel[1:])], voice.size)
            weight = at_samples(share * (smiling if smiled else 1 - smiling))
            wave += weight * np.fft.irfft(spectrum * shape, samples)
    level = -24 + 6 * arousal + 2 * part.surprise
    gain = 10 ** (level / 20) * part.activity * (0.35 + 1.1 * part.jaw)
    wave *= at_samples(gain) / 0.22
    wave += 0.0006 * rng.standard_normal(samples, dtype=np.float32)
    return np.tanh(wave)


def _between_frames(series: NDArray, size: int, samples: int) -> NDArray[np.float32]:
    """Linear interpolation from frame centres, ``size`` samples apart, to samples: ``(T,) -> (samples,)`` float32."""
    values = np.concatenate([series[:1], series, series[-1:]]).astype(np.float32)  # held before the first centre and behind the last
    share = (np.arange(size, dtype=np.float32) + 0.5) / size
    lines = values[:-1, None] + np.diff(values)[:, None] * share
    return lines.reshape(-1)[size // 2 :][:samples].astype(np.float32, copy=False)


def _formants(hertz: NDArray[np.float32], centres: list[float], size: float) -> NDArray[np.float32]:
    """Magnitude of the three resonances and a fixed fourth, in parallel over a low floor, of unit mean square."""
    response = np.full_like(hertz, 0.03)
    for centre, width, height in zip((*centres, 3700.0), (90.0, 130.0, 190.0, 250.0), (1.0, 0.6, 0.4, 0.2), strict=True):
        response += height / (1 + ((hertz - centre / size) / width) ** 2)
    return (response / np.sqrt(np.mean(response**2))).astype(np.float32)
