"""Arrays into one HTML file that needs nothing else: style, program and data stand inside it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import write_text
from ..errors import DataError
from .pack import COEFFICIENT_DIM, EMOTION_DIM, missing_runs, pack_audio, pack_stream
from .source import Clip

# In the order in which they build on each other; they share one function scope on the page.
_SCRIPTS = ("data.js", "controls.js", "face.js", "features.js", "tracks.js", "plane.js", "app.js")
_STYLES = ("style.css", "face.css", "tracks.css")


def write_html(
    path: str | os.PathLike[str],
    *,
    reaction_emotion: Any,
    reaction_3dmm: Any = None,
    speaker_emotion: Any = None,
    speaker_3dmm: Any = None,
    face_available: Any = None,
    speech_available: Any = None,
    fps: float = 25.0,
    title: str = "",
    audio: str | os.PathLike[str] | bytes | None = None,
    length: int | None = None,
    draw_names: Sequence[str] | None = None,
) -> Path:
    """Write a page that plays K reactions of one clip beside their speaker, and return its path.

    Arrays are NumPy arrays or tensors of any floating type; names of draws and the title are shown as text, never as markup.

    Args:
        path: the file to write; its folder must exist. An older file is replaced only once the new one is whole.
        reaction_emotion: (K, T, 25), 15 action units, valence, arousal, 8 expressions; finite.
        reaction_3dmm: (K, T, 58) or None, 52 expression coefficients, rotation (radians), translation; finite.
        speaker_emotion: (T, 25) or None; must be finite where the face is available.
        speaker_3dmm: (T, 58) or None, likewise. Of unavailable frames nothing is written to the page.
        face_available: (T,) bool, None = all frames.
        speech_available: (T,) bool, None = all frames.
        fps: frames per second.
        title: the page's heading, such as the clip's name.
        audio: the speaker's voice, a path or the bytes of a wav (flac, ogg) file; embedded as it is.
        length: frames that count; the rest is padding and is cut off. None = T.
        draw_names: K names; by default the indices along K ("Reaction 0", ...).

    Raises:
        DataError: (a ValueError) naming the argument, what it was and what is taken, before anything is written.

    The same arguments give the same bytes. Values are quantised (see :func:`emc_fast.viewer.pack.quantise`).
    """
    emotion = _array("reaction_emotion", reaction_emotion, (None, None, EMOTION_DIM))
    draws, total = emotion.shape[:2]
    if not draws or not total:
        raise DataError(f"reaction_emotion: got shape {emotion.shape}, takes at least one draw and one frame")
    frames = _length(length, total)
    if not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
        raise DataError(f"fps: got {fps!r}, takes a positive number of frames per second")
    if not isinstance(title, str):
        raise DataError(f"title: got {title!r}, takes a string (none: '')")
    names = _names(draw_names, draws)

    emotion = emotion[:, :frames]
    coefficients = None
    if reaction_3dmm is not None:
        coefficients = _array("reaction_3dmm", reaction_3dmm, (draws, total, COEFFICIENT_DIM))[:, :frames]
    face = _mask("face_available", face_available, total)[:frames]
    speech = _mask("speech_available", speech_available, total)[:frames]
    everywhere = np.ones(frames, dtype=bool)
    _finite("reaction_emotion", emotion, everywhere)
    if coefficients is not None:
        _finite("reaction_3dmm", coefficients, everywhere)
    known: dict[str, npt.NDArray[Any] | None] = {"speaker_emotion": None, "speaker_3dmm": None}
    for name, given, width in (("speaker_emotion", speaker_emotion, EMOTION_DIM), ("speaker_3dmm", speaker_3dmm, COEFFICIENT_DIM)):
        if given is not None:
            known[name] = rows = _array(name, given, (total, width))[:frames]
            _finite(name, rows, face)

    payload: dict[str, Any] = {
        "title": title,
        "fps": float(fps),
        "frames": frames,
        "missing": {"face": missing_runs(face), "speech": missing_runs(speech)},
        "speaker": None,
        "reactions": [
            {"name": names[k], **pack_stream(emotion[k], None if coefficients is None else coefficients[k], None)} for k in range(draws)
        ],
        "audio": None if audio is None else _audio(audio, fps=float(fps), frames=frames),
    }
    anything = (speaker_emotion, speaker_3dmm, face_available, speech_available, audio)
    if any(part is not None for part in anything):
        payload["speaker"] = {"name": "Speaker", **pack_stream(known["speaker_emotion"], known["speaker_3dmm"], face)}
    return _write_whole(Path(path), _page(payload, title))


def _page(payload: dict[str, Any], title: str) -> str:
    """Fill the page's template."""
    here = resources.files(__package__)
    style, body = ("\n".join(here.joinpath(name).read_text(encoding="utf-8") for name in names) for names in (_STYLES, _SCRIPTS))
    script = f'\n(function () {{\n"use strict";\n{body}}})();\n'
    # "<" never occurs in the data block, so no name in it can close the block or open a comment.
    data = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        # Only this program and this style may run or load, whatever else might find its way into the page.
        policy=f"default-src 'none'; media-src data:; script-src {_digest(script)}; style-src {_digest(style)}",
        title=html.escape(title) or "Reactions",
        style=style,
        data=data,
        script=script,
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _write_whole(path: Path, text: str) -> Path:
    """Write aside in the same folder, then rename: a reader sees the old page or the new one, never a part."""
    if not path.parent.is_dir():
        raise DataError(f"path: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise DataError(f"path: {path} is a folder; give a file name such as {path / 'reaction.html'}")
    write_text(path, text)
    return path


def _array(name: str, value: Any, shape: tuple[int | None, ...]) -> npt.NDArray[np.floating[Any]]:
    """``value`` as a floating array of ``shape``, None standing for any size."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name}: cannot be made an array ({error})") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name}: got dtype {array.dtype}, takes real numbers")
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
        raise DataError(f"{name}: got shape {array.shape}, takes {wanted}")
    return array.astype(np.float32, copy=False) if array.dtype.kind != "f" else array


def _mask(name: str, value: Any, frames: int) -> npt.NDArray[np.bool_]:
    if value is None:
        return np.ones(frames, dtype=bool)
    array = _array(name, value, (frames,))
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"{name}: takes bool (True = available), got values other than 0 and 1")
    return array.astype(bool)


def _finite(name: str, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
    bad = ~np.isfinite(values) & valid[:, None]
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        axes = ("draw", "frame", "channel")[-len(where) :]
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, where, strict=True))
        hint = "; frames without a face belong in face_available" if name.startswith("speaker") else ""
        raise DataError(f"{name}: not finite in {int(bad.sum())} place(s), first at {place}{hint}")


def _length(length: int | None, total: int) -> int:
    if length is None:
        return total
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or not 1 <= length <= total:
        raise DataError(f"length: got {length!r}, takes an integer from 1 to the {total} frames given")
    return int(length)


def _names(names: Sequence[str] | None, draws: int) -> list[str]:
    if names is None:
        return [f"Reaction {k}" for k in range(draws)]
    if isinstance(names, str) or len(names) != draws or not all(isinstance(name, str) for name in names):
        raise DataError(f"draw_names: got {names!r}, takes {draws} strings, one per draw")
    return list(names)


def _audio(audio: str | os.PathLike[str] | bytes, *, fps: float, frames: int) -> dict[str, Any]:
    if isinstance(audio, bytes | bytearray | memoryview):
        return pack_audio(bytes(audio), fps=fps, frames=frames, name="the given bytes")
    path = Path(audio)
    if not path.is_file():
        raise DataError(f"audio: there is no file {path}")
    return pack_audio(path.read_bytes(), fps=fps, frames=frames, name=str(path))


def write_clip(
    path: str | os.PathLike[str], clip: Clip, *, title: str | None = None, audio: str | os.PathLike[str] | bytes | None = None
) -> Path:
    """Write the page of a clip that :func:`emc_fast.viewer.load_clip` found; ``title`` is its name unless given. See :func:`write_html`."""
    return write_html(
        path,
        reaction_emotion=clip.reaction_emotion,
        reaction_3dmm=clip.reaction_3dmm,
        speaker_emotion=clip.speaker_emotion,
        speaker_3dmm=clip.speaker_3dmm,
        face_available=clip.face_available,
        speech_available=clip.speech_available,
        fps=clip.fps,
        title=clip.name if title is None else title,
        audio=audio,
        length=clip.length,
        draw_names=[f"Reaction {draw}" for draw in clip.draws],
    )
