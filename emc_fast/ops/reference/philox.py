"""Definition of the noise: Philox4x32-10 in int64 arithmetic, the same bits on every device.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The mapping from tensor elements to counters
is ours; docs/operators.md states it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds; every word is an int64 tensor with a value in [0, 2**32). Shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words may wrap in int64; its bits are right all the same, and the mask takes off the sign's extension.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def blocks(shape: tuple[int, ...], seed: Tensor, *, stream: int = 0, frame_offset: int | Tensor = 0) -> tuple[Tensor, ...]:
    """The four words of every block of a tensor of ``shape``, each ``(seeds, rest, T, ceil(d / 4))`` int64."""
    *lead, frames, width = (1, *shape) if len(shape) == 1 else shape
    device = seed.device
    per_frame = (width + 3) // 4
    seeds = seed.reshape(-1, 1, 1, 1)
    rest = math.prod(lead[seed.dim() :]) if tuple(seed.shape) == tuple(lead[: seed.dim()]) else math.prod(lead)
    frame = torch.arange(frames, device=device).view(1, 1, -1, 1) + frame_offset
    n = frame * per_frame + torch.arange(per_frame, device=device)
    r = torch.arange(rest, device=device).view(1, -1, 1, 1)
    counter = (n & _MASK, (n >> 32) & _MASK, r, torch.full_like(r, stream))
    shape4 = (seeds.shape[0], rest, frames, per_frame)
    return tuple(word.expand(shape4) for word in philox4x32(counter, (seeds & _MASK, (seeds >> 32) & _MASK)))


def _uniform(word: Tensor) -> Tensor:
    """(w >> 9 + 1/2) 2^-23 in float64; exact in float32 too."""
    return ((word >> 9).double() + 0.5) * 2.0**-23


def _arrange(words: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Words side by side, cut to the width, in the tensor's shape."""
    width = shape[-1]
    stacked = torch.stack(words, dim=-1).flatten(-2)
    return stacked[..., :width].reshape(shape)


def philox_words(shape: tuple[int, ...], seed: Tensor, *, stream: int = 0, frame_offset: int | Tensor = 0) -> Tensor:
    """The 32-bit word of every element, as int64."""
    return _arrange(list(blocks(shape, seed, stream=stream, frame_offset=frame_offset)), shape)


def philox_uniform(
    shape: tuple[int, ...], seed: Tensor, *, stream: int = 0, frame_offset: int | Tensor = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniforms in (0, 1)."""
    return _uniform(philox_words(shape, seed, stream=stream, frame_offset=frame_offset)).to(dtype)


def philox_normal(
    shape: tuple[int, ...], seed: Tensor, *, stream: int = 0, frame_offset: int | Tensor = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals by Box-Muller on the word pairs (0, 1) and (2, 3), computed in float64 and rounded once."""
    u = [_uniform(word) for word in blocks(shape, seed, stream=stream, frame_offset=frame_offset)]
    normals = []
    for first, second in ((u[0], u[1]), (u[2], u[3])):
        radius, angle = torch.sqrt(-2.0 * torch.log(first)), 2.0 * math.pi * second
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return _arrange(normals, shape).to(dtype)


def dropout(x: Tensor, p: float, *, seed: Tensor, stream: int = 0, frame_offset: int | Tensor = 0) -> Tensor:
    """``x / (1 - p)`` where ``u >= p``, else 0."""
    keep = _uniform(philox_words(tuple(x.shape), seed, stream=stream, frame_offset=frame_offset)) >= p
    return torch.where(keep, x * (1.0 / (1.0 - p) if p < 1.0 else 0.0), torch.zeros((), dtype=x.dtype, device=x.device))
