"""How an operator is recorded for differentiation, and second derivatives by way of the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._library import libraries, register_autograd, remember
from ._library import raw as raw_of


def differentiable(name: str, *, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Give the raw operator ``name`` its derivative, and return the quick way to call it.

    The derivative is registered with the dispatcher, for the compiler, export and everyone who calls the raw operator. That way costs
    several microseconds of Python on every call, gradient or not; in eager mode the returned function goes past it: straight to the
    kernel when nothing needs a gradient, through a plain ``autograd.Function`` when something does.

    Args:
        name: of a declared operator; its arguments are positional.
        setup: ``setup(ctx, inputs, output)`` keeps what backward needs.
        backward: ``backward(ctx, *grads)``, one entry per input; calls further raw operators of ``ctx.backend``.

    Returns:
        ``call(backend, *args)``, with the back end that was chosen.
    """
    register_autograd(name, backward, setup_context=setup)
    calls = {backend: _caller(name, backend, setup, backward) for backend in libraries(name)}
    native, triton = calls["native"], calls.get("triton")

    def call(backend: str, *args: Any) -> Any:
        if backend == "triton":
            assert triton is not None, f"{name} has no Triton kernel"
            return triton(*args)
        return native(*args)

    return call


def _caller(name: str, backend: str, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    raw = getattr(raw_of(backend), name).default
    record = recorded(raw, backend, setup=setup, backward=backward)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return raw(*args)
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    return record(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return raw(*args)

    return call


def recorded(raw: Callable[..., Any], backend: str, *, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """``raw`` as one node of autograd in eager mode; ``setup`` and ``backward`` as for :func:`differentiable`, with ``ctx.backend`` set."""
    setup = remember(backend, setup)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = raw(*args)
            setup(ctx=ctx, inputs=args, output=output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    apply: Callable[..., Any] = Recorded.apply
    return apply


def is_plain() -> bool:
    """Whether calls are taken at their word: eager mode without a transform, autocast or forward differentiation to mind."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._is_any_autocast_enabled():
        return False
    return bool(forward_ad._current_level < 0)


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether a call on ``tensors`` becomes a node of autograd."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


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
