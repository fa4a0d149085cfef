"""From the files of one person in one clip to arrays, with or without a cache in between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from . import prosody
from .audio import load_audio, mfcc, mfcc_dim
from .corpus import RoleClip
from .names import COEFFICIENT_DIM, EMOTION_DIM, SPEECH_EMOTION_DIM
from .readers import read_coefficients, read_emotion, read_speech_emotion

#: A speech emotion recogniser: ``(waveform (samples,), sample_rate, *, fps) -> (T, 10)``.
SpeechEmotion = Callable[..., NDArray[np.float32]]
Streams = dict[str, NDArray[np.float32]]

#: Files of a clip from which each stream is made.
SOURCES: dict[str, tuple[str, ...]] = {
    "emotion": ("emotion",),
    "coefficients": ("coefficients",),
    "mfcc": ("audio",),
    "speech_emotion": ("audio", "speech_emotion"),
}
_VERSION = 2  # raise it when any of the numbers below change: caches are keyed by it


@dataclass(frozen=True)
class FeatureOptions:
    """What the features of a clip depend on besides its files.

    Attributes:
        fps: video frames per second.
        speech_emotion: the recogniser used where a clip has no precomputed speech emotion.
    """

    fps: float = 25.0
    speech_emotion: SpeechEmotion = prosody.speech_emotion

    @cached_property
    def widths(self) -> dict[str, int]:
        """Columns of each stream."""
        speech = mfcc_dim(44100, self.fps)
        return {"emotion": EMOTION_DIM, "coefficients": COEFFICIENT_DIM, "mfcc": speech, "speech_emotion": SPEECH_EMOTION_DIM}

    def describe(self) -> dict[str, Any]:
        """The options as JSON.

        Raises:
            DataError: the recogniser has no ``cache_name``, so nothing tells whether cached features came from this one.
        """
        name = getattr(self.speech_emotion, "cache_name", None)
        if not isinstance(name, str) or not name:
            raise DataError(
                f"the speech emotion recogniser {self.speech_emotion!r} has no cache_name, and the feature cache is keyed by it; "
                "give it that attribute, a string that changes with its weights"
            )
        return {"version": _VERSION, "fps": float(self.fps), "speech_emotion": name}

    def digest(self) -> str:
        """Twelve hexadecimal digits that differ where the features do; DataError as in :meth:`describe`."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:12]


def read_streams(clip: RoleClip, options: FeatureOptions) -> Streams:
    """Read and compute every stream that the clip's files give.

    Returns:
        float32 ``(T_stream, width)`` under the names of :data:`SOURCES`; a stream whose file is absent is left out; NaN marks holes.
        Lengths are the files' own. Speech streams have a row for every video frame that the sound touches.

    Raises:
        DataError: a file that is there cannot be used.
    """
    streams: Streams = {}
    if clip.emotion is not None:
        streams["emotion"] = read_emotion(clip.emotion)
    if clip.coefficients is not None:
        streams["coefficients"] = read_coefficients(clip.coefficients)
    if clip.audio is not None:
        waveform, rate = load_audio(clip.audio)
        try:
            streams["mfcc"] = mfcc(waveform, rate, fps=options.fps)
        except ValueError as error:
            raise DataError(f"{clip.audio}: at {rate} Hz gives no features ({error})") from error
        if streams["mfcc"].shape[1] != options.widths["mfcc"]:
            found = streams["mfcc"].shape[1]
            raise DataError(
                f"{clip.audio}: at {rate} Hz gives {found} MFCC columns a frame, {options.widths['mfcc']} are taken; resample it"
            )
        if clip.speech_emotion is None:
            streams["speech_emotion"] = _recognised(clip, waveform, rate, options)
    if clip.speech_emotion is not None:
        streams["speech_emotion"] = read_speech_emotion(clip.speech_emotion)
    return streams


def _recognised(clip: RoleClip, waveform: NDArray[np.float32], rate: int, options: FeatureOptions) -> NDArray[np.float32]:
    values = np.asarray(options.speech_emotion(waveform, rate, fps=options.fps), dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != SPEECH_EMOTION_DIM:
        raise DataError(
            f"{clip.audio}: the speech emotion recogniser {options.speech_emotion!r} gave shape {values.shape}; "
            f"(T, {SPEECH_EMOTION_DIM}) is taken: valence, arousal, 8 expressions"
        )
    return values
