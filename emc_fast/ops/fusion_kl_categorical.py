"""The fusion loss between the fused categorical distributions of the real and the two compensated streams."""

from __future__ import annotations

from torch import Tensor

from .fusion_kl import check_inputs
from .reference.fusion_kl_categorical import fusion_kl_categorical as _reference


def fusion_kl_categorical(
    real: Tensor, comp_face: Tensor, comp_speech: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """KL(real || comp_face) + KL(real || comp_speech) + KL(comp_face || comp_speech) of categorical distributions, in one pass.

    Equation 14 of the EMC paper, not symmetrised and with gradients into all three. With ``log p = log_softmax(logits)`` over
    the last dimension, ``KL(p || q) = sum_i p_i (log p_i - log q_i)``.

    A logit of -inf excludes a class: where ``p`` excludes it the class adds 0 (0 log 0 = 0); where ``q`` alone excludes it the
    loss of that row is inf, and its gradients are not defined. A row in which every logit is -inf is no distribution: NaN.

    Args:
        real: logits (..., V), float32, float16, bfloat16 or float64.
        comp_face: logits (..., V) of the fusion whose face was compensated.
        comp_speech: logits (..., V) of the fusion whose speech was compensated.
        mask: bool, broadcastable to the leading dimensions (...): True where a row counts. Rows that do not count may hold
            NaN or Inf; their gradients are exactly 0.
        reduction: ``"mean"`` over the rows that count (0, with zero gradients, when there is none), ``"sum"``, or ``"none"``
            for one value per row, 0 where masked.

    Returns:
        A scalar, or (...) for ``"none"``; float32, or float64 for float64 inputs. Computed in that precision.

    Raises:
        TypeError: an argument that is no tensor, or a dtype that is not taken or not the same everywhere.
        ValueError: shapes or devices that differ, an unknown reduction.

    """
    names = ("real", "comp_face", "comp_speech")
    tensors = check_inputs("fusion_kl_categorical", names, (real, comp_face, comp_speech), mask, reduction)
    return _reference(*tensors, mask, reduction)
