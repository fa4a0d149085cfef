"""Seeds as pure functions of what they are for, so that nothing random has to be remembered between two runs.

A step's noise depends on (run seed, step, clip), a generated reaction's on (seed, clip): not on the batch, not on the number of
processes, not on what was drawn before. That is what makes resuming exact and sharding invisible.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_MASK = (1 << 64) - 1

# What a seed is for; the first word after the run's seed, so that no two uses ever share noise.
ORDER, TRAIN, VALIDATE, TORCH, GENERATE, MISSING, INIT = range(1, 8)


def derive(seed: int, *words: int) -> int:
    """Return a 64-bit seed in [0, 2^64) that is a pure function of ``seed`` and the integers after it.

    Each word goes through the finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64 bits: seeds that differ in one
    word only never collide.
    """
    state = 0
    for word in (seed, *words, len(words)):
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def derive_signed(seed: int, *words: int) -> int:
    """Like `derive`, as the signed 64-bit number with the same bits (what an int64 tensor and ``torch.manual_seed`` hold)."""
    value = derive(seed, *words)
    return value - (1 << 64) if value >> 63 else value


def clip_seeds(seed: int, purpose: int, clips: Iterable[int], *words: int) -> Tensor:
    """Return int64 seeds (B,), one per dataset index in ``clips``."""
    return torch.tensor([derive_signed(seed, purpose, *words, int(clip)) for clip in clips], dtype=torch.int64)
