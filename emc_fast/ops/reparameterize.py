"""The reparameterised draw from a diagonal Gaussian, with its divergence to the standard normal, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _backend, _library
from ._checks import check_same, check_stream, check_tensor
from .philox import as_frame_offset, as_seed
from .reference.reparameterize import reparameterize as definition

_NOISE = "Tensor? seed, int stream, Tensor? frame_offset, Tensor? noise"
_library.define(f"reparameterize(Tensor mu, Tensor logvar, {_NOISE}) -> (Tensor, Tensor)")
_library.define(
    f"reparameterize_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, {_NOISE}) -> (Tensor, Tensor)",
)
_backend.register_operator("reparameterize")


def _fake(mu: Tensor, logvar: Tensor, seed: Tensor | None, stream: int, frame_offset: Tensor | None, noise: Tensor | None) -> Any:
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape[:-1], dtype=torch.float32)


def _fake_backward(grad_z: Tensor, grad_kl: Tensor, mu: Tensor, *_: Any) -> Any:
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    mu, logvar, seed, ctx.stream, frame_offset, noise = inputs
    ctx.save_for_backward(mu, logvar, seed, frame_offset, noise)


def _backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
    mu, logvar, seed, frame_offset, noise = ctx.saved_tensors
    if _autograd.wants_graph():

        def again(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            offset = 0 if frame_offset is None else frame_offset
            return definition(m, v, seed=seed, stream=ctx.stream, frame_offset=offset, noise=noise)

        grads = _autograd.backward_of_definition(again, (mu, logvar), ctx.needs_input_grad[:2], (grad_z, grad_kl))
    else:
        grads = _library.raw(ctx.backend).reparameterize_backward(grad_z, grad_kl, mu, logvar, seed, ctx.stream, frame_offset, noise)
    return *grads, None, None, None, None


_library.register_fake("reparameterize", _fake)
_library.register_fake("reparameterize_backward", _fake_backward)
_reparameterize = _autograd.differentiable("reparameterize", setup=_setup, backward=_backward)


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: Tensor | int | None = None,
    stream: int = 0,
    frame_offset: int | Tensor = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw from N(mu, exp(logvar)) and give the divergence of that distribution to N(0, I).

    ``z = mu + exp(logvar / 2) * eps``, ``kl = 1/2 sum_d(mu^2 + exp(logvar) - 1 - logvar)``. The noise is made inside the kernel and made
    again in backward; it is never stored.

    Args:
        mu: ``(*lead, T, d)`` float32, float16, bfloat16 or float64, any strides (K draws of one distribution: expand it). ``(d,)`` is one
            frame. A clip-level vector per sequence is ``(*lead, 1, d)``, so that each sequence is a leading index of the noise.
        logvar: like ``mu``.
        seed, stream, frame_offset: the noise, as in :func:`emc_fast.ops.philox_normal`.
        noise: eps itself, like ``mu``, instead of a seed; a constant, without gradient.

    Returns:
        ``z`` like ``mu`` (dense), and ``kl`` of shape ``mu.shape[:-1]`` in float32 (float64 for float64). Differentiable in ``mu`` and
        ``logvar`` to any order. Under autocast both inputs are taken in float32, as torch does for losses and exponentials.

    Raises:
        TypeError, ValueError: an argument is not as above; the text names it.
    """
    check_tensor("mu", mu, min_dim=1)
    check_tensor("logvar", logvar, min_dim=1)
    if torch.is_autocast_enabled(mu.device.type):
        mu, logvar = mu.float(), logvar.float()
        noise = noise.float() if isinstance(noise, Tensor) else noise
    check_same("logvar", logvar, "mu", mu)
    check_stream(stream)
    offset = as_frame_offset(frame_offset, mu.device)
    if noise is None:
        seed = as_seed(seed, mu.shape, mu.device)
    else:
        if seed is not None:
            raise ValueError("give seed or noise, not both")
        check_tensor("noise", noise, min_dim=1)
        check_same("noise", noise, "mu", mu)
        if noise.requires_grad:
            raise ValueError("noise must not require a gradient: it is a constant of the draw; detach it")
    backend = _backend.choose("reparameterize", mu.device, mu.dtype)
    if backend == "reference":
        return definition(mu, logvar, seed=seed, stream=stream, frame_offset=0 if offset is None else offset, noise=noise)
    return _reparameterize(backend, mu, logvar, seed, stream, offset, noise)
