"""One clip from loose files: a recording, and what was measured on a face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import load_audio, mfcc, read_coefficients, read_emotion
from ..data import speech_emotion as emotion_of_speech
from ..data.names import EMOTION_DIM, SPEECH_EMOTION_DIM
from ..data.readers import load_array
from ..errors import DataError

SLACK_FRAMES = 1
"""Frames by which streams of one clip may differ in length; the surplus is cut off."""


def _read_rows(path: Path, width: int, what: str) -> NDArray[np.float32]:
    if path.suffix == ".csv":
        if width != EMOTION_DIM:
            raise DataError(f"{path}: is a csv; {what} is taken from an npy file of shape (T, {width})")
        return read_emotion(path)
    rows = load_array(path, f"{what} of shape (T, {width})")
    if rows.ndim == 3 and rows.shape[1] == 1:
        rows = rows[:, 0]
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise DataError(f"{path}: has shape {rows.shape}; {what} of shape (T, {width}) is taken")
    return rows.astype(np.float32)


class SingleClip:
    """A data set of one clip, read from files, in the form of ``REACTDataset`` (without targets).

    The face is 3DMM coefficients ``(T, 58)`` as trackers give them; ``mean_face`` (58,) is subtracted. Without speech emotion the prosody
    heuristic is applied to the recording. NaN in the face's files marks a frame in which no face was found.

    Raises:
        DataError: no stream at all; a face without its emotion, or the reverse; a file that is unreadable, truncated or of another
            width; streams whose lengths differ by more than one frame.
    """

    def __init__(
        self,
        *,
        wav: str | Path | None = None,
        face: str | Path | None = None,
        face_emotion: str | Path | None = None,
        speech_emotion: str | Path | None = None,
        mean_face: NDArray[np.float32] | None = None,
        fps: float = 25,
    ) -> None:
        if wav is None and face is None:
            raise DataError("no stream is given: a recording (--wav), a face (--face with --face-emotion) or both are taken")
        if (face is None) != (face_emotion is None):
            raise DataError("a face needs its emotion and the reverse: give both --face and --face-emotion, or neither")
        if wav is None and speech_emotion is not None:
            raise DataError("--speech-emotion belongs to a recording: give --wav too")
        self.mean_face = np.zeros(58, np.float32) if mean_face is None else mean_face
        self.fps, self.name = fps, Path(wav or face or "").stem
        self.files = {"wav": wav, "face": face, "face_emotion": face_emotion, "speech_emotion": speech_emotion}
        streams: dict[str, tuple[str, NDArray[np.float32]]] = {}
        if face is not None and face_emotion is not None:
            streams["face"] = str(face), read_coefficients(face) - self.mean_face
            streams["face_emotion"] = str(face_emotion), _read_rows(Path(face_emotion), EMOTION_DIM, "emotion of a face")
        if wav is not None:
            wave, rate = load_audio(wav)
            streams["speech"] = str(wav), mfcc(wave, rate, fps=fps)
            if speech_emotion is None:
                streams["speech_emotion"] = str(wav), emotion_of_speech(wave, rate, fps=fps)
            else:
                streams["speech_emotion"] = str(speech_emotion), _read_rows(Path(speech_emotion), SPEECH_EMOTION_DIM, "emotion of speech")
        counts = {name: len(rows) for name, (_, rows) in streams.items()}
        if max(counts.values()) - min(counts.values()) > SLACK_FRAMES:
            listed = ", ".join(f"{name} {counts[name]} ({path})" for name, (path, _) in streams.items())
            raise DataError(f"the streams differ by more than {SLACK_FRAMES} frame at {fps:g} fps: {listed}. Cut them to the same length")
        self.frames = min(counts.values())
        self.streams = {name: rows[: self.frames] for name, (_, rows) in streams.items()}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index:
            raise IndexError(index)
        sample: dict[str, Any] = {"length": self.frames, "index": 0, "name": self.name}
        for modality in ("face", "speech"):
            names = (modality, f"{modality}_emotion")
            present = np.full(self.frames, modality in self.streams)
            for name in names:
                if name in self.streams:
                    present &= np.isfinite(self.streams[name]).all(1)
            sample[f"{modality}_available"] = torch.from_numpy(present)
            for name in names:
                if name in self.streams:
                    sample[name] = torch.from_numpy(np.where(present[:, None], self.streams[name], np.float32(0)))
        return sample
