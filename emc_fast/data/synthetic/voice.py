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

_VOWELS = ((300.0, 2200.0, 2900.0), (620.0, 1500.0, 2500.0), (760.0, 1150.0, 2450.0))  # closed, middle, open jaw
_SMILE = 1.18  # rise of the second and third formant from frown to smile


@dataclass(frozen=True)
class Voice:
    """What stays the same about a person: ``pitch`` in Hz and ``size`` of the vocal tract (formants divide by it)."""

    pitch: float
    size: float


def draw_voice(rng: np.random.Generator) -> Voice:
    """A low or a high voice."""
    low = rng.random() < 0.5
    return Voice(
        pitch=rng.uniform(100, 130) if low else rng.uniform(175, 220), size=rng.uniform(1.0, 1.06) if low else rng.uniform(0.88, 0.95)
    )


def speak(rng: np.random.Generator, part: Part, voice: Voice, *, fps: float, sample_rate: int, samples: int) -> NDArray[np.float32]:
    """The waveform of a part: ``(samples,)`` float32, peaks below 1."""
    frame_times = (np.arange(len(part.valence)) + 0.5) * sample_rate / fps
    times = np.arange(samples, dtype=np.float64)

    def at_samples(series: NDArray) -> NDArray[np.float32]:
        return np.interp(times, frame_times, series).astype(np.float32)

    arousal, valence = np.clip(part.arousal, -1, 1), np.clip(part.valence, -1, 1)
    octaves = 0.45 * arousal + 0.12 * valence + 0.2 * part.surprise + 0.12 * part.brow
    phase = np.cumsum(at_samples(voice.pitch * 2.0**octaves).astype(np.float64)) * (2 * np.pi / sample_rate)
    phase = np.remainder(phase + rng.uniform(0, 2 * np.pi), 2 * np.pi).astype(np.float32)
    # sum_k r^k cos(k phase) in closed form: harmonics whose fall-off r is the effort of the voice
    decay = at_samples(np.clip(0.82 + 0.09 * arousal, 0.7, 0.93))
    cosine = np.cos(phase)
    buzz = decay * (cosine - decay) / (1 - 2 * decay * cosine + decay * decay)
    breath = rng.standard_normal(samples, dtype=np.float32)
    spectrum = np.fft.rfft(buzz + 0.12 * breath)

    hertz = np.arange(len(spectrum), dtype=np.float32) * (sample_rate / samples)
    opening, smiling = np.clip(2.2 * part.jaw, 0, 1), np.clip(0.5 + 0.35 * valence + 0.35 * part.smile, 0, 1)
    wave = np.zeros(samples, np.float32)
    for place, vowel in zip((0.0, 0.5, 1.0), _VOWELS, strict=True):
        share = np.clip(1 - np.abs(opening - place) / 0.5, 0, 1)
        for smiled in (False, True):
            shape = _formants(hertz, [vowel[0], *(f * (_SMILE if smiled else 1 / _SMILE) for f in vowel[1:])], voice.size)
            weight = at_samples(share * (smiling if smiled else 1 - smiling))
            wave += weight * np.fft.irfft(spectrum * shape, samples).astype(np.float32)
    level = -24 + 7 * arousal + 2 * part.surprise
    gain = 10 ** (level / 20) * part.activity * (0.35 + 1.1 * part.jaw)
    wave *= at_samples(gain) / 0.22
    wave += 0.0006 * rng.standard_normal(samples, dtype=np.float32)
    return np.tanh(wave)


def _formants(hertz: NDArray[np.float32], centres: list[float], size: float) -> NDArray[np.float32]:
    """Magnitude of three resonances in parallel over a gentle floor, of unit mean square."""
    response = np.full_like(hertz, 0.02)
    for centre, width, height in zip(centres, (90.0, 130.0, 190.0), (1.0, 0.6, 0.35), strict=True):
        response += height / (1 + ((hertz - centre / size) / width) ** 2)
    return (response / np.sqrt(np.mean(response**2))).astype(np.float32)
