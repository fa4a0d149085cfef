"""From a path to a model: a run directory, one of its checkpoints, or any directory that ``EMCModel.save_pretrained`` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..checkpoint import WEIGHTS, read_weights
from ..errors import CheckpointError
from ..model import EMCModel
from .checkpoint import PREPROCESSING_FILE, read_json, readable

_T = TypeVar("_T")


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint directory that ``path`` means: itself, or of a run directory the best one (the last if none was validated).

    Nothing is changed: the run may be in training. `CheckpointError`: nothing of the kind is there, or what is there has no weights.
    """
    path = Path(path)
    if _has_weights(path):
        return path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; a run directory or a checkpoint is taken")
    last = path / "checkpoints" / "last"
    for candidate in (path / "checkpoints" / "best", last):
        if _has_weights(candidate):
            return candidate
        if readable(candidate).exists():  # another one in its place would be another model, without a word
            other = "" if candidate == last else f", or name {last} to take the last one"
            raise CheckpointError(f"{candidate} lacks {WEIGHTS}: the checkpoint is not whole; restore it{other}")
    raise CheckpointError(f"{path} holds no checkpoint: neither {WEIGHTS} nor checkpoints/best or checkpoints/last with one")


def _has_weights(path: Path) -> bool:
    # Between the two looks of one try a trainer may rename the folder; it does not do so twice.
    return any((readable(path) / WEIGHTS).is_file() for _ in range(3))


def _read(path: str | Path, read: Callable[[Path], _T]) -> _T:
    """Return what ``read`` gives for the checkpoint that ``path`` means, of one checkpoint even if it is replaced meanwhile."""
    checkpoint = find_checkpoint(path).absolute()  # a relative name that is away for a moment could be one on the Hub
    for _ in range(9):
        directory = readable(checkpoint)
        before = _identity(directory)
        try:
            value = read(directory)
        except (CheckpointError, OSError):
            if _identity(directory) == before:
                raise
        else:
            if _identity(directory) == before:
                return value
    raise CheckpointError(f"{checkpoint} is replaced faster than it is read; take a copy of it, or wait for the end of the training")


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(directory)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def load_model(path: str | Path, *, device: str | torch.device = "cpu", eval_mode: bool = True) -> EMCModel:
    """Load the model of a run or checkpoint.

    Only JSON and safetensors are read. `CheckpointError` names the file that is absent, damaged, or made for another configuration.
    """
    return _read(path, lambda directory: EMCModel.from_pretrained(directory, map_location=device)).train(not eval_mode)


def load_stage(model: EMCModel, stage: str, path: str | Path) -> None:
    """Put what a stage of the backbone has learned, in the run or checkpoint at ``path``, into ``model``.

    Only the stage's own tensors are read, so the run may have been that of another model with the same one (with EMC or without).
    `CheckpointError`: the checkpoint is absent or damaged, or has no such tensors, or of other shapes.
    """
    file = find_checkpoint(path) / WEIGHTS
    saved, _ = _read(path, lambda directory: read_weights(directory / WEIGHTS))
    wanted = {id(parameter) for parameter in model.backbone.stage_parameters(stage)}
    own = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
    for name, parameter in own.items():
        found = saved.get(name)
        if found is None or found.shape != parameter.shape:
            what = "does not have it" if found is None else f"has it as {tuple(found.shape)}"
            raise CheckpointError(f"{file} is of no use for the stage {stage}: {name} is {tuple(parameter.shape)}, and it {what}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def load_preprocessing(path: str | Path) -> dict[str, Any]:
    """Return what the training data were made comparable by: ``mean_face`` float32 (58,), or None for a checkpoint without that record."""
    file = find_checkpoint(path) / PREPROCESSING_FILE
    values = _read(path, lambda directory: read_json(directory / file.name) if (directory / file.name).is_file() else None)
    if values is None:
        return {"mean_face": None}
    mean = np.asarray(values.get("mean_face"), dtype=np.float32)
    if mean.shape != (58,) or not np.isfinite(mean).all():
        raise CheckpointError(f"{file}: mean_face has shape {mean.shape}, 58 finite numbers are taken")
    return {"mean_face": mean}
