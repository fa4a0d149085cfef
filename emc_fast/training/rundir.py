"""The run directory: what it holds, how a run is opened anew or to go on, and the record that it keeps."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import CheckpointError
from ..ops._library import native
from .checkpoint import STATE_FILE, read_json, recover, write_json
from .config import TrainConfig

# Settings that may change when a run goes on: they decide where things lie and how often is looked, not what is computed.
FREE = frozenset({"out", "data", "workers", "validate_every", "checkpoint_every", "log_every", "cache_dir", "device"})


@dataclass(frozen=True)
class RunPaths:
    """Where things lie in a run directory."""

    run: Path

    @property
    def config(self) -> Path:
        """The settings, model and training."""
        return self.run / "config.json"

    @property
    def environment(self) -> Path:
        """Versions, commit, device and command line of every start."""
        return self.run / "environment.json"

    @property
    def log(self) -> Path:
        """One JSON object per line: training steps, validations."""
        return self.run / "log.jsonl"

    @property
    def last(self) -> Path:
        """The newest checkpoint, from which the run goes on."""
        return self.run / "checkpoints" / "last"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.run / "checkpoints" / "best"


def differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names under which two nested settings differ."""
    names = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing(a, b, f"{prefix}{key}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            names.append(f"{prefix}{key} ({a!r} in the run, now {b!r})")
    return names


def open_run(config: TrainConfig, *, resume: bool, processes: int = 1) -> RunPaths:
    """Make a run directory, or check that the one there can go on with ``config``. Writes nothing when it raises.

    FileExistsError: the directory is not empty and ``resume`` is not set. `CheckpointError`: the run has other settings (each named).
    The batch is compared as the number of clips of all processes together, so a run may go on with another number of processes.
    """
    paths = RunPaths(Path(config.out))
    if paths.run.exists() and not paths.run.is_dir():
        raise FileExistsError(f"{paths.run} is a file; a directory for the run is taken")
    begun = paths.run.is_dir() and any(paths.run.iterdir())
    if begun and not resume:
        raise FileExistsError(f"{paths.run} is not empty; give another directory, or --resume to go on with the run in it")
    if begun:
        recover(paths.last)
        recover(paths.best)
        try:
            begun_with = TrainConfig.from_dict(read_json(paths.config))  # what the version that began it did not have takes its default
        except (ValueError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{paths.config} cannot be used: {error}") from error
        old, new = (json.loads(json.dumps(settings.to_dict())) for settings in (begun_with, config))
        if paths.last.exists():
            old["batch_size"] = read_json(paths.last / STATE_FILE)["batch"]
            new["batch_size"] *= processes
        for name in FREE:
            old.pop(name, None)
            new.pop(name, None)
        if names := differing(old, new):
            raise CheckpointError(
                f"the run in {paths.run} has other settings: {'; '.join(names)}. Resume with those of the run, or give another directory"
            )
    return paths


def create_run(paths: RunPaths, config: TrainConfig) -> None:
    """Write the settings of a run that begins."""
    paths.last.parent.mkdir(parents=True, exist_ok=True)
    if not paths.config.exists():
        write_json(paths.config, config.to_dict())


def commit_of(directory: Path) -> str | None:
    """Return the git commit of the source tree that holds ``directory``, None if there is none."""
    try:
        found = subprocess.run(["git", "-C", str(directory), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def describe_environment(*, device: str, processes: int, seed: int) -> dict[str, Any]:
    """Return what a reader of the run wants to know of the machine and the software that made it."""
    import torch

    packages = ("torch", "numpy", "accelerate", "safetensors", "huggingface_hub", "kaldi-native-fbank", "soundfile")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "emc_fast": __version__,
        "commit": commit_of(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_set": native().isa,
        "float32_precision": native().float32_precision,
        "processes": processes,
        "seed": seed,
        "command": shlex.join(sys.argv),
    }


def record_environment(paths: RunPaths, environment: dict[str, Any], *, step: int) -> None:
    """Add this start of the run, at ``step``, to ``environment.json``."""
    starts = read_json(paths.environment)["starts"] if paths.environment.exists() else []
    write_json(paths.environment, {"starts": [*starts, {"step": step, **environment}]})


class RunLog:
    """``log.jsonl`` and TensorBoard events, written together. Resuming drops whatever was written after the checkpoint's step."""

    def __init__(self, paths: RunPaths, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = []
        if paths.log.exists():
            for line in paths.log.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the line that a killed run was writing
                    continue
                if entry["step"] <= step:
                    kept.append(line)
        aside = paths.log.with_name(".log.jsonl.partial")
        aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(aside, paths.log)
        self._file = paths.log.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(paths.run / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, *, step: int, epoch: int, **values: float) -> None:
        """Add an entry: ``kind`` is ``train`` or ``validation``, ``step`` the number of steps done."""
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()
