"""Seeds per clip and per draw, and dropout on the package's counter-based noise.

Every random number of the model comes from Philox under a seed *per clip*, so that a clip's reaction does not depend on its batch
mates. Other seeds (the clips of a batch under one seed, several draws, the second copy of a stream, the windows of a clip) are made
from a given one by an exclusive or with a 64-bit mix of what tells them apart: no host synchronisation, no state, and number 0 of
each keeps the seed as it is, so that the first draw is the same however many are asked for.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import streams

EA_FACE, EA_SPEECH, EA_FUSED, EA_SAMPLE = (streams.module_base(index) for index in range(4))
"""Noise streams of EMC's attention modules."""
BACKBONE = tuple(streams.module_base(index) for index in range(8, 16))
"""Noise streams of a backbone's modules."""


def layer_stream(layer: int) -> int:
    """First noise stream of a layer, numbered from 0 through the whole backbone, where there are more modules than `BACKBONE` has."""
    return streams.module_base(16 + layer)


_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Tensor) -> Tensor:
    """Finaliser of splitmix64 on int64 (the multiplications wrap, the shifts are logical); maps 0 to 0 and is a bijection."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_MULTIPLIERS[0])
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_MULTIPLIERS[1])
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def clip_seeds(seed: Tensor, index: Tensor) -> Tensor:
    """One seed per clip from one seed for all.

    Args:
        seed: int64 (1,).
        index: int64 (B,), what tells the clips apart: the place in the batch, or the number in the corpus (then a clip's
            reaction stays the same in whatever batch it is computed).

    Returns:
        int64 (B,): `seed ^ mix(index)`; index 0 keeps the seed.
    """
    return seed ^ _mix(index)


@overload
def seed_variant(seeds: Tensor, number: int) -> Tensor: ...
@overload
def seed_variant(seeds: None, number: int) -> None: ...
@overload
def seed_variant(seeds: Tensor | None, number: int) -> Tensor | None: ...
def seed_variant(seeds: Tensor | None, number: int) -> Tensor | None:
    """Seeds (B,) for another copy of the same clips: a compensated stream, a window, the second pass. Number 0 is the original."""
    if seeds is None or number == 0:
        return seeds
    value = number << 32
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & mask
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & mask
    return seeds ^ _signed(value ^ (value >> 31))


def stack_seeds(seeds: Tensor | None, copies: int) -> Tensor | None:
    """Seeds (copies * B,) for copies of the same clips stacked along the batch; copy 0 keeps the seeds."""
    if seeds is None or copies == 1:
        return seeds
    return torch.cat([seed_variant(seeds, number) for number in range(copies)])


def fold_seeds(seeds: Tensor | None, draws: int) -> Tensor | None:
    """Seeds (B * K,) for K draws folded into the batch, the draws of a clip side by side; draw 0 keeps the clip's seed."""
    if seeds is None or draws == 1:
        return seeds
    numbers = torch.arange(draws, device=seeds.device, dtype=torch.int64) << 48
    return (seeds[:, None] ^ _mix(numbers)).reshape(-1)


def resolve_seed(seed: int | Tensor | None, batch: int, device: torch.device) -> Tensor:
    """The `seed` argument of the model as one seed per clip.

    Args:
        seed: None draws one on the device from torch's default generator; an int, or int64 (1,), is told apart by the place in the
            batch (`clip_seeds`); int64 (B,) is used as it is.
        batch: number of clips B.
        device: where the noise is needed.

    Returns:
        int64 (B,) on the device.

    Raises:
        TypeError, ValueError: another type, dtype or shape.
    """
    if seed is None:
        seed = ops.draw_seed(device)
    elif isinstance(seed, bool) or not isinstance(seed, int | Tensor):
        raise TypeError(f"seed takes None, an int or an int64 tensor; got {type(seed).__name__}")
    elif isinstance(seed, int):
        if not -(1 << 63) <= seed < 1 << 64:
            raise ValueError(f"seed takes 64 bits; got {seed}")
        seed = torch.full((1,), _signed(seed), dtype=torch.int64, device=device)
    if seed.dtype != torch.int64 or tuple(seed.shape) not in ((1,), (batch,)):
        raise ValueError(f"seed takes int64 of shape (1,) or (B,) = ({batch},); got {seed.dtype} of shape {tuple(seed.shape)}")
    seed = seed.to(device)
    return clip_seeds(seed, torch.arange(batch, device=device)) if seed.shape[0] == 1 else seed


class Dropout(nn.Module):
    """Dropout on Philox noise: the mask is a function of (seed, stream, place) and is made again in backward instead of stored.

    Args:
        p: probability of a zero, in training.
        stream: number of this place of use in the noise specification.
    """

    def __init__(self, p: float, *, stream: int = 0) -> None:
        super().__init__()
        self.p = p
        self.stream = stream

    def forward(self, x: Tensor, *, seed: Tensor | None = None) -> Tensor:
        """`x` (*lead, T, d) with elements dropped and the others scaled by 1/(1-p); the identity in evaluation."""
        if not self.training or self.p == 0:
            return x
        return ops.dropout(x, self.p, seed=seed, stream=self.stream)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"p={self.p}, stream={self.stream}"
