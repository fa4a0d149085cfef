"""Published recipes of the backbones, and settings that are known to work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ..config import EMCConfig
from ..data import default_cache_dir
from .config import TrainConfig

RECIPES: dict[str, dict[str, Any]] = {
    "faceais": {
        "model": {"backbone": "faceais", "d_model": 360, "num_heads": 12},
        "epochs": 100,  # the published weights are those of epoch 91
        "batch_size": 16,
        "lr": 1e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "decayed": "matrices",
        "warmup_steps": 200,
        "clip_length": 288,
        "swap_roles": False,
        "validate_every": 2,
        "stages": {"tokenizer": {"epochs": 200, "batch_size": 8, "warmup_steps": 300, "clip_length": 736}},
    },
    "trans_vae": {},  # the defaults of `TrainConfig`
    "regnn": {
        # Released: 100 times 101 steps of 128 windows, drawn from all windows of the corpus. Here an epoch takes one window of every
        # clip in each role, which is 25 steps on REACT 2024; so 400 epochs.
        "model": {"backbone": "regnn"},
        "epochs": 400,
        "batch_size": 128,
        "optimizer": "adam",
        "lr": 1e-4,
        "schedule": "step",
        "drop_at": 0.09,
        "clip_length": 50,
        "swap_roles": False,
        "validate_every": 20,
    },
}
"""Published recipes by backbone: settings of `TrainConfig` where they differ from its defaults; `model` holds fields of `EMCConfig`."""


def recipe(backbone: str) -> dict[str, Any]:
    """Return the published settings of a backbone, as keywords for `TrainConfig`; none for a backbone that has no recipe here."""
    return copy.deepcopy(RECIPES.get(backbone, {}))


SMALL: dict[str, dict[str, Any]] = {
    "faceais": {
        "model": {
            "d_model": 48,
            "num_heads": 4,
            "dropout": 0.0,
            "norm": "pre",
            "cma_prior": "mean",
            # As for Trans-VAE below.
            "causal": True,
            "window": 32,
            "l_align": 0.01,
            "l_kl": 0.1,
            "l_fusion": 0.0001,
            "backbone_options": {
                "layers": 1,
                "context": 48,
                "block": 16,
                "vocabulary": 125,
                "levels": [5, 5, 5],
                "top_k": None,
                # Closed at first, as published, the gates hardly open in so few steps, and the predictor sees its own past alone.
                "gate_start": 1.0,
                "tokenizer_width": 48,
                "tokenizer_heads": 4,
                "tokenizer_layers": 2,
            },
        },
        "epochs": 20,
        "batch_size": 8,
        "lr": 3e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.01,
        "decayed": "matrices",
        "schedule": "cosine",
        "warmup_steps": 20,
        "clip_length": 48,
        "validate_every": 5,
        "stages": {"tokenizer": {"epochs": 25, "clip_length": 64}},
    },
    "regnn": {
        "model": {
            "d_model": 48,
            "num_heads": 4,
            "dropout": 0.0,
            "norm": "pre",
            "cma_prior": "mean",
            "l_align": 0.01,
            "l_kl": 0.1,
            "l_fusion": 0.001,
            "backbone_options": {"perceptual_layers": 1, "embedding_dropout": 0.0},
        },
        "epochs": 40,
        "batch_size": 8,
        "optimizer": "adam",
        "lr": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 20,
        "clip_length": 50,
        "validate_every": 10,
    },
    "trans_vae": {
        "model": {
            "d_model": 48,
            "num_heads": 4,
            "dropout": 0.1,  # without it what follows speech fits the training clips alone
            "norm": "pre",
            "cma_prior": "mean",
            # A listener answers what was shown in the last second or so. Full attention can learn that, but not in a minute.
            "causal": True,
            "window": 32,
            # The reactions' squared error is a few hundredths: at weight 1 the terms of EMC, in units of features, drown it.
            "l_align": 0.01,
            "l_kl": 0.1,
            "l_fusion": 0.0001,
            # At its published weight 10 the diversity of short clips costs more error than listening to the speaker saves.
            "backbone_options": {"div_p": 0.0, "pose_weight": 1.0, "logvar_offset": -4.0, "zero_start": True},
        },
        "epochs": 20,
        "batch_size": 8,
        "lr": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 20,
        "clip_length": 64,
        "validate_every": 5,
    },
}
"""Settings of small models by backbone, as `RECIPES`: they learn a small synthetic corpus on two CPU cores in minutes."""


def demo_config(data: str | Path, out: str | Path, *, backbone: str = "trans_vae", emc: bool = True) -> TrainConfig:
    """Return settings for the demonstration: a small model that learns a small synthetic corpus on two CPU cores in about a minute.

    Args:
        data: a corpus of `emc_fast.data.synthesize_corpus` with about 128 training and 16 validation pairs of 256 frames.
        out: run directory.
        backbone: which; ValueError for one that has no small settings.
        emc: False trains the backbone alone in the same way.
    """
    if backbone not in SMALL:
        raise ValueError(f"there are no small settings for the backbone {backbone!r}; {', '.join(sorted(SMALL))} have them")
    values = copy.deepcopy(SMALL[backbone])
    model = EMCConfig(backbone=backbone, emc=emc, **values.pop("model"))
    # A synthetic listener answers a speaker: the pair in the other direction teaches nothing.
    common: dict[str, Any] = {"swap_roles": False, "mirror": False, "cache_dir": str(default_cache_dir(data))}
    return TrainConfig(data=str(data), out=str(out), model=model, **common, **values)
