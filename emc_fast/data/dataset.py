"""The data set: pairs of a corpus as tensors, with masks where the corpus has holes."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .._files import write_array
from ..errors import DataError
from .appropriateness import MatrixAbsentError
from .cache import FeatureCache, signature_of, split_cache_dir
from .corpus import Corpus, RoleClip
from .frames import CROP, list_frames, load_frame
from .names import COEFFICIENT_DIM
from .prosody import speech_emotion as prosodic_emotion
from .react2024 import React2024
from .readers import read_coefficients, read_mean_face
from .streams import FeatureOptions, SpeechEmotion, Streams, read_streams

_log = logging.getLogger("emc_fast.data")


class REACTDataset(Dataset[dict[str, Any]]):
    """Speaker streams and listener targets of one split, clip by clip.

    An item is a dictionary of CPU tensors, T frames each (float32 unless said otherwise):

    ==================== ============== ====================================================================================
    ``face``             (T, 58)        speaker's 3DMM coefficients minus the mean face; (T, 3, 224, 224) with ``input="image"``
    ``speech``           (T, 78)        MFCC of the speaker's sound
    ``face_emotion``     (T, 25)        speaker's emotion row
    ``speech_emotion``   (T, 10)        valence, arousal, expressions from the speaker's sound
    ``face_available``   (T,) bool      face and its emotion are there
    ``speech_available`` (T,) bool      sound and its emotion are there
    ``target_3dmm``      (T, 58)        listener's coefficients minus the mean face
    ``target_emotion``   (T, 25)        listener's emotion row
    ``target_available`` (T,) bool      both targets are there
    ``appropriate_emotion``   (T,J,25)  with ``listeners=J``: emotion of appropriate listeners in the same frames of their clips
    ``appropriate_available`` (T,J)bool with ``listeners=J``: where it is there; fewer than J listeners leave the last columns False
    ``length``           int            T
    ``index``            int            the item's row in ``appropriate`` (where roles were swapped: the mirrored one)
    ``name``             str            the speaker's clip
    ==================== ============== ====================================================================================

    What is unavailable is zero. A missing file makes the whole clip unavailable, a NaN its frame (logged once per clip). All streams
    are cut to the shortest of the visual ones; losing more than one frame is logged. Sound that ends early leaves its frames
    unavailable. Swaps and crops are a function of (seed, epoch, item) alone, whichever process makes the item.

    Args:
        root: a REACT 2024 tree, or any object that satisfies :class:`~emc_fast.data.Corpus`.
        split: ``train``, ``val`` or ``test``.
        clip_length: frames wanted at most; None takes whole clips.
        random_crop: take them from a random place (the published training recipe) instead of the start.
        swap_roles: exchange speaker and listener with probability one half (the published training recipe).
        mirror: also hold every pair with the roles swapped, as the published lists do.
        listeners: take along the emotion of so many listeners that are appropriate for the speaker, drawn anew in each epoch where there
            are more. The matrix of appropriate reactions says who is; the clip's own listener always is. Without a matrix, which is
            logged, and for swapped roles that the matrix has no row for (``mirror=False``), he is the only one.
        seed: of swaps and crops.
        cache_dir: folder of the feature cache, brought up to date first; None reads and computes each time.
        fps: video frames per second of a tree; another kind of corpus brings its own.
        input: ``"features"`` or ``"image"``, the form of the face.
        speech_emotion: recogniser ``(waveform, sample_rate, *, fps) -> (T, 10)`` for clips without precomputed speech emotion; with
            ``cache_dir`` it needs an attribute ``cache_name``, a string that changes with its weights.
        mean_face: (58,) to subtract; default: the tree's ``mean_face.npy``, else the mean over the training clips.
        processes: worker processes for building the cache.
        progress: show a bar while building it.

    Raises:
        DataError: the tree, a list, or a file that an item needs is not as documented, or a speaker has neither face nor sound.
    """

    def __init__(
        self,
        root: str | Path | Corpus,
        split: str = "train",
        *,
        clip_length: int | None = None,
        random_crop: bool = False,
        swap_roles: bool = False,
        mirror: bool = True,
        listeners: int = 0,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        fps: float = 25.0,
        input: str = "features",
        speech_emotion: SpeechEmotion | None = None,
        mean_face: NDArray[np.float32] | None = None,
        processes: int = 1,
        progress: bool = True,
    ) -> None:
        if clip_length is not None and clip_length < 1:
            raise ValueError(f"clip_length must be positive or None, got {clip_length}")
        if input not in ("features", "image"):
            raise ValueError(f"input must be 'features' or 'image', got {input!r}")
        if listeners < 0:
            raise ValueError(f"listeners must be 0 or more, got {listeners}")
        self.corpus: Corpus
        self.corpus = React2024(root, split, mirror=mirror, fps=fps) if isinstance(root, str | Path) else root
        self.split = split
        self.clip_length, self.random_crop, self.swap_roles, self.seed, self.input = clip_length, random_crop, swap_roles, seed, input
        self.options = FeatureOptions(self.corpus.fps, speech_emotion or prosodic_emotion)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see it too
        self._told: set[tuple[str, str]] = set()
        self._appropriate: torch.Tensor | None = None
        self.listeners = listeners
        self._rows = self._appropriate_rows() if listeners else None
        self._check_speakers()
        self._cache: FeatureCache | None = None
        if cache_dir is not None:
            place = split_cache_dir(cache_dir, split, self.options)
            self._cache = FeatureCache.build(
                place, self.corpus.clips, self.options, processes=processes, progress=progress, title=f"features of {split}"
            )
        self.mean_face = self._mean_face(mean_face, cache_dir)

    @property
    def fps(self) -> float:
        """Video frames per second."""
        return self.corpus.fps

    @property
    def speech_dim(self) -> int:
        """Width of ``speech``: 78 at 25 fps."""
        return self.options.widths["mfcc"]

    @property
    def appropriate(self) -> torch.Tensor:
        """Bool (N, N): entry (i, j) says that the listener of item j is appropriate for the speaker of item i; DataError if absent."""
        if self._appropriate is None:
            self._appropriate = torch.from_numpy(np.ascontiguousarray(self.corpus.appropriate()))
        return self._appropriate

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of every item as listed (roles not swapped), (N,). Reads each clip once, so keep a cache where that is slow."""
        streams = {clip: self._streams(self.corpus.clips[clip]) for pair in self.corpus.pairs for clip in pair}
        totals = []
        for speaker, listener in self.corpus.pairs:
            frames = self.corpus.clips[speaker].frames
            images = list_frames(frames) if self.input == "image" and frames is not None else None
            visual, sound = _counts(streams[speaker], streams[listener], images)
            totals.append(min(visual.values(), default=sound))
        longest = np.array(totals, dtype=np.int64)
        return longest if self.clip_length is None else np.minimum(longest, self.clip_length)

    def set_epoch(self, epoch: int) -> None:
        """Draw other swaps and crops; seen by running workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.corpus.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.at(index, epoch=int(self._epoch))

    def at(self, index: int, *, epoch: int) -> dict[str, Any]:
        """An item as it is in an epoch, whatever :meth:`set_epoch` was told: for workers that already read the next one."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"item {index} of {count}")
        index %= count
        draw = np.random.default_rng((self.seed % 2**64, epoch, index))
        speaker, listener = self.corpus.pairs[index]
        row: int | None = index
        if self.swap_roles and draw.random() < 0.5:
            speaker, listener = listener, speaker
            index = (index + count // 2) % count if self.corpus.mirrored else index
            row = index if self.corpus.mirrored else None
        item, crop = self._item(self.corpus.clips[speaker], self.corpus.clips[listener], index, draw)
        return item | self._appropriate_reactions(row, listener, crop, draw) if self.listeners else item

    def _item(self, speaker: RoleClip, listener: RoleClip, index: int, draw: np.random.Generator) -> tuple[dict[str, Any], slice]:
        heard, seen = self._streams(speaker), self._streams(listener)
        images = list_frames(speaker.frames) if self.input == "image" and speaker.frames is not None else None
        visual, sound = _counts(heard, seen, images)
        total = min(visual.values(), default=sound)
        self._report_lengths(speaker.name, total, visual, sound, len(heard.get("speech_emotion", ())))
        length = total if self.clip_length is None else min(total, self.clip_length)
        start = int(draw.integers(total - length + 1)) if self.random_crop else 0
        crop = slice(start, start + length)

        face_emotion, has_emotion = self._part(heard, "emotion", speaker, crop)
        if self.input == "image":
            face, has_face = _images(images, crop)
        else:
            face, has_face = self._coefficients(heard, speaker, crop)
        speech, has_speech = self._part(heard, "mfcc", speaker, crop)
        speech_emotion, has_speech_emotion = self._part(heard, "speech_emotion", speaker, crop)
        target_3dmm, has_3dmm = self._coefficients(seen, listener, crop)
        target_emotion, has_target_emotion = self._part(seen, "emotion", listener, crop)
        face_available, speech_available = has_face & has_emotion, has_speech & has_speech_emotion
        target_available = has_3dmm & has_target_emotion
        arrays = {
            "face": _select(face, face_available),
            "speech": _select(speech, speech_available),
            "face_emotion": _select(face_emotion, face_available),
            "speech_emotion": _select(speech_emotion, speech_available),
            "face_available": face_available,
            "speech_available": speech_available,
            "target_3dmm": _select(target_3dmm, target_available),
            "target_emotion": _select(target_emotion, target_available),
            "target_available": target_available,
        }
        item = {**{name: torch.from_numpy(a) for name, a in arrays.items()}, "length": length, "index": index, "name": speaker.name}
        return item, crop

    def _appropriate_rows(self) -> NDArray[np.bool_] | None:
        try:
            return np.asarray(self.corpus.appropriate(), dtype=bool)
        except MatrixAbsentError as error:
            _log.warning("%s. Until then each clip's own listener is the only appropriate one", error)
            return None

    def _appropriate_reactions(self, row: int | None, listener: int, crop: slice, draw: np.random.Generator) -> dict[str, torch.Tensor]:
        """Emotion of the listeners that suit the speaker of row ``row`` of the matrix, in the frames of ``crop``."""
        chosen = np.array([listener])
        if self._rows is not None and row is not None:
            suitable = [self.corpus.pairs[int(j)][1] for j in np.flatnonzero(self._rows[row])]
            chosen = np.unique([listener, *suitable])
        if len(chosen) > self.listeners:
            chosen = draw.choice(chosen, self.listeners, replace=False)
        length = crop.stop - crop.start
        emotion = np.zeros((length, self.listeners, self.options.widths["emotion"]), np.float32)
        available = np.zeros((length, self.listeners), bool)
        for column, clip in enumerate(self.corpus.clips[i] for i in chosen):
            values, available[:, column] = self._part(self._streams(clip), "emotion", clip, crop)
            emotion[:, column] = _select(values, available[:, column])
        return {"appropriate_emotion": torch.from_numpy(emotion), "appropriate_available": torch.from_numpy(available)}

    def _streams(self, clip: RoleClip) -> Streams:
        return self._cache.streams(clip) if self._cache is not None else read_streams(clip, self.options)

    def _part(self, streams: Streams, kind: str, clip: RoleClip, crop: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """A crop of a stream with zeros behind its end, and which of its frames are there and finite."""
        length = crop.stop - crop.start
        values = np.zeros((length, self.options.widths[kind]), np.float32)
        there = np.zeros(length, bool)
        if kind in streams:
            rows = streams[kind][crop]
            values[: len(rows)] = rows
            there[: len(rows)] = np.isfinite(rows).all(1)
            if not there[: len(rows)].all():
                self._tell(clip.name, kind, f"{len(rows) - there.sum()} of {len(rows)} frames hold no number; they are unavailable")
        return values, there

    def _coefficients(self, streams: Streams, clip: RoleClip, crop: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        values, there = self._part(streams, "coefficients", clip, crop)
        return values - self.mean_face, there

    def _report_lengths(self, name: str, total: int, visual: dict[str, int], sound: int, recognised: int) -> None:
        for kind, frames in visual.items():
            if frames > total + 1:
                self._tell(name, kind, f"{frames} frames are cut to {total}, the shortest stream of the pair")
        if 0 < sound < total - 1:
            self._tell(name, "sound", f"ends after {sound} of {total} frames; the rest is unavailable")
        # Speech emotion may go with the sound or with the picture; shorter or longer than both it was made of something else.
        if sound and recognised < min(total, sound) - 1:
            self._tell(name, "speech_emotion", f"ends after {recognised} of {min(total, sound)} frames; the rest is unavailable")
        if sound and recognised > max(total, sound) + 1:
            self._tell(name, "speech_emotion", f"{recognised} frames are cut to {total}, the length of the clip")

    def _tell(self, name: str, kind: str, what: str) -> None:
        if (name, kind) not in self._told:
            self._told.add((name, kind))
            _log.warning("%s: %s: %s", name, kind, what)

    def _check_speakers(self) -> None:
        for pair in self.corpus.pairs:
            for clip in (self.corpus.clips[i] for i in (pair if self.swap_roles else pair[:1])):
                face = clip.emotion is not None and (clip.frames if self.input == "image" else clip.coefficients) is not None
                if not face and clip.audio is None:
                    needed = "frames" if self.input == "image" else "coefficients"
                    raise DataError(f"{clip.name}: the speaker has neither a face ({needed} and emotion) nor sound; one of them is needed")

    def _mean_face(self, given: NDArray[np.float32] | None, cache_dir: str | Path | None) -> NDArray[np.float32]:
        if given is not None:
            mean = np.asarray(given, np.float32).reshape(-1)
            if mean.shape != (COEFFICIENT_DIM,) or not np.isfinite(mean).all():
                raise ValueError(f"mean_face must be {COEFFICIENT_DIM} finite numbers, got shape {np.shape(given)}")
            return mean
        mean_of_corpus = self.corpus.mean_face()
        if mean_of_corpus is not None:
            return mean_of_corpus
        clips = self.corpus.training_clips()
        if cache_dir is None:
            return mean_coefficients(clips)
        state = json.dumps([(clip.name, signature_of(clip).get("coefficients")) for clip in clips])
        stored = Path(cache_dir) / f"mean_face-{hashlib.sha256(state.encode()).hexdigest()[:12]}.npy"
        if stored.is_file():
            return read_mean_face(stored)
        mean = mean_coefficients(clips)
        try:
            write_array(stored, mean)
        except OSError as error:  # a read-only or full disk costs the next start a few seconds, not this one its run
            self._tell(
                str(stored),
                "mean face",
                f"cannot be kept ({error.strerror}); each start computes it anew until mean_face.npy is in the tree",
            )
        return mean


_VISUAL = ("emotion", "coefficients")


def _counts(heard: Streams, seen: Streams, images: list[Path] | None) -> tuple[dict[str, int], int]:
    """Frames of every visual stream of a pair, of which the shortest counts, and of the sound."""
    visual = {f"{who}'s {kind}": len(s[kind]) for who, s in (("speaker", heard), ("listener", seen)) for kind in _VISUAL if kind in s}
    if images is not None:
        visual["speaker's frames"] = len(images)
    return visual, len(heard.get("mfcc", ()))


def mean_coefficients(clips: Any) -> NDArray[np.float32]:
    """Mean of the 58 coefficients over all finite frames of ``clips``, accumulated in float64.

    Raises:
        DataError: no clip has coefficients.
    """
    total, frames = np.zeros(COEFFICIENT_DIM), 0
    for clip in clips:
        if clip.coefficients is not None:
            rows = read_coefficients(clip.coefficients)
            rows = rows[np.isfinite(rows).all(1)]
            total += rows.sum(0, dtype=np.float64)
            frames += len(rows)
    if frames == 0:
        raise DataError("the mean face cannot be computed: no training clip has coefficients; put mean_face.npy beside the lists")
    return (total / frames).astype(np.float32)


def _images(paths: list[Path] | None, crop: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    length = crop.stop - crop.start
    if paths is None:
        return np.zeros((length, 3, CROP, CROP), np.float32), np.zeros(length, bool)
    return np.stack([load_frame(path) for path in paths[crop]]), np.ones(length, bool)


def _select(values: NDArray[np.float32], available: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Zero where unavailable: chosen, not multiplied, for a NaN times zero is a NaN."""
    if not available.all():
        values[~available] = 0.0
    return values
