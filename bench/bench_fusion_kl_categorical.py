"""fusion_kl_categorical against its definition, eager and compiled."""

from __future__ import annotations

import torch

from emc_fast.ops import fusion_kl_categorical
from emc_fast.ops.reference.fusion_kl_categorical import fusion_kl_categorical as definition

from .race import Case

# FaceAIS: 1000 codes, one distribution per frame; 2048 entries with its special tokens.
SIZES = ([(32, 1000), (4096, 1000)], [(32, 1000), (512, 1000), (4096, 1000), (4096, 2048), (11776, 1000)])
NAMES = ("real", "comp_face", "comp_speech")


def test_fusion_kl_categorical(race, size, direction) -> None:
    traffic = 4.0 * 3 * size[0] * size[1]
    race(
        Case(
            "fusion_kl_categorical",
            f"{size[0]} x {size[1]}",
            fusion_kl_categorical,
            {name: torch.randn(size) for name in NAMES},
            {"eager": definition},
            compiled=("eager",),
            differentiate=NAMES,
            bytes_moved=(traffic, 3 * traffic),
        ),
        direction,
    )
