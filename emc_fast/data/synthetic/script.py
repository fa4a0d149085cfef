"""What happens in a synthetic conversation: the affect and gestures of two people, frame by frame.

The first person leads. Mood (constant over the clip), slow drift and a few events (smiles, brow raises, frowns, surprises) make up the
leader's affect. The follower's is the leader's some frames later, smoothed, mixed by a personal style, plus a mood of its own::

    follower(t) = style @ lowpass(leader)(t - lag) + own(t)

with nods and small smiles after the leader's phrases. Both talk, at times of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

_SMILES, _FROWNS = 0.7, 0.65  # how much of a pleasant or unpleasant state shows without an event


@dataclass(frozen=True)
class Part:
    """One person's part: series of shape (T,).

    Attributes:
        valence: pleasantness, about -1..1.
        arousal: activation, about -1..1.
        smile: 0..1.
        brow: raised brows, 0..1.
        frown: 0..1.
        surprise: 0..1.
        nod: head pitch in units of a nod, -1..1.
        blink: 0..1.
        activity: speaking, 0..1.
        jaw: opening of the jaw while articulating, 0..1.
    """

    valence: Series
    arousal: Series
    smile: Series
    brow: Series
    frown: Series
    surprise: Series
    nod: Series
    blink: Series
    activity: Series
    jaw: Series


def lowpass(series: Series, frames: float) -> Series:
    """Gaussian smoothing with a standard deviation in frames, edges repeated."""
    reach = max(1, int(3 * frames))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(frames, 1e-6)) ** 2)
    padded = np.pad(series, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def delayed(series: Series, lag: int) -> Series:
    """``series(t - lag)``, the first value before that."""
    return np.concatenate([np.full(min(lag, len(series)), series[0]), series[: max(len(series) - lag, 0)]])


def drift(rng: np.random.Generator, frames: int, fps: float, seconds: float) -> Series:
    """Smooth noise of standard deviation about one that moves over ``seconds``."""
    width = seconds * fps / 2.5
    pad = int(4 * width)
    noise = lowpass(rng.standard_normal(frames + 2 * pad), width)[pad : pad + frames]
    return noise * np.sqrt(2 * width * np.sqrt(np.pi))


def events(rng: np.random.Generator, frames: int, fps: float, per_minute: float, seconds: tuple[float, float]) -> Series:
    """Bumps with soft flanks at random times, 0..1."""
    series = np.zeros(frames)
    for _ in range(rng.poisson(per_minute * frames / fps / 60)):
        start, length = rng.uniform(-0.5, frames / fps), rng.uniform(*seconds)
        inside = (np.arange(frames) / fps - start) / length
        bump = np.where((inside > 0) & (inside < 1), np.sin(np.pi * np.clip(inside, 0, 1)) ** 0.6, 0.0)
        series = np.maximum(series, rng.uniform(0.6, 1.0) * bump)
    return series


def phrases(rng: np.random.Generator, frames: int, fps: float, speaking: tuple[float, float], pause: tuple[float, float]) -> Series:
    """Speech activity: phrases and pauses of random length (ranges in seconds), flanks of a few frames."""
    series = np.zeros(frames)
    at = -rng.uniform(0, speaking[1])
    while at < frames / fps:
        length = rng.uniform(*speaking)
        series[max(0, int(at * fps)) : max(0, int((at + length) * fps))] = 1.0
        at += length + rng.uniform(*pause)
    return lowpass(series, 1.2)


def _articulation(rng: np.random.Generator, activity: Series, arousal: Series, fps: float) -> Series:
    """Opening of the jaw: syllables at 3 to 6 a second, faster and wider when aroused, silent in pauses."""
    rate = 4.2 + 1.3 * np.clip(arousal, -1, 1) + 0.5 * rng.standard_normal(len(activity))
    phase = 2 * np.pi * np.cumsum(rate) / fps + rng.uniform(0, 2 * np.pi)
    return activity * (0.55 + 0.25 * np.clip(arousal, -1, 1)) * (0.55 - 0.45 * np.cos(phase))


def _blinks(rng: np.random.Generator, frames: int, fps: float) -> Series:
    series = np.zeros(frames)
    for at in np.flatnonzero(rng.random(frames) < 0.3 / fps):
        series[at : at + 4] = np.array([0.6, 1.0, 0.8, 0.3])[: frames - at]
    return series


def lead(rng: np.random.Generator, frames: int, fps: float) -> Part:
    """Draw the leader's part, the script of the conversation."""
    mood = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)
    smile = events(rng, frames, fps, 5 + 7 * max(mood[0], 0), (1.5, 4.0)) * (0.55 + 0.45 * (mood[0] > 0))
    surprise = events(rng, frames, fps, 2.0, (0.8, 1.8))
    frown = events(rng, frames, fps, 3 + 6 * max(-mood[0], 0), (1.5, 3.5))
    valence = np.tanh(mood[0] + 0.3 * drift(rng, frames, fps, 4.0) + 0.6 * lowpass(smile, 5) - 0.6 * lowpass(frown, 5))
    arousal = np.tanh(mood[1] + 0.35 * drift(rng, frames, fps, 4.0) + 0.7 * lowpass(surprise, 4) + 0.2 * smile)
    brow = np.maximum(events(rng, frames, fps, 5.0, (0.5, 1.4)), 0.8 * surprise)
    activity = phrases(rng, frames, fps, (1.5, 3.5), (0.3, 0.8))
    return Part(
        valence=valence,
        arousal=arousal,
        smile=np.clip(smile + _SMILES * np.maximum(valence, 0), 0, 1),
        brow=brow,
        frown=np.clip(frown + _FROWNS * np.maximum(-valence, 0), 0, 1),
        surprise=surprise,
        nod=0.25 * drift(rng, frames, fps, 0.8),
        blink=_blinks(rng, frames, fps),
        activity=activity,
        jaw=_articulation(rng, activity, arousal, fps),
    )


def vary(rng: np.random.Generator, script: Part, fps: float) -> Part:
    """The same script acted by another person: shared affect and phrases, other blinks, nods, syllables and small deviations."""
    frames = len(script.valence)
    valence = np.clip(script.valence + 0.2 * drift(rng, frames, fps, 4.0), -1, 1)
    arousal = np.clip(script.arousal + 0.2 * drift(rng, frames, fps, 4.0), -1, 1)
    return replace(
        script,
        valence=valence,
        arousal=arousal,
        smile=np.clip(script.smile + _SMILES * (np.maximum(valence, 0) - np.maximum(script.valence, 0)), 0, 1),
        frown=np.clip(script.frown + _FROWNS * (np.maximum(-valence, 0) - np.maximum(-script.valence, 0)), 0, 1),
        nod=0.25 * drift(rng, frames, fps, 0.8),
        blink=_blinks(rng, frames, fps),
        jaw=_articulation(rng, script.activity, arousal, fps),
    )


def follow(rng: np.random.Generator, leader: Part, fps: float, *, lag: tuple[int, int], noise: float) -> Part:
    """The follower's part: the leader's lagged, smoothed and mixed, with a personal style and ``noise`` of its own."""
    frames = len(leader.valence)
    delay = int(rng.integers(lag[0], lag[1] + 1))
    gain = {field.name: rng.uniform(0.75, 1.2) for field in fields(Part)}

    def heard(name: str, width: float = 3.0) -> Series:
        return gain[name] * delayed(lowpass(getattr(leader, name), width), delay)

    def own(seconds: float) -> Series:
        return noise * (0.5 * rng.standard_normal() + drift(rng, frames, fps, seconds))

    valence = np.tanh(0.95 * heard("valence", 4) + 0.15 * heard("smile") + 0.5 * own(4.0))
    arousal = np.tanh(0.85 * heard("arousal", 4) + 0.25 * heard("surprise") + 0.5 * own(4.0))
    ends = np.maximum(-np.diff(leader.activity, prepend=leader.activity[0]), 0)  # backchannels answer the ends of phrases
    answer = np.convolve(delayed(ends, int(rng.integers(4, 9))), np.hanning(15))[:frames]
    bob = np.sin(2 * np.pi * 2.2 * np.arange(frames) / fps + rng.uniform(0, 2 * np.pi))
    activity = np.maximum(phrases(rng, frames, fps, (1.0, 3.0), (0.6, 1.6)), np.clip(0.6 * answer, 0, 1))
    return Part(
        valence=valence,
        arousal=arousal,
        smile=np.clip(0.85 * heard("smile") + 0.2 * answer * (valence > 0) + 0.3 * own(1.5), 0, 1),
        brow=np.clip(0.7 * heard("brow", 2) + 0.3 * heard("surprise", 2) + 0.3 * own(1.0), 0, 1),
        frown=np.clip(0.8 * heard("frown") + 0.3 * own(1.5), 0, 1),
        surprise=np.clip(0.8 * heard("surprise", 2) + 0.2 * own(1.0), 0, 1),
        nod=0.15 * drift(rng, frames, fps, 0.8) + np.clip(answer, 0, 1.2) * bob,
        blink=_blinks(rng, frames, fps),
        activity=activity,
        jaw=_articulation(rng, activity, arousal, fps),
    )
