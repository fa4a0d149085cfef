"""What a backbone's methods gave, looked at by shape: an error that names the method instead of one from the depths of EMC."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_shape(backbone: object, method: str, given: Any, names: str, *shape: int) -> None:
    """Raise a ValueError that names class and method unless `given` is a tensor of that shape; metadata only.

    Args:
        backbone: whose method it was.
        method: its name, and what of its result it is.
        given: the result.
        names: what the dimensions are, with commas between.
        shape: what is taken.
    """
    if not isinstance(given, Tensor):
        raise ValueError(f"{type(backbone).__name__}.{method} gave {type(given).__name__}; a tensor ({names}) = {shape} is taken")
    if given.ndim != len(shape) or any(found != wanted for found, wanted in zip(given.shape, shape, strict=True)):
        raise ValueError(f"{type(backbone).__name__}.{method} gave a tensor of shape {tuple(given.shape)}; ({names}) = {shape} is taken")
