"""What the tests of training share."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

import emc_fast

FRAMES = 40
"""Frames of a clip of the test corpus."""


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def environment(**more: str) -> dict[str, str]:
    """The environment of a subprocess that imports this very package."""
    path = os.pathsep.join([str(Path(emc_fast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | more
