"""fusion_kl (diagonal and unit variance) against its definition, eager and compiled."""

from __future__ import annotations

import torch

from emc_fast.ops import fusion_kl
from emc_fast.ops.reference.fusion_kl import fusion_kl as definition

from .race import Case

# A Gaussian per clip (Trans-VAE), and one per frame of 64 clips of 750 frames; unit variance is REGNN's, 25 x 50 values a window.
SIZES = (
    [(4, 128, "diagonal"), (48000, 128, "diagonal"), (3200, 50, "unit"), (48000, 128, "unit")],
    [(*rows, "diagonal") for rows in [(4, 128), (1024, 64), (48000, 64), (48000, 128), (48000, 360)]]
    + [(*rows, "unit") for rows in [(25, 50), (3200, 50), (48000, 128)]],
)
MEANS = ("mu_real", "mu_face", "mu_speech")
LOGVARS = ("logvar_real", "logvar_face", "logvar_speech")


def ours(mu_real, mu_face, mu_speech, logvar_real=None, logvar_face=None, logvar_speech=None):
    return fusion_kl((mu_real, logvar_real), (mu_face, logvar_face), (mu_speech, logvar_speech))


def case_of(rows: int, width: int, form: str) -> Case:
    names = MEANS + LOGVARS if form == "diagonal" else MEANS
    eager = definition if form == "diagonal" else lambda **x: definition(**x, **dict.fromkeys(LOGVARS))
    traffic = 4.0 * len(names) * rows * width
    return Case(
        "fusion_kl",
        f"{rows} x {width} {form}",
        ours,
        {name: 0.5 * torch.randn(rows, width) for name in names},
        {"eager": eager},
        differentiate=names,
        bytes_moved=(traffic, 3 * traffic),  # forward reads; backward reads and writes
    )


def test_fusion_kl(race, size, direction) -> None:
    case = case_of(*size)
    case.compiled = ("eager",)
    race(case, direction)
