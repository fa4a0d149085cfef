"""The settings of a training run: a dataclass that is JSON, with the backbones' published recipes as defaults."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from ..backbones import backbone_class
from ..config import EMCConfig

PRECISIONS = ("no", "fp16", "bf16")
SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("adamw", "adam")
DECAYED = ("all", "matrices")
WHOLE_RUN = frozenset({"data", "out", "model", "stage", "stages", "seed", "mirror", "device", "cache_dir"})
"""Settings that no stage can have for itself."""


@dataclass
class TrainConfig:
    """Everything that decides what a run computes, and where it finds and leaves its files.

    The defaults are the published recipe of Trans-VAE; `presets.recipe` has those of the other backbones. ``model`` is the configuration of
    the model, with the weights of its losses. Bad values raise ValueError when the object is made.
    """

    data: str
    """Root of a corpus in the REACT 2024 layout."""
    out: str
    """Run directory."""
    model: EMCConfig = field(default_factory=EMCConfig)
    epochs: int = 50
    batch_size: int = 4
    """Clips per step and process."""
    optimizer: str = "adamw"
    """``adamw``, or ``adam``, where weight decay is a part of the gradient."""
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decayed: str = "all"
    """Which parameters the weight decay is for: ``all``, or ``matrices`` (and embeddings), not biases, gains and gates."""
    schedule: str = "constant"
    """``constant``, ``cosine`` (to zero at the end of the run) or ``step`` (see ``drop_at``), after the warm-up."""
    drop_at: float = 0.5
    """Share of the run after which ``step`` multiplies the learning rate by ``drop``."""
    drop: float = 0.1
    """See ``drop_at``."""
    warmup_steps: int = 0
    """Steps in which the learning rate grows linearly from zero."""
    grad_clip: float | None = None
    """Largest L2 norm of the whole gradient; None leaves it as it is."""
    clip_length: int | None = 256
    """Frames of a training crop; None takes whole clips."""
    validation_clip_length: int | None = None
    """Frames of a validation clip, from its beginning; None takes whole clips."""
    swap_roles: bool = True
    """Whether a training clip exchanges speaker and listener with probability one half."""
    mirror: bool = True
    """Whether each pair stands in the lists in both directions."""
    precision: str = "no"
    """``no`` (float32), ``fp16`` (with loss scaling; GPU only) or ``bf16``."""
    seed: int = 0
    validate_every: int = 10
    """Epochs between two validations; the last epoch is always validated."""
    checkpoint_every: int = 0
    """Steps between two checkpoints, beside the one at each epoch's end; 0 for none."""
    log_every: int = 10
    """Steps between two entries in the log; also how far the check of the loss for NaN may lag behind."""
    workers: int = 0
    """Processes that read clips."""
    cache_dir: str | None = None
    """Where the corpus keeps its feature cache; None leaves it to the corpus."""
    device: str = "auto"
    """``auto`` (what accelerate finds) or ``cpu``."""
    stages: dict[str, Any] = field(default_factory=dict)
    """For the stages that the backbone has before its own training, by name: the settings that are others there (``{"epochs": 200}``),
    or a path, a run or checkpoint in which the stage is done already. A stage that is not named is trained by the settings above."""
    stage: str | None = None
    """The stage that this run trains; None trains all of them, each in a run of its own under ``out/stages``, and then the model."""

    def __post_init__(self) -> None:
        if isinstance(self.model, dict):
            self.model = EMCConfig.from_dict(self.model)
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        for name in ("epochs", "batch_size", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is taken")
        for name in ("warmup_steps", "checkpoint_every", "workers", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more is taken")
        for name in ("clip_length", "validation_clip_length"):
            if getattr(self, name) is not None and getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 2 frames or None is taken")
        for name in ("drop_at", "drop"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a number above 0 and up to 1 is taken")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; a positive learning rate is taken")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip is {self.grad_clip}; a positive norm or None is taken")
        choices_of = {
            "precision": PRECISIONS, "schedule": SCHEDULES, "optimizer": OPTIMIZERS, "decayed": DECAYED, "device": ("auto", "cpu"),
        }  # fmt: skip
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; one of {', '.join(choices)} is taken")
        known = backbone_class(self.model.backbone).stages
        if unknown := sorted({*self.stages, *([self.stage] if self.stage else [])} - set(known)):
            raise ValueError(f"{self.model.backbone} has no stage {', '.join(unknown)}; it has {', '.join(known) or 'none but its own'}")
        for name, given in self.stages.items():
            if not isinstance(given, str):
                self.of_stage(name)

    def of_stage(self, name: str) -> TrainConfig:
        """The settings of the run that trains a stage; ValueError for one that a stage cannot have."""
        given = self.stages.get(name, {})
        if not isinstance(given, dict):
            raise ValueError(f"stages[{name!r}] is {given!r}; settings by name or the path of a run is taken")
        takes = {f.name for f in dataclasses.fields(self)} - WHOLE_RUN
        if unknown := sorted(set(given) - takes):
            raise ValueError(f"a stage has no setting {', '.join(unknown)} of its own; it takes {', '.join(sorted(takes))}")
        _check_types(given)
        return dataclasses.replace(self, **given, out=str(Path(self.out, "stages", name)), stage=name, stages={})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Make the settings from plain values; an unknown name or a value of another type is a ValueError that says which."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown training settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if missing := [name for name in ("data", "out") if not values.get(name)]:
            raise ValueError(f"the training settings lack {' and '.join(missing)}")
        _check_types(values)
        return cls(**values)

    @classmethod
    def from_json(cls, path: str | Path) -> TrainConfig:
        """Read the settings from a JSON file, for instance the ``config.json`` of a run."""
        return cls.from_dict(read_settings(path))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds settings; ValueError names the file if it holds anything else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; an object with settings is taken")
    return values


def merge(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Settings with `others` over them, dicts inside (``model``, ``stages``) name by name."""
    merged = dict(settings)
    for name, value in others.items():
        before = merged.get(name)
        merged[name] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _check_types(values: dict[str, Any]) -> None:
    for name, hint in get_type_hints(TrainConfig).items():
        if name in values and name not in ("model", "betas", "stages") and not _fits(values[name], hint):
            raise ValueError(f"{name} is {values[name]!r}; {getattr(hint, '__name__', hint)} is taken")


def _fits(value: Any, hint: Any) -> bool:
    kinds = getattr(hint, "__args__", (hint,))
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
