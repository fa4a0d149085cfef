"""Numbers into text: streams quantised channel by channel, masks as runs of missing frames, sound as a data URI."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

EMOTION_DIM = 25
COEFFICIENT_DIM = 58
EXPRESSION_DIM = 52  # of the 58; the other six are rotation and translation

_SOUND_TYPES = ((b"RIFF", "audio/wav"), (b"OggS", "audio/ogg"), (b"fLaC", "audio/flac"), (b"ID3", "audio/mpeg"))


def quantise(values: npt.NDArray[np.floating[Any]], *, bits: int, valid: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Quantise a stream (T, C) to ``bits`` (8 or 16) per value, each channel over its own range.

    A value comes back as ``lo[c] + step[c] * code``, within ``step[c] / 2``, and ``step[c]`` is that channel's range / (2**bits - 1).
    Frames outside ``valid`` (T,) bool carry code 0 and take no part in the range, so nothing of them reaches the page.
    Returns ``{"bits", "lo": [C], "step": [C], "codes": base64}`` with the codes channel after channel (C, T), little-endian.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits: got {bits}, takes 8 or 16")
    frames = values.astype(np.float64)
    if valid is not None:
        frames = np.where(valid[:, None], frames, np.nan)
    seen = frames[np.isfinite(frames).all(axis=1)]
    top = 2**bits - 1
    if len(seen):
        # Rounded before the codes are made: what the page multiplies with is what was divided by.
        lo = np.array([float(f"{v:.9g}") for v in seen.min(axis=0)])
        step = np.array([float(f"{v:.9g}") for v in (seen.max(axis=0) - seen.min(axis=0)) / top])
    else:
        lo = step = np.zeros(frames.shape[1])
    scaled = (np.nan_to_num(frames, nan=0.0) - lo) / np.where(step > 0, step, 1.0)
    codes = np.clip(np.rint(scaled), 0, top)
    codes = np.where(np.isfinite(frames) & (step > 0), codes, 0).astype(f"<u{bits // 8}")
    text = base64.b64encode(np.ascontiguousarray(codes.T).tobytes()).decode("ascii")
    return {"bits": bits, "lo": lo.tolist(), "step": step.tolist(), "codes": text}


def dequantise(packed: dict[str, Any], frames: int) -> npt.NDArray[np.float64]:
    """Undo :func:`quantise`: (T, C) float64. The page does the same in JavaScript."""
    raw = np.frombuffer(base64.b64decode(packed["codes"]), dtype=f"<u{packed['bits'] // 8}")
    lo, step = np.asarray(packed["lo"]), np.asarray(packed["step"])
    return (lo[:, None] + step[:, None] * raw.reshape(len(lo), frames)).T


def centre_pose(pose: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float64]:
    """Rotation (radians) and translation (T, 6) relative to the clip's own mean.

    Rotations average on the circle, because FaceVerse's pitch lies around pi: it must not matter on which side of the seam a frame falls.
    """
    values = pose.astype(np.float64)
    seen = values if valid is None else values[valid]
    if not len(seen):
        return np.zeros_like(values)
    rotation = seen[:, :3]
    mean = np.arctan2(np.sin(rotation).mean(axis=0), np.cos(rotation).mean(axis=0))
    turned = values[:, :3] - mean
    return np.concatenate([np.arctan2(np.sin(turned), np.cos(turned)), values[:, 3:] - seen[:, 3:].mean(axis=0)], axis=1)


def missing_runs(available: npt.NDArray[np.bool_]) -> list[list[int]]:
    """The runs [start, end) of frames that are not available."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], available, [True]]).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def pack_stream(
    emotion: npt.NDArray[Any] | None, coefficients: npt.NDArray[Any] | None, valid: npt.NDArray[np.bool_] | None
) -> dict[str, Any]:
    """One person: emotion (T, 25) and expression coefficients (T, 52) in 8 bits, pose (T, 6) relative to its mean in 16 bits."""
    packed: dict[str, Any] = {}
    if emotion is not None:
        packed["emotion"] = quantise(emotion, bits=8, valid=valid)
    if coefficients is not None:
        packed["expression"] = quantise(coefficients[:, :EXPRESSION_DIM], bits=8, valid=valid)
        # Eight bits would let a slow turn of the head go in visible jerks.
        packed["pose"] = quantise(centre_pose(coefficients[:, EXPRESSION_DIM:], valid), bits=16, valid=valid)
    return packed


def pack_audio(sound: bytes, *, fps: float, frames: int, name: str) -> dict[str, Any]:
    """The sound as a data URI, and its loudness per video frame (RMS, 0..255 of the loudest) for the speech track.

    Raises DataError when libsndfile cannot read it, or when it holds samples that are not finite.
    """
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"audio: cannot read {name} as a sound file ({error}); give a wav, flac or ogg file") from error
    if not len(wave):
        raise DataError(f"audio: {name} holds no samples")
    if not np.isfinite(wave).all():
        raise DataError(f"audio: {name} holds samples that are not finite; a recording of numbers, usually in [-1, 1], is taken")
    power = np.square(wave.mean(axis=1, dtype=np.float64))
    edges = np.minimum((np.arange(frames + 1) * (rate / fps)).astype(np.int64), len(power))
    sums = np.concatenate([[0.0], np.cumsum(power)])
    rms = np.sqrt(np.maximum(sums[edges[1:]] - sums[edges[:-1]], 0.0) / np.maximum(edges[1:] - edges[:-1], 1))
    level = np.rint(255 * rms / max(float(rms.max()), 1e-9)).astype(np.uint8)
    kind = next((mime for magic, mime in _SOUND_TYPES if sound.startswith(magic)), "audio/mpeg")
    return {
        "uri": f"data:{kind};base64,{base64.b64encode(sound).decode('ascii')}",
        "level": base64.b64encode(level.tobytes()).decode("ascii"),
    }
