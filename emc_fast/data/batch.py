"""Batches of clips of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import DataError


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples of a data set, padded with zeros (and False) to the longest.

    Args:
        samples: what ``REACTDataset`` gives; each holds the same entries.

    Returns:
        every tensor ``(T, ...)`` as ``(B, T, ...)``; ``lengths`` and ``index`` int64 ``(B,)``; ``name`` a list of B strings.

    Raises:
        DataError: no samples, or samples with different entries or widths.
    """
    if not samples:
        raise DataError("collate got no samples; at least one is needed")
    batch: dict[str, Any] = {}
    lengths = [int(sample["length"]) for sample in samples]
    longest = max(lengths)
    for key, first in samples[0].items():
        if not isinstance(first, torch.Tensor):
            continue
        values: list[torch.Tensor] = [sample.get(key) for sample in samples]  # type: ignore[misc]
        if any(not isinstance(v, torch.Tensor) or v.shape[1:] != first.shape[1:] or v.dtype != first.dtype for v in values):
            raise DataError(f"collate: {key!r} differs in width or type between {samples[0]['name']} and another sample")
        if all(length == longest for length in lengths):
            batch[key] = torch.stack(values)
            continue
        padded = first.new_zeros((len(samples), longest, *first.shape[1:]))
        for row, value, length in zip(padded, values, lengths, strict=True):
            row[:length] = value
        batch[key] = padded
    batch["lengths"] = torch.tensor(lengths, dtype=torch.int64)
    batch["index"] = torch.tensor([int(sample["index"]) for sample in samples], dtype=torch.int64)
    batch["name"] = [sample["name"] for sample in samples]
    return batch
