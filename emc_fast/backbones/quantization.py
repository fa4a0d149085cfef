"""Finite scalar quantisation (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv 2309.15505)."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MARGIN = 1e-3
"""How far tanh reaches beyond the outermost level, so that rounding gives that level and not only in the limit."""


class FiniteScalarQuantizer(nn.Module):
    """Each of a few numbers is bounded and rounded to one of its levels; a code is one combination of levels. Nothing is learned.

    With L levels a number z becomes q = round(tanh(z + s) h - o), h = (L - 1)(1 + 1e-3) / 2, o = 1/2 for even L and else 0,
    s = artanh(o / h) (so that 0 stays 0 before rounding), and the code is q / floor(L / 2), in [-1, 1]. The index of a code is
    sum_i (q_i + floor(L_i / 2)) prod_{j<i} L_j: the first number runs fastest.

    Args:
        levels: levels of each number.
    """

    levels: Tensor
    centre: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or any(isinstance(n, bool) or not isinstance(n, int) or n < 2 for n in levels):
            raise ValueError(f"levels takes integers of at least 2, one for each number of a code; got {list(levels)!r}")
        self.dim = len(levels)
        self.codes = math.prod(levels)
        places = itertools.accumulate(levels[:-1], operator.mul, initial=1)
        for name, numbers in (("levels", levels), ("centre", [n // 2 for n in levels]), ("places", list(places))):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """(..., n) of any size to where each level is one unit wide, in float32 at least."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        reach = (self.levels - 1).to(z.dtype) * ((1 + _MARGIN) / 2)
        offset = (self.levels % 2 == 0).to(z.dtype) / 2
        return torch.tanh(z + torch.atanh(offset / reach)) * reach - offset

    def forward(self, z: Tensor) -> Tensor:
        """Codes (..., n) in [-1, 1] of z (..., n); the gradient goes through the rounding as if it were not there."""
        bounded = self.bound(z)
        return (bounded + (bounded.round() - bounded).detach()) / self.centre

    def indices(self, codes: Tensor) -> Tensor:
        """int64 (...) of codes (..., n)."""
        return (((codes.detach() * self.centre).round().long() + self.centre) * self.places).sum(-1)

    def from_indices(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Codes (..., n) of int64 indices (...)."""
        levels = indices[..., None] // self.places % self.levels
        return ((levels - self.centre).to(dtype)) / self.centre

    def table(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All codes (codes, n) in the order of their indices."""
        return self.from_indices(torch.arange(self.codes, device=self.levels.device), dtype)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"levels={self.levels.tolist()}"
