"""Tile sizes and warps of every kernel: one table by operator, compute capability and size class, looked up and never searched.

The entries here have capability 0 and serve every device without one of its own. No GPU has measured them; they are a heuristic: enough
bytes in flight for the memory-bound operators, no spilled registers in what the compile gate sees (tools/triton_resources.py). What was
measured (bench/tune_triton.py) stands in ``_tuned.json``, by capability.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

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
    ("attention_block", 0, "narrow"): RowConfig(512, 64, 4),
    ("attention_block", 0, "wide"): RowConfig(1024, 1024, 4),
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


def tile_of(operator: str, like: torch.Tensor, rows: int, width: int, whole: bool = False) -> Tile:
    """The tile for ``rows`` rows of ``width`` elements; of ``whole`` rows where a kernel does not walk along them."""
    size = "narrow" if width <= 64 else "wide"
    found = ROW_CONFIGS.get((operator, capability(like), size)) or ROW_CONFIGS[operator, 0, size]
    columns = min(max(triton.next_power_of_2(width), 4), found.columns)
    elements = found.elements
    if interpreting():  # which pays per program and not per element: one for little, two or three for more
        columns = min(max(triton.next_power_of_2(width), 4), 4096)
        elements = max(1 << 15, rows * columns // 2)
    if whole:
        columns = max(triton.next_power_of_2(width), 4)
    per_tile = max(1, min(triton.next_power_of_2(max(1, elements // columns)), triton.next_power_of_2(rows)))
    return Tile(per_tile, columns, found.warps, rows + per_tile >= 2**31)


class Band(NamedTuple):
    """Warping of time: frames of x that are gone over together, the most channels of a tile, and warps."""

    frames: int
    channels: int
    warps: int


#: (operator, capability). One warp: its lanes hand values to each other without a barrier. A lane holds the channels of two frames.
BANDS: dict[tuple[str, int], Band] = {("dtw", 0): Band(32, 32, 1)}


def band_of(like: torch.Tensor, frames: int) -> Band:
    """The band for sequences of ``frames`` frames."""
    if interpreting():  # which pays per step and not per frame: as few bands as a test of their border allows
        return Band(min(max(triton.next_power_of_2(frames) // 2, 16), 1024), 512, 1)
    return BANDS.get(("dtw", capability(like))) or BANDS["dtw", 0]


class AttentionConfig(NamedTuple):
    """Tiles of attention: queries and keys at a time, warps, stages of the load pipeline, and the padded head width."""

    queries: int
    keys: int
    warps: int
    stages: int
    width: int = 0

    def options(self) -> dict[str, int]:
        """The compile-time arguments."""
        return {"BD": self.width, "BM": self.queries, "BN": self.keys, "num_warps": self.warps, "num_stages": self.stages}


#: (pass, capability, bytes of an element, padded head width up to 32, 64 or 128). With dropout half as
#: many queries are shared by 8 warps: the noise takes registers.
ATTENTION_CONFIGS: dict[tuple[str, int, int, int], AttentionConfig] = {
    ("forward", 0, 2, 32): AttentionConfig(128, 64, 4, 3),
    ("forward", 0, 2, 64): AttentionConfig(128, 64, 4, 3),
    ("forward", 0, 2, 128): AttentionConfig(128, 64, 8, 2),
    ("backward queries", 0, 2, 32): AttentionConfig(64, 64, 4, 2),
    ("backward queries", 0, 2, 64): AttentionConfig(64, 64, 4, 2),
    ("backward queries", 0, 2, 128): AttentionConfig(64, 64, 8, 2),
    ("backward keys", 0, 2, 32): AttentionConfig(64, 64, 4, 2),
    ("backward keys", 0, 2, 64): AttentionConfig(64, 64, 4, 2),
    ("backward keys", 0, 2, 128): AttentionConfig(32, 64, 8, 2),
    # float32 is multiplied without tensor cores: small tiles.
    ("forward", 0, 4, 32): AttentionConfig(32, 32, 4, 2),
    ("forward", 0, 4, 64): AttentionConfig(32, 32, 4, 2),
    ("forward", 0, 4, 128): AttentionConfig(32, 32, 8, 1),
    ("backward queries", 0, 4, 32): AttentionConfig(32, 32, 4, 2),
    ("backward queries", 0, 4, 64): AttentionConfig(32, 32, 4, 1),
    ("backward queries", 0, 4, 128): AttentionConfig(32, 16, 8, 1),
    ("backward keys", 0, 4, 32): AttentionConfig(32, 32, 4, 1),
    ("backward keys", 0, 4, 64): AttentionConfig(32, 32, 4, 2),
    ("backward keys", 0, 4, 128): AttentionConfig(32, 32, 8, 1),
}


def attention_config(step: str, like: torch.Tensor, width: int, dropout: bool) -> AttentionConfig:
    """Tiles for a pass over heads of ``width``. They do not depend on lengths: padding a sequence changes no bit."""
    padded = max(16, triton.next_power_of_2(width))
    if interpreting():
        return AttentionConfig(256, 256, 1, 1, padded)
    key = like.element_size(), max(32, padded)
    found = ATTENTION_CONFIGS.get((step, capability(like), *key)) or ATTENTION_CONFIGS[(step, 0, *key)]
    queries = max(16, found.queries // 2) if dropout else found.queries
    return found._replace(queries=queries, warps=8 if dropout else found.warps, width=padded)


#: The tables by name, each with the type of its entries.
TABLES: dict[str, tuple[dict[Any, Any], Any]] = {
    "rows": (ROW_CONFIGS, RowConfig),
    "bands": (BANDS, Band),
    "attention": (ATTENTION_CONFIGS, AttentionConfig),
}
TUNED = Path(__file__).with_name("_tuned.json")


def take_tuned(path: Path = TUNED) -> None:
    """Put the measured entries of the file into the tables."""
    for row in json.loads(path.read_text())["measurements"]:
        table, kind = TABLES[row["table"]]
        table[tuple(row["key"])] = kind(*row["config"])


take_tuned()
