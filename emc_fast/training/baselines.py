"""What a model must beat, and the three numbers by which it is seen to: squared errors and FRCorr on a split."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..metrics.frcorr import concordance
from ..model import EMCModel
from .generation import reactions


class Baseline(Protocol):
    """Anything that answers a number of frames with K reactions."""

    def react(self, frames: int, num_samples: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return emotion (K,T,25) and 3DMM coefficients without the mean face (K,T,58), float32."""


class MeanReaction:
    """The mean listener of a corpus, the same in every frame: the best that can be said without looking at the speaker, in squared error.

    As it never moves, its FRCorr is 0 by definition.
    """

    def __init__(self, corpus: Any) -> None:
        """Take the mean over all frames of all clips of ``corpus`` in which the listener is known."""
        emotion, coefficients, count = np.zeros(25), np.zeros(58), 0
        for clip in range(len(corpus)):
            sample = corpus[clip]
            known = sample["target_available"].numpy()
            emotion += sample["target_emotion"].numpy()[known].sum(0, dtype=np.float64)
            coefficients += sample["target_3dmm"].numpy()[known].sum(0, dtype=np.float64)
            count += int(known.sum())
        self.emotion = (emotion / max(count, 1)).astype(np.float32)
        self.coefficients = (coefficients / max(count, 1)).astype(np.float32)

    def react(self, frames: int, num_samples: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the mean, repeated: emotion (K,T,25), coefficients (K,T,58)."""
        return np.broadcast_to(self.emotion, (num_samples, frames, 25)), np.broadcast_to(self.coefficients, (num_samples, frames, 58))


def validate(
    model: EMCModel | Baseline,
    corpus: Any,
    *,
    num_samples: int = 10,
    missing: str | float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    clips: int | None = None,
) -> dict[str, float]:
    """Return how close the reactions of a model or baseline to a split come to the listeners.

    ``mse_emotion`` and ``mse_3dmm``: mean squared error against the listener of each clip over known frames, channels and all K draws (3DMM
    relative to the mean face). ``frcorr``: `metrics.frcorr` (official) on emotion against the appropriate reactions, 0 to K.

    Args:
        corpus: a ``REACTDataset`` of whole clips, with its matrix of appropriate reactions.
        missing: as in `generate`; a baseline does not look at the speaker and is not touched by it.
        clips: take only the first so many clips (and the appropriate ones among them); None takes all.

    Raises:
        DataError: the corpus has no matrix.
    """
    count = len(corpus) if clips is None else min(clips, len(corpus))
    appropriate = np.asarray(corpus.appropriate, dtype=bool)[:count, :count] | np.eye(count, dtype=bool)
    samples = [corpus[clip] for clip in range(count)]
    lengths = np.array([int(sample["length"]) for sample in samples])
    if isinstance(model, EMCModel):
        drawn = reactions(model, _First(corpus, count), num_samples=num_samples, missing=missing, seed=seed, batch_size=batch_size)
        answers = [(clip.emotion, clip.coefficients) for clip in drawn]
    else:
        answers = [model.react(int(frames), num_samples) for frames in lengths]
    prediction = np.zeros((count, num_samples, int(lengths.max()), 25), np.float32)
    target = np.zeros((count, int(lengths.max()), 25), np.float32)
    errors, known_frames = np.zeros(2), 0
    for clip, (sample, (emotion, coefficients)) in enumerate(zip(samples, answers, strict=True)):
        known = sample["target_available"].numpy()
        prediction[clip, :, : lengths[clip]] = emotion
        target[clip, : lengths[clip]] = sample["target_emotion"].numpy()
        for place, (answer, truth) in enumerate(((emotion, "target_emotion"), (coefficients, "target_3dmm"))):
            difference = answer[:, known].astype(np.float64) - sample[truth].numpy()[known]
            errors[place] += (difference**2).sum() / answer.shape[0] / answer.shape[2]
        known_frames += int(known.sum())
    mse = errors / max(known_frames, 1)
    return {"mse_emotion": float(mse[0]), "mse_3dmm": float(mse[1]), "frcorr": frcorr_of_lengths(prediction, target, appropriate, lengths)}


def frcorr_of_lengths(
    prediction: NDArray[np.float32], target: NDArray[np.float32], appropriate: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> float:
    """Return `metrics.frcorr` for clips (N,K,T,25), (N,T,25) of different lengths (N,): a pair is compared over the shorter of the two."""
    total = 0.0
    for clip, row in enumerate(appropriate):
        best = torch.full((prediction.shape[1],), -torch.inf, dtype=torch.float64)
        for other in np.flatnonzero(row):
            frames = min(lengths[clip], lengths[other])
            answer, truth = torch.from_numpy(prediction[clip, :, :frames]), torch.from_numpy(target[None, other, :frames])
            best = torch.maximum(best, concordance(answer, truth)[:, 0])
        total += float(best.sum())
    return total / len(appropriate)


class _First:
    """The first clips of a corpus."""

    def __init__(self, corpus: Any, count: int) -> None:
        self.corpus, self.count = corpus, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, clip: int) -> dict[str, Any]:
        return self.corpus[clip]
