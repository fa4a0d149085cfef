"""Other projects' programs for the measures, where they are installed (`pip install -e '.[bench]'`), and signals to try them on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

Warping = Callable[[NDArray, NDArray], float]
FRAMES = 750


def reactions(rng: np.random.Generator, *lead: int, kind: str) -> NDArray[np.float32]:
    """Noise, or something like the corpus: smooth, with action units 0 or 1, valence and arousal in (-1,1), expressions that sum to one."""
    if kind == "noise":
        return rng.random((*lead, FRAMES, 25), np.float32)
    walk = rng.standard_normal((*lead, FRAMES + 24, 25), np.float32).cumsum(axis=-2)
    x = (walk[..., 24:, :] - walk[..., :-24, :]) / 5
    x[..., :15] = x[..., :15] > 1
    x[..., 15:17] = np.tanh(0.7 * x[..., 15:17] + 0.3 * rng.standard_normal((*lead, 1, 2), np.float32))
    e = np.exp(2 * x[..., 17:])
    x[..., 17:] = e / e.sum(axis=-1, keepdims=True)
    return x


def _tslearn() -> Warping | str:
    if find_spec("tslearn") is None:
        return "tslearn is not installed (pip install -e '.[bench]')"
    from tslearn.metrics import dtw

    return dtw


def _dtaidistance() -> Warping | str:
    if find_spec("dtaidistance") is None:
        return "dtaidistance is not installed (pip install -e '.[bench]')"
    from dtaidistance import dtw, dtw_ndim

    # Its own program in C; in Python it would be no rival.
    return "dtaidistance was installed without its C library" if dtw.dtw_cc is None else partial(dtw_ndim.distance, use_c=True)


def warpings() -> tuple[dict[str, Warping], dict[str, str]]:
    """Distance of two sequences (frames, channels) of float64 by each peer that is here, and why the others are not."""
    found = {name: make() for name, make in (("tslearn", _tslearn), ("dtaidistance", _dtaidistance))}
    here = {name: warping for name, warping in found.items() if not isinstance(warping, str)}
    return here, {name: reason for name, reason in found.items() if isinstance(reason, str)}
