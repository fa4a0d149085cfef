"""A stand-in for a speech emotion recogniser, made of prosody alone.

EMC takes valence, arousal and eight expression probabilities from speech but names no recogniser, and none may be bundled. This one
is a **heuristic with hand-set weights**: loud, high and fast speech counts as aroused; bright speech with a raised pitch counts as
pleasant; the expressions follow from their usual places in the valence-arousal plane. It makes everything run from a bare wav file.
For real work pass a recogniser of your own to ``REACTDataset(speech_emotion=...)`` or put its output beside the corpus
(docs/data.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .audio import framed

_LOWEST_F0, _HIGHEST_F0 = 70.0, 400.0
_VOICED = 0.45  # autocorrelation peak, relative to lag 0, from which a window counts as voiced
_SILENCE_DB, _LOUD_DB = -50.0, -6.0
_USUAL_BRIGHTNESS = -0.4
_LOWER_BAND, _UPPER_BAND = (2000.0, 2900.0), (2900.0, 4000.0)  # Hz; spreading the lips moves energy from one to the other

#: Places of the eight expressions in the valence-arousal plane, in the order of ``EXPRESSIONS``.
EXPRESSION_PLACES: NDArray[np.float32] = np.array(
    [(0.0, -0.1), (0.7, 0.35), (-0.6, -0.5), (0.15, 0.85), (-0.45, 0.75), (-0.7, 0.2), (-0.6, 0.6), (-0.4, 0.05)], dtype=np.float32
)
_SHARPNESS = 5.0


def expression_probabilities(valence: ArrayLike, arousal: ArrayLike) -> NDArray[np.float32]:
    """Softmax over the eight expressions by nearness in the valence-arousal plane: ``(T,), (T,) -> (T, 8)``."""
    place = np.stack([np.asarray(valence, np.float32), np.asarray(arousal, np.float32)], axis=-1)
    return softmax(-_SHARPNESS * ((place[:, None] - EXPRESSION_PLACES) ** 2).sum(-1))


def softmax(logits: NDArray) -> NDArray[np.float32]:
    """Softmax over the last axis, float32."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def smooth(series: NDArray, width: int) -> NDArray:
    """Mean over ``width`` neighbours (odd) along the first axis, edges repeated: a short cosine window."""
    if width <= 1 or len(series) == 0:
        return series
    kernel = np.hanning(width + 2)[1:-1]
    padded = np.pad(series, [(width // 2, width // 2)] + [(0, 0)] * (series.ndim - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return windows @ (kernel / kernel.sum())


def prosody(waveform: ArrayLike, sample_rate: int, *, fps: float = 25, num_frames: int | None = None) -> dict[str, NDArray[np.float32]]:
    """Per-frame prosody of a waveform ``(samples,)``.

    Returns:
        float32 arrays of shape ``(T,)``: ``energy`` (dB of full scale), ``f0`` (Hz, 0 where unvoiced), ``voicing`` (autocorrelation
        peak, 0..1), ``brightness`` (log10 of the energy in 2.9-4 kHz over that in 2-2.9 kHz) and ``rate`` (rises of the energy per
        second, a stand-in for syllables per second).
    """
    frames = framed(waveform, sample_rate, fps, num_frames)
    count, size = frames.shape
    if count == 0:
        return {name: np.zeros(0, np.float32) for name in ("energy", "f0", "voicing", "brightness", "rate")}
    energy = 10 * np.log10(np.maximum((frames.astype(np.float64) ** 2).mean(1), 1e-8))
    spectrum = np.fft.rfft(frames * np.hanning(size).astype(np.float32))
    power, hertz = spectrum.real**2 + spectrum.imag**2, np.arange(spectrum.shape[1]) * (sample_rate / size)
    lower, upper = (power[:, (hertz >= low) & (hertz < high)].sum(1) + 1e-6 for low, high in (_LOWER_BAND, _UPPER_BAND))
    brightness = np.log10(upper / lower)

    f0, voicing = _pitch(frames.reshape(-1), sample_rate, count, size)
    voiced = (voicing > _VOICED) & (energy > _SILENCE_DB)
    rising = np.maximum(np.diff(smooth(energy, 3), prepend=energy[:1]), 0) > 1.5
    onsets = (rising & ~np.concatenate([[False], rising[:-1]])).astype(np.float64)
    rate = smooth(onsets, 2 * round(fps / 2) + 1) * fps
    series = {"energy": energy, "f0": np.where(voiced, f0, 0.0), "voicing": voicing, "brightness": brightness, "rate": rate}
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in series.items()}


def _pitch(wave: NDArray[np.float32], sample_rate: int, count: int, size: int) -> tuple[NDArray, NDArray]:
    """Autocorrelation pitch at each frame's centre: ``(f0 in Hz, peak height)``, both ``(count,)``."""
    decimation = max(1, sample_rate // 8000)  # pitch needs nothing above; averaging neighbours is filter enough
    usable = len(wave) // decimation * decimation
    slow = wave[:usable].reshape(-1, decimation).mean(1)
    rate = sample_rate / decimation
    longest, shortest = int(rate / _LOWEST_F0) + 1, max(2, int(rate / _HIGHEST_F0))
    width = 3 * longest
    centres = ((np.arange(count) + 0.5) * size / decimation).astype(int)
    padded = np.pad(slow, (width // 2, width))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[np.minimum(centres, len(slow))]
    windows = windows - windows.mean(1, keepdims=True)
    length = 1 << int(np.ceil(np.log2(width + longest)))
    spectrum = np.fft.rfft(windows, length)
    correlation = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, length)[:, : longest + 1]
    correlation = correlation / np.maximum(correlation[:, :1], 1e-9)
    correlation = correlation * (width / (width - np.arange(longest + 1)))  # a longer lag overlaps less
    search = correlation[:, shortest:]
    # The first peak nearly as high as the highest: the highest alone is often a multiple of the period.
    inner = np.zeros_like(search, dtype=bool)
    inner[:, 1:-1] = (search[:, 1:-1] >= search[:, :-2]) & (search[:, 1:-1] >= search[:, 2:])
    height = np.where(inner, search, 0.0)
    best = height.max(1, keepdims=True)
    first = np.argmax((height >= 0.9 * best) & (height > 0), axis=1)
    return rate / (first + shortest), np.clip(best[:, 0], 0, 1)


def speech_emotion(waveform: ArrayLike, sample_rate: int, *, fps: float = 25, num_frames: int | None = None) -> NDArray[np.float32]:
    """Valence, arousal and eight expression probabilities from prosody, a declared heuristic (see the module's text).

    Pitch counts relative to the clip's own median, so the whole clip is needed; silence fades to neutral.

    Args:
        waveform: ``(samples,)`` in [-1, 1].
        sample_rate: in Hz.
        fps: video frames per second.
        num_frames: rows wanted, as in :func:`~emc_fast.data.mfcc`.

    Returns:
        float32 ``(num_frames, 10)``: valence and arousal in [-1, 1], then eight probabilities that add to one.
    """
    track = prosody(waveform, sample_rate, fps=fps, num_frames=num_frames)
    count = len(track["energy"])
    if count == 0:
        return np.zeros((0, 10), np.float32)
    voiced = track["f0"] > 0
    pitch = np.zeros(count)
    if voiced.any():
        octaves = np.log2(np.maximum(track["f0"], 1.0) / np.median(track["f0"][voiced]))
        pitch = np.where(voiced, np.clip(octaves, -1, 1), 0.0)
    loudness = np.clip((track["energy"] - _SILENCE_DB) / (_LOUD_DB - _SILENCE_DB), 0, 1)
    span = 2 * round(fps / 2) + 1  # about a second: affect moves slower than syllables
    present = np.maximum(smooth(loudness, span), 1e-3)

    def while_speaking(values: NDArray) -> NDArray:
        """Mean over about a second of what was heard, weighted by loudness."""
        return smooth(values * loudness, span) / present

    level = while_speaking(loudness) - 0.75
    height = while_speaking(pitch)
    bright = while_speaking(track["brightness"]) - _USUAL_BRIGHTNESS
    offset = float(np.median(bright))  # of this voice and microphone; far off the usual it says nothing about affect
    bright -= offset - np.clip(offset, -0.7, 0.7)
    speaking = np.clip(present / 0.35, 0, 1)
    arousal = np.tanh(1.5 * level + 1.7 * height - 0.6 * bright + 0.03 * (track["rate"] - 2)) * speaking - 0.15 * (1 - speaking)
    valence = np.tanh(1.4 * bright + 0.5 * level + 0.8 * height) * speaking
    return np.concatenate([np.stack([valence, arousal], 1), expression_probabilities(valence, arousal)], axis=1).astype(np.float32)


speech_emotion.cache_name = "prosody-1"  # type: ignore[attr-defined]  # raise it when the numbers change: caches are keyed by it
