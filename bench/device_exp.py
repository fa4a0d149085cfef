"""A yardstick for a GPU: how many exponentials a second its special-function units make when nothing else holds them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

PROGRAMS, BLOCK, TIMES = 2112, 1024, 128  # programs: a multiple of the 132 multiprocessors of a Hopper GPU, 16 warps or more on each


@triton.jit
def _chain(x_ptr, out_ptr, times, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each value `times` times through 2^-x, which stays within (0, 1): eight chains to a thread, of 4 warps."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    for _ in range(times):
        x = tl.exp2(-x)
    tl.store(out_ptr + at, x)


def exponentials_in_registers(device: str, programs: int = PROGRAMS, times: int = TIMES) -> tuple[Callable[[], Any], float]:
    """A call, and how many exponentials it makes."""
    x = torch.rand(programs * BLOCK, device=device)
    out = torch.empty_like(x)

    def call() -> torch.Tensor:
        _chain[programs,](x, out, times, BLOCK=BLOCK)
        return out

    return call, float(programs * BLOCK * times)
