"""Clips shared out over the processes of torch.distributed, where there are several."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

__all__ = ["gathered", "world_and_rank"]


def world_and_rank() -> tuple[int, int]:
    """Number of processes and which of them this is; (1, 0) without torch.distributed."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of their ranks, on every process."""
    world, _ = world_and_rank()
    if world == 1:
        return [value]
    everything: list[Any] = [None] * world
    dist.all_gather_object(everything, value)
    return everything
