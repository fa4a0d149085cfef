"""How precisely float32 operands are multiplied, where a processor offers less for more speed: a setting of the process, of ours alone."""

from __future__ import annotations

import os
from typing import Literal, get_args

from ._library import native

Precision = Literal["highest", "high", "medium"]
PRECISIONS = get_args(Precision)
VARIABLE = "EMC_FAST_FLOAT32_PRECISION"


def set_float32_precision(precision: Precision) -> None:
    """Say how precisely :func:`emc_fast.ops.attention` and :func:`emc_fast.ops.attention_block` multiply float32 from now on.

    Args:
        precision: ``"highest"``: at float32's own accuracy, which is where every process starts unless the environment variable
            ``EMC_FAST_FLOAT32_PRECISION`` says otherwise. ``"high"``: operands are taken to 16 bits, an error of about 2^-17 of each.
            ``"medium"``: they are rounded to bfloat16, 2^-8 of each. Sums, softmax, residual and LayerNorm stay in float32.

    It changes something where there is hardware for it: on the CPU with matrix tiles (instruction set ``amx``), and with AVX-512's products
    of bfloat16 (``bf16``), for which ``"high"`` is ``"highest"``. Everywhere else all three compute what ``"highest"`` does. The setting is
    the process's, taken by each call when it starts, and independent of ``torch.set_float32_matmul_precision``. Backward takes the one of
    its own time: leave it alone between the two.

    Raises:
        TypeError: ``precision`` is not a string.
        ValueError: it is another string.
    """
    native().set_float32_precision(_checked(precision, "precision"))


def get_float32_precision() -> Precision:
    """The precision in use; ``"highest"`` without the native library."""
    precision: Precision = native().float32_precision  # type: ignore[assignment]
    return precision


def set_from_environment() -> None:
    """Take what the environment variable says, where it says something; called once, when the operators are imported."""
    if wanted := os.environ.get(VARIABLE):
        native().set_float32_precision(_checked(wanted, VARIABLE))


def _checked(precision: object, name: str) -> str:
    if not isinstance(precision, str):
        raise TypeError(f"{name} must be a string, got {type(precision).__name__}")
    if precision not in PRECISIONS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    return precision
