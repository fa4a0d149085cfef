"""Generation: K reactions to every clip of a corpus, or to one recording, on disk as whole directories."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint import WEIGHTS
from ..data import REACTDataset, collate
from ..errors import CheckpointError, DataError
from ..model import EMCModel
from .checkpoint import PREPROCESSING_FILE, readable, whole_directory
from .loading import find_checkpoint, load_model, load_preprocessing
from .missing import parse_missing, withhold
from .outputs import GenerationFiles
from .progress import Reporter
from .seeds import GENERATE, clip_seeds
from .single import SingleClip

DESCRIPTION = "generation.json"


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


def _usable(device: str) -> str:
    """A device by name, ``auto`` resolved; ValueError if nothing can be computed on it."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # of torch, by the kind of device
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}); auto, cpu, or cuda (cuda:1, ...) on a machine with such a GPU and a torch "
            "built for it is taken"
        ) from error
    return device


def _is_mounted(folder: Path) -> bool:
    if os.path.ismount(folder):
        return True
    try:  # what is bound from the same file system is found in the system's own list only
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return str(folder) in {line.split(" ")[4].replace("\\040", " ") for line in mounts}


def _check_place(out: Path, inputs: list[Path], *, overwrite: bool) -> None:
    """Refuse to write where `whole_directory` could not, or where more than an earlier generation would be lost. Changes nothing.

    ``out`` and ``inputs`` have no symlinks. FileExistsError: something else is there. OSError: the folder cannot be renamed.
    """
    if _is_mounted(out):
        raise OSError(f"{out} is a mount point and cannot be replaced as a whole; name a folder inside it")
    if out == Path(os.path.realpath(os.curdir)):
        raise OSError(f"{out} is the folder that this command runs in and would be replaced under it; name a folder inside it")
    there = readable(out)
    if not there.exists():
        return
    if not there.is_dir():
        raise FileExistsError(f"{out} is a file; a directory is taken")
    if not any(there.iterdir()):
        return
    if not (there / DESCRIPTION).is_file():
        raise FileExistsError(f"{out} is not empty and holds no {DESCRIPTION} of an earlier generation; give another directory")
    if not overwrite:
        raise FileExistsError(f"{out} is not empty; give another directory, or --overwrite to replace it")
    kept = [path for path in inputs if path.is_relative_to(out)]
    kept += [path for path in (there / "checkpoints",) if path.exists()]
    kept += list(there.rglob(WEIGHTS))
    if kept:
        raise FileExistsError(f"{out} is not overwritten: {kept[0]} in it is no part of a generation; give another directory")


def _check_weights(model: EMCModel, checkpoint: Path) -> None:
    named = [(name, value) for name, value in model.named_parameters() if value.numel()]
    bad = ~torch.isfinite(torch.stack([value.detach().float().sum() for _, value in named])).cpu()
    for name, value in (pair for pair, suspect in zip(named, bad.tolist(), strict=True) if suspect):
        if not bool(torch.isfinite(value).all()):  # a sum alone may overflow
            raise CheckpointError(f"{checkpoint / WEIGHTS}: {name} holds NaN or Inf; no reaction can be computed, take another checkpoint")


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
        DataError, CheckpointError: bad input, named. FileExistsError: ``out`` is not empty and ``overwrite`` is not set, or it holds
        something else than an earlier generation. OSError: ``out`` is a mount point. ValueError: bad settings.
    """
    # Where a symlink leads, not the link: that is what is replaced.
    out, missing, shown = Path(os.path.realpath(out)), parse_missing(missing), Path(out)
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; at least 1 is taken")
    loose = {"wav": wav, "face": face, "face_emotion": face_emotion, "speech_emotion": speech_emotion}
    if data is not None and any(loose.values()):
        raise DataError("both a corpus (--data) and loose files are given; one of them is taken")
    if data is None and not any(loose.values()):
        raise DataError("nothing to react to: give a corpus (--data), a recording (--wav) or a face (--face with --face-emotion)")
    inputs = [Path(os.path.realpath(path)) for path in (checkpoint, data, *loose.values()) if path is not None]
    _check_place(out, inputs, overwrite=overwrite)
    device = _usable(device)

    used = find_checkpoint(checkpoint)
    trained_mean = load_preprocessing(used)["mean_face"]
    if data is None and trained_mean is None:
        lacking = f"{used / PREPROCESSING_FILE} is missing"
        mend = f"Copy {PREPROCESSING_FILE} there from the checkpoint that the model was trained as (RUN/checkpoints/best)"
        if face is not None:  # without its mean the model would be given what it has never seen
            raise CheckpointError(
                f"{lacking}: the mean face that the model was trained without is not known, so no --face is taken. {mend}"
            )
        if add_mean_face:
            warnings.warn(f"{lacking}: the coefficients are written relative to a mean face that is not known. {mend}", stacklevel=2)
            add_mean_face = False
    model = load_model(used, device=device)
    _check_weights(model, used)
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
                if not (np.isfinite(clip.emotion).all() and np.isfinite(clip.coefficients).all()):
                    raise CheckpointError(f"{used} gives NaN or Inf as a reaction to clip {clip.name}; take another checkpoint")
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
            "checkpoint": str(used),
            "source": source,
            "mean_face_added": add_mean_face,
        }
        (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return shown
