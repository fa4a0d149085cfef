"""Which frames of which modality are withheld from a model that is to show what it does without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .seeds import MISSING, derive

RUN_FRAMES = 25
"""Mean length of a run of missing frames: a second, a turned head or a noisy phrase rather than flicker."""


def parse_missing(text: str | float | None) -> str | float | None:
    """Return ``"face"``, ``"speech"``, a fraction in (0, 1], or None; anything else is a ValueError."""
    if text is None or text in ("face", "speech"):
        return text
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise ValueError(f"missing is {text!r}; face, speech or a fraction of the frames above 0 and up to 1 is taken")
    return fraction


def missing_runs(frames: int, fraction: float, *, seed: int, clip: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (face, speech), bool (frames,), True where the modality is withheld; never both in one frame.

    The process: round(fraction * frames) frames are cut into runs whose lengths are geometric with mean `RUN_FRAMES`; the other frames
    are dealt out as the gaps before, between and after them, every way of doing so being equally likely; each run takes the face or the
    speech with probability one half. All of it is a function of (seed, clip, frames, fraction).
    """
    random = np.random.Generator(np.random.Philox(key=derive(seed, MISSING, clip)))
    left = round(fraction * frames)
    lengths: list[int] = []
    while left:
        lengths.append(min(int(random.geometric(1 / RUN_FRAMES)), left))
        left -= lengths[-1]
    # A uniform composition of the remaining frames into len(lengths) + 1 gaps: where the runs stand in a row of runs and free frames.
    free = frames - sum(lengths)
    places = np.sort(random.choice(free + len(lengths), size=len(lengths), replace=False)) if lengths else np.empty(0, int)
    face, speech = np.zeros(frames, bool), np.zeros(frames, bool)
    start, taken = 0, 0
    for number, (place, length) in enumerate(zip(places, lengths, strict=True)):
        start = int(place) - number + taken
        (face if random.random() < 0.5 else speech)[start : start + length] = True
        taken += length
    return face, speech


def withhold(
    face: NDArray[np.bool_], speech: NDArray[np.bool_], missing: str | float | None, *, seed: int, clip: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what is left of two availability masks, bool (T,), when ``missing`` is withheld from a clip.

    A fraction never takes the last modality of a frame: where the corpus itself has only one, that one stays.
    """
    if missing is None:
        return face, speech
    if missing == "face":
        return np.zeros_like(face), speech
    if missing == "speech":
        return face, np.zeros_like(speech)
    no_face, no_speech = missing_runs(len(face), float(missing), seed=seed, clip=clip)
    return face & ~(no_face & speech), speech & ~(no_speech & face)
