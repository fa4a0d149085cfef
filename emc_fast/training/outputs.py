"""The files of a generation: mapped into memory while they are written, reserved on the disk before the first clip is computed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

EMOTION_WIDTH, COEFFICIENT_WIDTH = 25, 58


def reserved_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.memmap:
    """Create an npy file of zeros and return it mapped for writing.

    Its blocks are reserved first: on a full disk this is an OSError here, not a bus error at some write to the mapped memory later.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate") and array.size:
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    what = f"cannot reserve {os.path.getsize(path)} bytes ({os.strerror(error.errno)})"
                    raise OSError(error.errno, what, str(path)) from error
    return array


class GenerationFiles:
    """The arrays of N clips with K reactions of up to T frames in a directory: what is beyond a clip's length stays zero."""

    def __init__(self, directory: Path, clips: int, samples: int, frames: int) -> None:
        self.emotion = reserved_array(directory / "prediction_emotion.npy", (clips, samples, frames, EMOTION_WIDTH))
        self.coefficients = reserved_array(directory / "prediction_3dmm.npy", (clips, samples, frames, COEFFICIENT_WIDTH))
        self.face_available = reserved_array(directory / "face_available.npy", (clips, frames), bool)
        self.speech_available = reserved_array(directory / "speech_available.npy", (clips, frames), bool)

    def put(
        self,
        clip: int,
        *,
        emotion: NDArray[np.float32],
        coefficients: NDArray[np.float32],
        face_available: NDArray[np.bool_],
        speech_available: NDArray[np.bool_],
    ) -> None:
        """Write one clip: emotion (K,T,25), coefficients (K,T,58), availability (T,), with its own T."""
        frames = len(face_available)
        self.emotion[clip, :, :frames] = emotion
        self.coefficients[clip, :, :frames] = coefficients
        self.face_available[clip, :frames] = face_available
        self.speech_available[clip, :frames] = speech_available

    def flush(self) -> None:
        """Hand everything to the operating system, which raises here what it could not write."""
        for array in (self.emotion, self.coefficients, self.face_available, self.speech_available):
            array.flush()
