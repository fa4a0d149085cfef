"""Settings that are known to work, beside the published recipe that `TrainConfig` has as defaults."""

from __future__ import annotations

from pathlib import Path

from ..config import EMCConfig
from .config import TrainConfig


def demo_config(data: str | Path, out: str | Path, *, emc: bool = True) -> TrainConfig:
    """Return settings for the demonstration: a small model that learns a small synthetic corpus on two CPU cores in about a minute.

    Args:
        data: a corpus of `emc_fast.data.synthesize_corpus` with about 48 training and 16 validation pairs of 256 frames.
        out: run directory.
        emc: False trains the backbone alone in the same way.
    """
    model = EMCConfig(emc=emc, d_model=64, num_heads=4, backbone_options={"div_p": 0.02})
    return TrainConfig(
        data=str(data),
        out=str(out),
        model=model,
        epochs=30,
        batch_size=8,
        lr=1e-3,
        schedule="cosine",
        warmup_steps=20,
        grad_clip=1.0,
        clip_length=128,
        swap_roles=False,
        mirror=False,
        validate_every=5,
    )
