"""Published recipes of the backbones, and settings that are known to work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ..config import EMCConfig
from ..data import default_cache_dir
from .config import TrainConfig

RECIPES: dict[str, dict[str, Any]] = {
    "trans_vae": {},  # the defaults of `TrainConfig`
}
"""Published recipes by backbone: settings of `TrainConfig` where they differ from its defaults; `model` holds fields of `EMCConfig`."""


def recipe(backbone: str) -> dict[str, Any]:
    """Return the published settings of a backbone, as keywords for `TrainConfig`; none for a backbone that has no recipe here."""
    return copy.deepcopy(RECIPES.get(backbone, {}))


def demo_config(data: str | Path, out: str | Path, *, emc: bool = True) -> TrainConfig:
    """Return settings for the demonstration: a small model that learns a small synthetic corpus on two CPU cores in about a minute.

    Args:
        data: a corpus of `emc_fast.data.synthesize_corpus` with about 64 training and 16 validation pairs of 256 frames.
        out: run directory.
        emc: False trains the backbone alone in the same way.
    """
    model = EMCConfig(
        emc=emc,
        d_model=48,
        num_heads=4,
        dropout=0.0,
        norm="pre",
        cma_prior="mean",
        # A listener answers what was shown in the last second or so. Full attention can learn that, but not in a minute.
        causal=True,
        window=32,
        # The reactions' squared error is a few hundredths; at weight 1 the terms of EMC, in units of features, leave nothing else heard.
        l_align=0.01,
        l_kl=0.1,
        l_fusion=0.0001,
        # At its published weight 10 the diversity of short clips costs more error than listening to the speaker saves.
        backbone_options={"div_p": 0.0, "pose_weight": 1.0, "logvar_offset": -4.0, "zero_start": True},
    )
    return TrainConfig(
        data=str(data),
        out=str(out),
        model=model,
        epochs=40,
        batch_size=8,
        lr=3e-3,
        schedule="cosine",
        warmup_steps=20,
        clip_length=64,
        swap_roles=False,
        mirror=False,
        validate_every=5,
        cache_dir=str(default_cache_dir(data)),
    )
