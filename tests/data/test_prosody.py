"""The prosody heuristic: what it measures, and which way affect moves with it."""

from __future__ import annotations

import numpy as np
import pytest

from emc_fast.data import SPEECH_EMOTION_NAMES, speech_emotion
from emc_fast.data.prosody import prosody


def voice(f0, level, rate=16000, seconds=3.0, bright=0.6):
    """A buzz of pitch ``f0``, syllables at 4 Hz."""
    times = np.arange(int(rate * seconds)) / rate
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(f0, times.shape)) / rate
    tone = sum(bright**k * np.cos(k * phase) for k in range(1, 20))
    return (level * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * times))).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("f0", [90.0, 140.0, 230.0, 330.0])
def test_pitch(f0, rate):
    track = prosody(voice(f0, 0.1, rate), rate)
    middle = track["f0"][3:-3]
    assert (middle > 0).mean() > 0.95
    assert np.median(middle) == pytest.approx(f0, rel=0.06)


def test_silence_and_noise_have_no_pitch():
    assert not prosody(np.zeros(16000), 16000)["f0"].any()
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    assert (prosody(noise, 16000)["f0"] > 0).mean() < 0.3


def test_energy_in_decibels():
    track = prosody(np.full(16000, 0.1), 16000)
    np.testing.assert_allclose(track["energy"], -20, atol=1e-3)


@pytest.mark.parametrize(("rate", "fps"), [(16000, 25), (44100, 25), (22050, 30), (48000, 12.5)])
def test_shape_ranges_and_names(rate, fps):
    values = speech_emotion(voice(150.0, 0.1, rate), rate, fps=fps)
    assert values.shape == (-(-3 * rate // int(rate / fps)), len(SPEECH_EMOTION_NAMES))
    assert values.dtype == np.float32
    assert (np.abs(values[:, :2]) <= 1).all()
    assert (values[:, 2:] >= 0).all()
    np.testing.assert_allclose(values[:, 2:].sum(1), 1, atol=1e-5)


def test_loud_and_high_is_more_aroused():
    halves = [np.concatenate([voice(120.0, 0.02), voice(120.0, 0.2)]), np.concatenate([voice(110.0, 0.1), voice(160.0, 0.1)])]
    for wave in halves:
        arousal = speech_emotion(wave, 16000)[:, 1]
        assert arousal[90:].mean() > arousal[:60].mean() + 0.2


def test_silence_is_neutral():
    values = speech_emotion(np.zeros(32000), 16000)
    assert np.abs(values[:, 0]).max() < 0.05
    assert (values[:, 2:].argmax(1) == 0).all()


def test_rows_asked_for_and_none():
    assert speech_emotion(voice(150.0, 0.1), 16000, num_frames=10).shape == (10, 10)
    assert speech_emotion(np.zeros(0), 16000).shape == (0, 10)


def test_deterministic():
    wave = voice(150.0, 0.1)
    np.testing.assert_array_equal(speech_emotion(wave, 16000), speech_emotion(wave.copy(), 16000))
