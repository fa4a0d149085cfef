"""Lay a synthetic corpus out as a REACT 2024 tree."""

from __future__ import annotations

import shutil
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ...errors import DataError
from ..jobs import progress_bar
from ..names import EMOTION_NAMES
from . import face, voice
from .script import Part, follow, lead, vary

_RECOLA_EVERY = 8  # each eighth session takes the other site's names, so that both are exercised


@dataclass(frozen=True)
class _Pair:
    """One row of a list, relative paths as written there."""

    site: str
    session: str
    persons: tuple[str, str]
    clip: int
    group: int

    def path(self, role: int) -> str:
        return f"{self.site}/{self.session}/{self.persons[role]}/{self.clip}"


@dataclass(frozen=True)
class _Settings:
    frames: int
    fps: float
    seed: int
    neighbours: int
    lag: tuple[int, int]
    noise: float
    sample_rate: int


def synthesize_corpus(
    root: str | Path,
    *,
    train: int = 48,
    val: int = 16,
    test: int = 16,
    frames: int = 750,
    fps: float = 25,
    seed: int = 0,
    neighbours: int = 4,
    lag: tuple[int, int] = (10, 25),
    noise: float = 0.25,
    sample_rate: int = 16000,
    progress: bool = False,
    console: Console | None = None,
) -> Path:
    """Write a seeded synthetic corpus in the REACT 2024 layout, labelled synthetic in its own README.

    Clips come in groups of ``neighbours`` whose leaders act one script; the reactions of a group are appropriate for each of its
    leaders, and the same holds with the roles swapped. The same arguments give the same bytes (on the same NumPy and kind of CPU).

    Args:
        root: a folder that does not exist yet, or is empty.
        train: pairs in the training list; likewise ``val`` and ``test`` (0 leaves a split out).
        frames: frames of a clip (3DMM files hold one more, as the real ones do).
        fps: frames per second.
        seed: of everything.
        neighbours: appropriate reactions per speaker; a remainder makes one smaller group.
        lag: least and most frames by which a follower lags, drawn per clip.
        noise: of the follower and of the trackers; 0 makes reactions a function of the leader and the follower's style.
        sample_rate: of the wav files, in Hz.
        progress: show a bar.
        console: where to show it.

    Returns:
        the root.

    Raises:
        DataError: the folder holds something already, or cannot be written (nothing is left then).
        ValueError: an argument is out of range.
    """
    counts = {"train": train, "val": val, "test": test}
    for name, value, least in (
        *((name, count, 0) for name, count in counts.items()),
        ("frames", frames, 8),
        ("neighbours", neighbours, 1),
        ("sample_rate", sample_rate, 8000),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < fps <= 60 or noise < 0 or not 0 <= lag[0] <= lag[1]:
        raise ValueError(f"fps in (0, 60], noise >= 0 and 0 <= lag[0] <= lag[1] are taken, got {fps}, {noise}, {lag}")
    if sum(counts.values()) == 0:
        raise ValueError("train, val and test are all 0; at least one pair is needed")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists and is not an empty folder; name a new one, or remove it first")
    settings = _Settings(frames, fps, seed, neighbours, lag, noise, sample_rate)
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = root.parent / f".{root.resolve().name}.{uuid.uuid4().hex[:8]}"
    try:
        aside.mkdir()
        with progress_bar(console, disable=not progress) as bar:
            task = bar.add_task("synthetic corpus", total=sum(counts.values()))
            for split, count in counts.items():
                if count:
                    for _ in _write_split(aside, split, count, settings):
                        bar.advance(task)
        np.save(aside / "mean_face.npy", face.MEAN_FACE)
        (aside / "README.md").write_text(_readme(counts, settings), encoding="utf-8")
        aside.replace(root)
    except OSError as error:
        size = sum(counts.values()) * 2 * frames * (2 * int(sample_rate / fps) + 450) / 1e6
        raise DataError(f"{root}: the corpus cannot be written ({error}); it needs about {size:.0f} MB of free space") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return root


def _write_split(root: Path, split: str, count: int, settings: _Settings) -> Iterator[None]:
    """Write clip after clip (yielding after each), then the list and the matrix."""
    number = ("train", "val", "test").index(split)
    shuffle = np.random.default_rng((settings.seed, number, 0))
    groups = shuffle.permutation(np.arange(count) // settings.neighbours)
    pairs = [_name(number, i, int(group)) for i, group in enumerate(groups)]
    for i, pair in enumerate(pairs):
        script = lead(np.random.default_rng((settings.seed, number, 1, pair.group)), settings.frames + 1, settings.fps)
        draw = np.random.default_rng((settings.seed, number, 2, i))
        leader = vary(draw, script, settings.fps)
        follower = follow(draw, leader, settings.fps, lag=settings.lag, noise=settings.noise)
        for role, part in enumerate((leader, follower)):
            _write_role(root / split, pair, role, part, draw, settings)
        yield
    rows = [f"{i},{pair.path(0)},{pair.path(1)}" for i, pair in enumerate(pairs)]
    (root / f"{split}.csv").write_text("\n".join([",speaker_path,listener_path", *rows]) + "\n", encoding="utf-8")
    same = groups[:, None] == groups[None, :]
    apart = np.zeros_like(same)
    matrix = np.block([[same, apart], [apart, same]]).astype(np.float64)
    np.save(root / f"neighbour_emotion_{split}.npy", matrix)


def _name(split: int, i: int, group: int) -> _Pair:
    session, clip = i // 4, i % 4 + 1
    if session % _RECOLA_EVERY == _RECOLA_EVERY - 1:
        return _Pair("RECOLA", f"group-{split * 1000 + session}", ("P25", "P26"), clip, group)
    return _Pair("NoXI", f"{split}{session:03d}_synthetic", ("Expert_video", "Novice_video"), clip, group)


def _write_role(root: Path, pair: _Pair, role: int, part: Part, draw: np.random.Generator, settings: _Settings) -> None:
    who = pair.path(role)
    # Emotion folders of the corpus as released call the persons P1 and P2 at one site; the reader must find them.
    emotion_of = who.replace(f"/{pair.persons[role]}/", f"/P{role + 1}/") if pair.site == "RECOLA" else who
    paths = {
        "3D_FV_files": root / "3D_FV_files" / f"{who}.npy",
        "Emotion": root / "Emotion" / f"{emotion_of}.csv",
        "Audio_files": root / "Audio_files" / f"{who}.wav",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    np.save(paths["3D_FV_files"], face.coefficients(draw, part, settings.fps, settings.noise)[:, None])
    _write_csv(paths["Emotion"], face.emotion(draw, part, settings.noise)[: settings.frames])
    samples = int(settings.sample_rate / settings.fps) * settings.frames
    wave = voice.speak(draw, part, voice.draw_voice(draw), fps=settings.fps, sample_rate=settings.sample_rate, samples=samples)
    _write_wav(paths["Audio_files"], wave, settings.sample_rate)


def _write_csv(path: Path, rows: NDArray[np.float32]) -> None:
    line = ",".join(["%.5f"] * rows.shape[1])
    text = "\n".join([line] * len(rows)) % tuple(rows.ravel().tolist())
    path.write_text(",".join(EMOTION_NAMES) + "\n" + text + "\n", encoding="utf-8")


def _write_wav(path: Path, wave: NDArray[np.float32], sample_rate: int) -> None:
    """16-bit PCM, mono: written by hand because the bytes are then the same whatever library version is there."""
    data = np.round(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    header = struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + form + struct.pack("<4sI", b"data", len(data))
    path.write_bytes(header + data)


def _readme(counts: dict[str, int], settings: _Settings) -> str:
    sizes: Sequence[str] = [f"{count} pairs in `{split}`" for split, count in counts.items() if count]
    return f"""# Synthetic conversations

**Everything here is synthetic.** No person was recorded. The files have the layout and formats of the REACT 2024 corpus, so that programs
for it can be tried; results on them say nothing about results on the real corpus.

{", ".join(sizes)}; {settings.frames} frames at {settings.fps:g} fps, sound at {settings.sample_rate} Hz.
Made with seed {settings.seed}, {settings.neighbours} appropriate reactions per speaker, lags of {settings.lag[0]} to {settings.lag[1]}
frames, noise {settings.noise:g}.

In each pair the listed speaker's affect leads and the listener's follows: later by the lag, smoothed, scaled by a personal style, with
noise, and with nods after phrases. The voice is a buzz through formants; its pitch, level and timbre follow the speaker's affect.
`neighbour_emotion_*.npy` marks the reactions to the same script as appropriate, in both roles.
"""
