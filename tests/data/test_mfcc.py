"""The 78 features: against a small NumPy definition of Kaldi's MFCC, and against every fact known of the published loader."""

from __future__ import annotations

import numpy as np
import pytest

from emc_fast.data.audio import mfcc, mfcc_dim, samples_per_frame, windows_per_frame

RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000)


def _mel(hertz):
    return 1127.0 * np.log1p(hertz / 700.0)


def kaldi_mfcc(signal, rate):
    """Kaldi's MFCC in float64: 13 cepstra, 23 mel filters from 20 Hz up, Povey window, pre-emphasis .97, lifter 22, energy in c0."""
    size, hop = int(rate * 0.025), int(rate * 0.01)
    length = 1 << (size - 1).bit_length()
    starts = range(0, len(signal) - size + 1, hop)
    window = np.hanning(size) ** 0.85
    edges = np.linspace(_mel(20.0), _mel(rate / 2), 25)
    bins = _mel(np.arange(length // 2) * rate / length)
    bank = np.stack(
        [
            np.clip(np.minimum((bins - lo) / (mid - lo), (hi - bins) / (hi - mid)), 0, None)
            for lo, mid, hi in zip(edges, edges[1:], edges[2:], strict=False)
        ]
    )
    k, n = np.arange(13)[:, None], np.arange(23)[None]
    dct = np.sqrt(2 / 23) * np.cos(np.pi / 23 * (n + 0.5) * k)
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    rows = []
    for start in starts:
        frame = signal[start : start + size].astype(np.float64)
        frame = frame - frame.mean()
        energy = np.log(max((frame**2).sum(), 1.0))
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, length)[:-1]) ** 2
        cepstra = dct @ np.log(np.maximum(bank @ power, np.finfo(np.float32).eps)) * lifter
        cepstra[0] = energy
        rows.append(cepstra)
    return np.array(rows)


def _speechlike(rate, frames, seed=0):
    rng = np.random.default_rng(seed)
    times = np.arange(samples_per_frame(rate, 25) * frames) / rate
    tone = sum(np.sin(2 * np.pi * 140 * k * times) / k for k in range(1, 12))
    return (0.15 * tone * (1 + np.sin(2 * np.pi * 3 * times)) + 0.02 * rng.standard_normal(len(times))).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
def test_agrees_with_the_numpy_definition(rate):
    wave = _speechlike(rate, 12)
    size = samples_per_frame(rate, 25)
    static = mfcc(wave, rate).reshape(12, 3, 13, -1)[:, 0].transpose(0, 2, 1)
    truth = np.stack([kaldi_mfcc(wave[i * size : (i + 1) * size], rate) for i in range(12)])
    # Cepstra reach 46 here; the library computes in float32 and differs by up to 5e-5.
    np.testing.assert_allclose(static, truth, atol=2e-4)


@pytest.mark.parametrize("rate", RATES)
def test_one_call_equals_the_library_frame_by_frame(rate):
    import kaldi_native_fbank as knf

    wave = _speechlike(rate, 6, seed=1)
    size = samples_per_frame(rate, 25)
    options = knf.MfccOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.use_energy = True
    options.energy_floor = 1.0
    static = mfcc(wave, rate).reshape(6, 3, 13, -1)[:, 0]
    for i in range(6):
        extractor = knf.OnlineMfcc(options)
        extractor.accept_waveform(rate, wave[i * size : (i + 1) * size].tolist())
        extractor.input_finished()
        rows = np.stack([extractor.get_frame(j) for j in range(extractor.num_frames_ready)])
        np.testing.assert_array_equal(static[i], rows.T)


@pytest.mark.parametrize("rate", RATES)
def test_two_windows_fit_a_frame_at_25_fps(rate):
    assert windows_per_frame(rate, 25) == 2
    assert mfcc_dim(rate, 25) == 78
    assert mfcc(_speechlike(rate, 3), rate).shape == (3, 78)


@pytest.mark.parametrize("rate", RATES)
def test_one_window_fits_a_frame_at_30_fps(rate):
    features = mfcc(_speechlike(rate, 6), rate, fps=30)
    assert features.shape[1] == mfcc_dim(rate, 30) == 39
    assert not features[:, 13:].any()  # a single column has no difference over time


def test_samples_of_a_frame():
    assert samples_per_frame(44100, 25) == 1764
    assert samples_per_frame(22050, 25) == 882


def test_deltas_by_formula():
    parts = mfcc(_speechlike(44100, 40), 44100).reshape(40, 3, 13, 2)
    difference = 0.3 * (parts[:, 0, :, 1] - parts[:, 0, :, 0])
    np.testing.assert_allclose(parts[:, 1, :, 0], difference, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(parts[:, 1, :, 0], parts[:, 1, :, 1])
    assert np.abs(parts[:, 2]).max() == 0


def test_delta_matrix_is_the_regression_over_five_with_repeated_edges():
    from emc_fast.data.audio import _delta_matrix

    for count in (1, 2, 3, 7):
        series = np.random.default_rng(count).standard_normal(count)
        padded = np.pad(series, 2, mode="edge")
        truth = [(2 * (padded[t + 4] - padded[t]) + padded[t + 3] - padded[t + 1]) / 10 for t in range(count)]
        np.testing.assert_allclose(_delta_matrix(count) @ series, truth, atol=1e-6)


def test_columns_rank_and_zeros():
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(1764 * 400)).astype(np.float32)
    features = mfcc(wave, 44100)
    nonzero = features[:, features.any(0)]
    assert nonzero.shape[1] == 52  # 26 columns are always zero
    distinct = np.unique(nonzero, axis=1)
    assert distinct.shape[1] == 39
    spectrum = np.linalg.svd(features / np.abs(features).max(), compute_uv=False)
    assert (spectrum > 1e-5 * spectrum[0]).sum() == 26


def test_quiet_frames_clamp_to_zero_energy():
    times = np.arange(1764 * 4) / 44100
    loud, quiet = 0.1 * np.sin(2 * np.pi * 200 * times), 0.02 * np.sin(2 * np.pi * 200 * times)
    c0 = slice(0, 2)
    assert (mfcc(loud, 44100)[:, c0] > 1).all()
    assert (mfcc(quiet, 44100)[:, c0] == 0).all()
    # 1102 samples of square 1/1102: the floor lies at -30.4 dB of full scale.
    assert 10 * np.log10(1 / 1102) == pytest.approx(-30.4, abs=0.05)


def test_padding_and_truncation_leave_other_frames_alone():
    wave = _speechlike(16000, 10)
    whole = mfcc(wave, 16000)
    np.testing.assert_array_equal(mfcc(wave, 16000, num_frames=7), whole[:7])
    longer = mfcc(wave, 16000, num_frames=13)
    np.testing.assert_array_equal(longer[:10], whole)
    np.testing.assert_array_equal(longer[10], mfcc(np.zeros(640), 16000)[0])
    assert mfcc(wave[:-1], 16000).shape == (10, 78)  # a frame that is touched counts


def test_no_samples_no_rows():
    assert mfcc(np.zeros(0), 16000).shape == (0, 78)


@pytest.mark.parametrize(("shape", "rate", "fps"), [((2, 100), 16000, 25), ((100,), 0, 25), ((100,), 16000, -1), ((100,), 16000, 60)])
def test_bad_arguments(shape, rate, fps):
    with pytest.raises(ValueError):
        mfcc(np.zeros(shape), rate, fps=fps)
