"""Second derivatives: where a backward pass is itself to be differentiated, the definition takes the kernel's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def wants_graph() -> bool:
    """Whether the running backward pass is being recorded (``create_graph=True``)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def backward_of_definition(
    definition: Callable[..., Any], inputs: Sequence[Tensor | None], needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``definition(*inputs)`` as a recorded computation, so that they can be differentiated again, to any order.

    Args:
        definition: differentiable function of the inputs; returns a tensor or a tuple of tensors.
        inputs: its tensor arguments, as they were saved (still connected to the caller's graph).
        needed: which of them get a gradient.
        grads: gradients of the outputs; None for an output that the loss does not see.

    Returns:
        One entry per input, None where it is not needed.
    """
    with torch.enable_grad():
        # Views, so that a tensor passed for two arguments gets each one's share and not twice the sum.
        views = [x.view_as(x) if x is not None and need else x for x, need in zip(inputs, needed, strict=True)]
        outputs = definition(*views)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        seen = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
        wanted = [view for view, need in zip(views, needed, strict=True) if view is not None and need]
        if not seen or not wanted:
            return tuple(None for _ in inputs)
        found = iter(
            torch.autograd.grad([out for out, _ in seen], wanted, [grad for _, grad in seen], create_graph=True, allow_unused=True)
        )
        return tuple(next(found) if view is not None and need else None for view, need in zip(views, needed, strict=True))
