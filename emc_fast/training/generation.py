"""Generation: K reactions to every clip of a corpus, or to one recording, on disk as whole directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import REACTDataset, collate
from ..errors import CheckpointError, DataError
from ..model import EMCModel
from .checkpoint import recover, whole_directory
from .loading import load_model, load_preprocessing
from .missing import parse_missing, withhold
from .outputs import GenerationFiles
from .progress import Reporter
from .seeds import GENERATE, clip_seeds
from .single import SingleClip


@dataclass
class Reactions:
    """The reactions to one clip of T frames, float32 (K,T,25) and (K,T,58), and what the model was given of the clip, bool (T,)."""

    index: int
    name: str
    emotion: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    face_available: NDArray[np.bool_]
    speech_available: NDArray[np.bool_]


def _withheld(sample: dict[str, Any], missing: str | float | None, seed: int) -> dict[str, Any]:
    face, speech = withhold(
        sample["face_available"].numpy(), sample["speech_available"].numpy(), missing, seed=seed, clip=int(sample["index"])
    )
    if not (face | speech).any():
        without = f" with the {missing} missing" if missing else ""
        raise DataError(f"clip {sample['name']} has neither face nor speech{without}; take it from the list or give it another stream")
    return sample | {"face_available": torch.from_numpy(face), "speech_available": torch.from_numpy(speech)}


@torch.no_grad()
def reactions(
    model: EMCModel,
    corpus: Any,
    *,
    num_samples: int = 10,
    missing: str | float | None = None,
    seed: int = 0,
    batch_size: int = 8,
) -> Iterator[Reactions]:
    """Yield the reactions to every clip of ``corpus``, in its order.

    The noise of a clip is a function of (seed, its index), so that the batch size changes nothing but rounding. 3DMM coefficients are as
    the model gives them, without the mean face. DataError: a clip of which nothing is left to react to.
    """
    missing = parse_missing(missing)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(corpus), batch_size):
            clips = range(start, min(start + batch_size, len(corpus)))
            batch = collate([_withheld(corpus[clip], missing, seed) for clip in clips])
            output = model(**_inputs(batch, missing, device), num_samples=num_samples, seed=clip_seeds(seed, GENERATE, clips).to(device))
            emotion, coefficients = output.reaction_emotion.float().cpu().numpy(), output.reaction_3dmm.float().cpu().numpy()
            for row, clip in enumerate(clips):
                frames = int(batch["lengths"][row])
                yield Reactions(
                    clip,
                    batch["name"][row],
                    emotion[row, :, :frames],
                    coefficients[row, :, :frames],
                    batch["face_available"][row, :frames].numpy(),
                    batch["speech_available"][row, :frames].numpy(),
                )
    finally:
        model.train(was_training)


def _inputs(batch: dict[str, Any], missing: str | float | None, device: torch.device) -> dict[str, Tensor | None]:
    inputs: dict[str, Tensor | None] = {"lengths": batch["lengths"].to(device)}
    for modality in ("face", "speech"):
        names = (modality, f"{modality}_emotion", f"{modality}_available")
        gone = missing == modality or modality not in batch
        # None, not a mask of False: what is missing everywhere need not be encoded.
        inputs |= {name: None if gone else batch[name].to(device) for name in names if gone or name in batch}
    return inputs


def generate(
    checkpoint: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    wav: str | Path | None = None,
    face: str | Path | None = None,
    face_emotion: str | Path | None = None,
    speech_emotion: str | Path | None = None,
    num_samples: int = 10,
    missing: str | float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    add_mean_face: bool = True,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write ``num_samples`` reactions of a trained model to a split of a corpus, or to one clip from loose files.

    ``out`` is made whole or not at all: ``prediction_emotion.npy`` (N,K,T,25), ``prediction_3dmm.npy`` (N,K,T,58) float32,
    ``face_available.npy`` and ``speech_available.npy`` (N,T) bool, zero beyond a clip's length, and ``generation.json``; for one clip also
    ``speaker_emotion.npy`` (T,25) and ``speaker_3dmm.npy`` (T,58) where there was a face. The same arguments give the same bytes.

    Args:
        checkpoint: a run directory or one of its checkpoints.
        missing: ``face`` or ``speech`` for all frames, or a fraction of the frames (`missing.missing_runs`).
        add_mean_face: give absolute 3DMM coefficients, as face renderers take them; otherwise relative to the mean face, as models are
            trained and metrics compare them.

    Raises:
        DataError, CheckpointError: bad input, named. FileExistsError: ``out`` is not empty and ``overwrite`` is not set.
        ValueError: bad settings.
    """
    out, missing = Path(out), parse_missing(missing)
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; at least 1 is taken")
    loose = {"wav": wav, "face": face, "face_emotion": face_emotion, "speech_emotion": speech_emotion}
    if data is not None and any(loose.values()):
        raise DataError("both a corpus (--data) and loose files are given; one of them is taken")
    if data is None and not any(loose.values()):
        raise DataError("nothing to react to: give a corpus (--data), a recording (--wav) or a face (--face with --face-emotion)")
    recover(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise FileExistsError(f"{out} is not empty; give another directory, or --overwrite to replace it")

    model = load_model(checkpoint, device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    trained_mean = load_preprocessing(checkpoint)["mean_face"]
    corpus: Any
    if data is not None:
        corpus = REACTDataset(data, split, cache_dir=cache_dir, mean_face=trained_mean, input=model.config.input)
        lengths = [int(length) for length in corpus.lengths]
        source: dict[str, Any] = {"data": str(data), "split": split}
    else:
        corpus = SingleClip(**loose, mean_face=trained_mean, fps=model.config.fps)
        lengths = [corpus.frames]
        source = {name: str(path) for name, path in loose.items() if path is not None}
        if missing in ("face", "speech") and missing not in corpus.streams:
            raise DataError(f"missing is {missing}, and no {missing} is given")
    if corpus.fps != model.config.fps:
        raise CheckpointError(f"the corpus has {corpus.fps:g} frames per second, the model was made for {model.config.fps:g}")
    mean = np.asarray(corpus.mean_face, dtype=np.float32)

    with whole_directory(out) as directory:
        files = GenerationFiles(directory, len(corpus), num_samples, max(lengths))
        names = []
        with Reporter("generating", len(corpus), unit="clips", shown=progress) as reporter:
            for clip in reactions(model, corpus, num_samples=num_samples, missing=missing, seed=seed, batch_size=batch_size):
                files.put(
                    clip.index,
                    emotion=clip.emotion,
                    coefficients=clip.coefficients + mean if add_mean_face else clip.coefficients,
                    face_available=clip.face_available,
                    speech_available=clip.speech_available,
                )
                names.append(clip.name)
                reporter.advance()
        files.flush()
        if data is None and "face" in corpus.streams:
            np.save(directory / "speaker_emotion.npy", corpus.streams["face_emotion"])
            np.save(directory / "speaker_3dmm.npy", corpus.streams["face"] + (mean if add_mean_face else np.float32(0)))
        description = {
            "names": names,
            "lengths": lengths,
            "num_samples": num_samples,
            "seed": seed,
            "batch_size": batch_size,
            "missing": missing,
            "fps": model.config.fps,
            "config_digest": model.config.digest(),
            "checkpoint": str(checkpoint),
            "source": source,
            "mean_face_added": add_mean_face,
        }
        (directory / "generation.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return out
