"""The model at work, as the benchmarks race it and the profile looks into it: random streams, a training step, K reactions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model import EMCModel

WIDTHS = {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10}
TARGETS = {"target_3dmm": 58, "target_emotion": 25}


def streams(batch: int, frames: int, *, targets: bool, listeners: int = 0) -> dict[str, Tensor]:
    """Random features (batch, frames, width) by the names that `EMCModel` takes.

    Args:
        batch, frames: clips B and frames T.
        targets: the listener's real reaction too, for training.
        listeners: reactions of so many other listeners, for REGNN's training.
    """
    widths = WIDTHS | (TARGETS if targets else {})
    given = {name: torch.randn(batch, frames, width) for name, width in widths.items()}
    return given | ({"appropriate_emotion": torch.randn(batch, frames, listeners, 25)} if listeners else {})


def training_step(model: EMCModel, *, validate: bool = True) -> Callable[..., Tensor]:
    """A step as the trainer takes it: forward, backward, AdamW; takes the streams by name and returns the loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(**tensors: Tensor) -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            losses = model(**tensors, seed=3, validate=validate).losses
            assert losses is not None, "a training step takes targets"
            losses["total"].backward()
            optimizer.step()
        return losses["total"].detach()

    return step


def generation(model: EMCModel, draws: int = 10, *, validate: bool = True) -> Callable[..., Tensor]:
    """K = `draws` reactions to each clip; takes the streams by name and returns the 3DMM coefficients (B, K, T, 58)."""

    def generate(**tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return model(**tensors, num_samples=draws, seed=3, validate=validate).reaction_3dmm

    return generate
