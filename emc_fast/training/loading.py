"""From a path to a model: a run directory, one of its checkpoints, or any directory that ``EMCModel.save_pretrained`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import WEIGHTS, read_weights
from ..errors import CheckpointError
from ..model import EMCModel
from .checkpoint import PREPROCESSING_FILE, read_json, recover


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint directory that ``path`` means: itself, or of a run directory the best one (the last if none was validated).

    `CheckpointError`: nothing of the kind is there.
    """
    path = Path(path)
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "last"]
    for candidate in candidates:
        if candidate.parent.is_dir():
            recover(candidate)
        if (candidate / WEIGHTS).is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; a run directory or a checkpoint is taken")
    raise CheckpointError(f"{path} holds no checkpoint: neither {WEIGHTS} nor checkpoints/best or checkpoints/last with one")


def load_model(path: str | Path, *, device: str | torch.device = "cpu", eval_mode: bool = True) -> EMCModel:
    """Load the model of a run or checkpoint.

    Only JSON and safetensors are read. `CheckpointError` names the file that is absent, damaged, or made for another configuration.
    """
    return EMCModel.from_pretrained(find_checkpoint(path), map_location=str(device)).train(not eval_mode)


def load_stage(model: EMCModel, stage: str, path: str | Path) -> None:
    """Put what a stage of the backbone has learned, in the run or checkpoint at ``path``, into ``model``.

    Only the stage's own tensors are read, so the run may have been that of another model with the same one (with EMC or without).
    `CheckpointError`: the checkpoint is absent or damaged, or has no such tensors, or of other shapes.
    """
    file = find_checkpoint(path) / WEIGHTS
    saved, _ = read_weights(file)
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
    if not file.is_file():
        return {"mean_face": None}
    values = read_json(file)
    mean = np.asarray(values.get("mean_face"), dtype=np.float32)
    if mean.shape != (58,) or not np.isfinite(mean).all():
        raise CheckpointError(f"{file}: mean_face has shape {mean.shape}, 58 finite numbers are taken")
    return {"mean_face": mean}
