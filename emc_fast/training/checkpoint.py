"""Whole directories on disk: written aside, flushed, renamed; the state of a training run in safetensors and JSON, nothing pickled.

A directory that bears its final name is complete. Whatever kills the writer (SIGKILL, a full disk, a power cut), the previous one stays,
under its own name or, in the short moment between two renames, under ``.<name>.previous``, from where `recover` brings it back. Only
a writer recovers: a reader may look while somebody writes, and changes nothing (`readable`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoint import save_tensors
from ..errors import CheckpointError

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
PREPROCESSING_FILE = "preprocessing.json"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse to sync a directory; the rename is still the only thing that publishes it
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


def _aside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def readable(path: Path) -> Path:
    """Return where the whole directory ``path`` lies: there, or aside if its writer died (or is) between the two renames.

    Nothing is changed, so that this may be asked while another process writes, and where nothing may be written.
    """
    if path.exists():
        return path
    previous = _aside(path, "previous")
    return previous if previous.is_dir() else path


def recover(path: Path) -> None:
    """Bring back the directory ``path`` if its writer died between the two renames, and remove what it left aside.

    For the one writer of ``path``: the work of another, still going on, would be removed too.
    """
    previous = _aside(path, "previous")
    if previous.exists():
        if path.exists():
            shutil.rmtree(previous)
        else:
            previous.rename(path)
    with suppress(FileNotFoundError):
        shutil.rmtree(_aside(path, "partial"))


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Give a fresh directory to write to; when the block ends well it replaces ``path``, when it fails nothing of it stays.

    The directory lies beside ``path`` (the same file system, so that the renames are atomic). Every file and the directory itself are
    flushed to the disk before the rename. One writer per path at a time.
    """
    recover(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = _aside(path, "partial"), _aside(path, "previous")
    partial.mkdir()
    try:
        yield partial
        for root, _, files in os.walk(partial):
            for name in files:
                _sync(Path(root, name))
            _sync(Path(root))
        if path.exists():
            path.rename(previous)
        try:
            partial.rename(path)
        except BaseException:
            recover(path)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to ``path`` by a rename, so that a reader never sees half of it."""
    aside = _aside(path, "partial")
    aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _sync(aside)
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `CheckpointError` names the file if it is absent, no JSON or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a checkpoint or run of this package") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); the file is damaged, take another checkpoint") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, an object is taken")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; `CheckpointError` names the file if it is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: the checkpoint is not whole") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); take another checkpoint") from None


def save_optimizer(path: Path, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Write the optimizer's tensors as ``<state>/<parameter name>`` to a safetensors file."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    save_tensors(path, tensors)


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Read what `save_optimizer` wrote. A tensor for no parameter, or of another shape, is a `CheckpointError`."""
    parameters = dict(model.named_parameters())
    for key, value in read_tensors(path).items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"{path} has {kind} for a parameter {name!r} that this model does not have: it belongs to another model")
        parameter = parameters[name]
        if value.dim() and value.shape != parameter.shape:
            raise CheckpointError(f"{path}: {key} has shape {tuple(value.shape)}, the model's parameter has {tuple(parameter.shape)}")
        # AdamW counts its steps on the CPU unless it is fused; everything else lies with its parameter.
        fused = any(group.get("fused") for group in optimizer.param_groups)
        optimizer.state[parameter][kind] = value.to(parameter.device) if value.dim() or fused else value
