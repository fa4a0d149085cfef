"""Streams: which noise a place of use draws. Two places with different numbers have independent noise under one seed.

A module instance that owns several places takes a base number and uses ``base .. base + SPAN - 1``. The numbers are part of what a seed
means: changing one changes every generated reaction, so it is a change of the noise contract and goes into the changelog.
"""

from __future__ import annotations

#: Numbers that one module instance may use.
SPAN = 16

CMA_FACE = 1
"""Latent noise of the facial compensation module."""
CMA_SPEECH = 2
"""Latent noise of the speech compensation module."""
LATENT = 3
"""The draw from the fused distribution Z."""
FUSION_PICK = 4
"""Which of the three fusions goes onward in training."""
DATA = 5
"""Simulated dropping out of modalities in training and in tests."""

_FIRST_MODULE = 64


def module_base(index: int) -> int:
    """First stream of the ``index``-th module that needs a range of its own (attention blocks, backbones' dropouts)."""
    if index < 0 or _FIRST_MODULE + (index + 1) * SPAN > 2**32:
        raise ValueError(f"index must be in [0, {(2**32 - _FIRST_MODULE) // SPAN}), got {index}")
    return _FIRST_MODULE + index * SPAN
