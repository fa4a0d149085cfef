"""Sound: reading a file, and the 78 features per video frame that the REACT baselines use.

Those features are Kaldi MFCC, computed afresh inside every video frame. A frame of ``int(rate / fps)`` samples holds whole windows
of 25 ms every 10 ms: two of them at 25 frames a second. Their 13 cepstra (c0 is the log energy, floored at 1 on audio in [-1, 1]) are
stacked with first and second differences over time, flattened as ``[static | delta | delta-delta] x cepstrum x window``.

Two windows are too few for a difference over five, so with edges repeated both delta columns are ``0.3 * (c1 - c0)`` and every
delta-delta is zero: of 78 numbers 26 vary freely. The layout is kept because published models expect it.
"""

from __future__ import annotations

import struct
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import soundfile
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

CEPSTRA = 13
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz; below, the mel filters do not fit, and above no recording is meant
_LARGEST_SAMPLE = 2.0**31  # an integer format's, unscaled; the energy of much larger ones overflows
_WINDOW_MS, _HOP_MS = 25.0, 10.0
_DELTA_REACH = 2  # a window of five


def load_audio(path: str | Path) -> tuple[NDArray[np.float32], int]:
    """Read a sound file of any width and number of channels and any rate from 1 kHz to 1 MHz.

    Args:
        path: a file that libsndfile can read (wav, flac, ogg, ...).

    Returns:
        ``(waveform, sample_rate)``: the mean of the channels as float32 of shape ``(samples,)`` in [-1, 1], and the rate in Hz.

    Raises:
        DataError: the file is absent, unreadable, cut off, empty, of a rate outside these bounds, or holds values that are not finite
            or absurdly large.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as sound ({error}); a wav, flac or ogg file is taken") from error
    _refuse_cut_wav(Path(path))
    if len(samples) == 0:
        raise DataError(f"{path}: holds no samples; at least one is needed")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise DataError(f"{path}: has a rate of {rate} Hz by its header; {LOWEST_RATE} to {HIGHEST_RATE} Hz are taken")
    usable = (np.abs(samples) <= _LARGEST_SAMPLE).all(axis=1)  # False for NaN too
    if not usable.all():
        place = int(np.argmin(usable))
        raise DataError(f"{path}: sample {place} is {samples[place].tolist()}; finite numbers, usually in [-1, 1], are taken")
    waveform = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    return np.ascontiguousarray(waveform, dtype=np.float32), int(rate)


def _refuse_cut_wav(path: Path) -> None:
    """DataError for a wav whose sound ends before its own header says; libsndfile reads such a file as a shorter recording.

    Sizes of 0 and near 2**32 are what programs write that send a wav into a pipe, before they know its length; they say nothing.
    """
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        end = path.stat().st_size
        place = 12
        while place + 8 <= end:
            file.seek(place)
            name, size = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                if 0 < size < 0x7FFFF000 and place + 8 + size > end:
                    raise DataError(
                        f"{path}: is cut off: its header tells of {size} bytes of sound, {end - place - 8} are there; copy it again"
                    )
                return
            place += 8 + size + size % 2


def samples_per_frame(sample_rate: int, fps: float) -> int:
    """Samples of one video frame, rounded down as the published loader does (1764 at 44.1 kHz and 25 fps)."""
    if not (LOWEST_RATE <= sample_rate <= HIGHEST_RATE and fps > 0):
        raise ValueError(f"sample_rate must be {LOWEST_RATE} to {HIGHEST_RATE} Hz and fps positive, got {sample_rate} and {fps}")
    return int(sample_rate / fps)


def windows_per_frame(sample_rate: int, fps: float) -> int:
    """MFCC windows that fit into one video frame: 2 at 25 fps, 1 at 30 fps."""
    return 1 + (samples_per_frame(sample_rate, fps) - _window(sample_rate)) // _hop(sample_rate)


def mfcc_dim(sample_rate: int, fps: float) -> int:
    """Width of :func:`mfcc`: 39 for each window in a frame, hence 78 at 25 fps and 39 at 30 fps."""
    return 3 * CEPSTRA * windows_per_frame(sample_rate, fps)


def framed(waveform: ArrayLike, sample_rate: int, fps: float, num_frames: int | None = None) -> NDArray[np.float32]:
    """Cut a waveform into video frames, zero-padded or truncated to ``num_frames`` (default: as many as it touches).

    Returns:
        float32 of shape ``(num_frames, samples_per_frame)``.
    """
    wave = np.asarray(waveform, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(f"waveform must have one dimension (average the channels first), got shape {wave.shape}")
    size = samples_per_frame(sample_rate, fps)
    if num_frames is None:
        num_frames = -(-len(wave) // size)
    wave = wave[: num_frames * size]
    if len(wave) < num_frames * size:
        wave = np.pad(wave, (0, num_frames * size - len(wave)))
    return wave.reshape(num_frames, size)


def mfcc(waveform: ArrayLike, sample_rate: int, *, fps: float = 25, num_frames: int | None = None) -> NDArray[np.float32]:
    """MFCC with deltas, one row per video frame, as the REACT 2024 baselines compute them.

    Args:
        waveform: ``(samples,)`` in [-1, 1], not scaled to 16-bit integers.
        sample_rate: in Hz, 1 kHz to 1 MHz; a frame must hold at least one window of 25 ms.
        fps: video frames per second.
        num_frames: rows wanted; the waveform is zero-padded or truncated to them. Default: as many as it touches.

    Returns:
        float32 ``(num_frames, 39 * windows_per_frame)``: 78 columns at 25 fps. Zero padding gives the same row whatever stands
        beside it, because no window reaches over the edge of its frame.

    Raises:
        ValueError: the waveform is not one-dimensional, the rate is out of bounds, or a video frame is shorter than one window.
    """
    frames = framed(waveform, sample_rate, fps, num_frames)
    windows = windows_per_frame(sample_rate, fps)
    if windows < 1:
        raise ValueError(f"one frame at {fps:g} fps lasts {1000 / fps:.1f} ms, less than the window of {_WINDOW_MS:g} ms that MFCC needs")
    size, hop = _window(sample_rate), _hop(sample_rate)
    # Laying the windows end to end turns thousands of calls into one. Kaldi's windows are independent of each other (offset removal,
    # pre-emphasis and energy are taken inside a window), so the result is the same bit for bit.
    laid = np.lib.stride_tricks.sliding_window_view(frames, size, axis=1)[:, ::hop]
    static = _cepstra(np.ascontiguousarray(laid).reshape(-1), sample_rate).reshape(len(frames), windows, CEPSTRA)
    matrix = _delta_matrix(windows)
    delta = np.einsum("ij,njc->nic", matrix, static)
    stacked = np.stack([static, delta, np.einsum("ij,njc->nic", matrix, delta)], axis=1)  # (frame, order, window, cepstrum)
    return np.ascontiguousarray(stacked.transpose(0, 1, 3, 2)).reshape(len(frames), 3 * CEPSTRA * windows)


def _window(sample_rate: int) -> int:
    return int(sample_rate * 0.001 * _WINDOW_MS)


def _hop(sample_rate: int) -> int:
    return int(sample_rate * 0.001 * _HOP_MS)


def _cepstra(laid: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Kaldi MFCC of windows that stand end to end: ``(windows * window,) -> (windows, 13)``."""
    options = knf.MfccOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.frame_length_ms = _WINDOW_MS
    options.frame_opts.frame_shift_ms = _WINDOW_MS
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.use_energy = True
    options.energy_floor = 1.0
    options.num_ceps = CEPSTRA
    extractor = knf.OnlineMfcc(options)
    extractor.accept_waveform(sample_rate, laid)
    extractor.input_finished()
    rows = extractor.num_frames_ready
    if rows * _window(sample_rate) != len(laid):
        raise RuntimeError(
            f"kaldi-native-fbank made {rows} windows of {len(laid)} samples, {len(laid) // _window(sample_rate)} were laid out"
        )
    return np.stack([extractor.get_frame(i) for i in range(rows)]) if rows else np.empty((0, CEPSTRA), np.float32)


def _delta_matrix(windows: int) -> NDArray[np.float32]:
    """The regression over five windows with repeated edges as a matrix: ``sum_n n (c[t+n] - c[t-n]) / (2 sum_n n^2)``."""
    matrix = np.zeros((windows, windows))
    for t in range(windows):
        for n in range(1, _DELTA_REACH + 1):
            matrix[t, min(t + n, windows - 1)] += n
            matrix[t, max(t - n, 0)] -= n
    return (matrix / (2 * sum(n * n for n in range(1, _DELTA_REACH + 1)))).astype(np.float32)
