"""What a call costs beside time: peak memory, and operators dispatched."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Amounts = tuple[float, float]
"""Of forward, and of forward with backward."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def attention_work(pairs: float, width: int) -> tuple[Amounts, Amounts]:
    """Flops and exponentials of attention over so many pairs of all heads together, heads of `width`."""
    # Two products forward, five backward, which makes the probabilities again.
    return (4 * pairs * width, 14 * pairs * width), (pairs, 2 * pairs)


def block_work(batch: int, frames: int, width: int, heads: int, blocks: int = 1) -> tuple[Amounts, Amounts]:
    """The same of whole self-attention blocks, with their four projections."""
    flops = blocks * (4 * 2.0 * batch * frames * width**2 + 4.0 * batch * frames**2 * width)
    pairs = float(blocks * batch * heads * frames**2)
    return (flops, 3 * flops), (pairs, 2 * pairs)


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Most memory resident during a call, beyond what was resident before; None where the system cannot tell (it is Linux that can).

    On a GPU it is what torch's allocator has handed out. On the CPU the allocator gives back all free pages first, and the system's
    high-water mark is set to the present: what is then measured is exact to some pages a core, and holds every allocation, torch's or not.
    The call has to have run before: what a first call leaves for good would count.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        given = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - given
    if not CLEAR.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return max(peak - before, 0)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def dispatched(call: Callable[[], Any]) -> int:
    """Operators that one call runs, views apart: what would be launched on a GPU, at the least."""
    with _Count() as count:
        call()
    return count.number
