"""Tile sizes and warps of every kernel: one table by operator, compute capability and size class, looked up and never searched.

No GPU has measured these entries. They are a heuristic: enough bytes in flight for the memory-bound operators, no spilled registers in
what the compile gate sees (tests/ops/test_triton_compile.py). An entry for capability 0 serves every device without one of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from . import interpreting
from ._launch import capability


class RowConfig(NamedTuple):
    """Kernels over rows: elements of a tile, its most columns, and warps."""

    elements: int
    columns: int
    warps: int


#: (operator, capability, "narrow" up to 64 columns or "wide").
ROW_CONFIGS: dict[tuple[str, int, str], RowConfig] = {
    ("philox", 0, "narrow"): RowConfig(1024, 64, 4),
    ("philox", 0, "wide"): RowConfig(1024, 1024, 4),
    ("fusion_kl", 0, "narrow"): RowConfig(512, 64, 4),
    ("fusion_kl", 0, "wide"): RowConfig(512, 512, 4),
    ("fusion_kl_categorical", 0, "narrow"): RowConfig(512, 64, 4),
    ("fusion_kl_categorical", 0, "wide"): RowConfig(1024, 1024, 4),
    ("reparameterize", 0, "narrow"): RowConfig(1024, 64, 4),
    ("reparameterize", 0, "wide"): RowConfig(1024, 1024, 4),
}


class Tile(NamedTuple):
    """One program's share of rows; ``long`` where row numbers need 64 bits."""

    rows: int
    columns: int
    warps: int
    long: bool


def tile_of(operator: str, like: torch.Tensor, rows: int, width: int) -> Tile:
    """The tile for ``rows`` rows of ``width`` elements."""
    size = "narrow" if width <= 64 else "wide"
    found = ROW_CONFIGS.get((operator, capability(like), size)) or ROW_CONFIGS[operator, 0, size]
    columns = min(max(triton.next_power_of_2(width), 4), found.columns)
    elements = found.elements
    if interpreting():  # which pays per program and not per element: one for little, two or three for more
        columns = min(max(triton.next_power_of_2(width), 4), 4096)
        elements = max(1 << 15, rows * columns // 2)
    per_tile = max(1, min(triton.next_power_of_2(elements // columns), triton.next_power_of_2(rows)))
    return Tile(per_tile, columns, found.warps, rows + per_tile >= 2**31)
