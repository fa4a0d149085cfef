"""Terms of the total loss (eq. 10 of docs/model.md) that are not operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def gaussian_kl(q: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    """KL(N(mu_q, var_q) || N(mu_p, var_p)) of diagonal Gaussians given as (mu, logvar), summed over the last dimension.

    Returns:
        float32 (float64 for float64) of shape mu.shape[:-1].
    """
    dtype = torch.promote_types(q[0].dtype, torch.float32)
    (mu_q, logvar_q), (mu_p, logvar_p) = (tuple(t.to(dtype) for t in pair) for pair in (q, p))
    ratio = logvar_q - logvar_p
    return 0.5 * (ratio.exp() + (mu_q - mu_p).square() * torch.exp(-logvar_p) - 1 - ratio).sum(-1)


_shared = False
"""Whether means count the elements of all processes: a plain name of the module, which torch.compile can guard on."""


@contextmanager
def counts_of_all_processes(enabled: bool = True) -> Iterator[None]:
    """Inside, every mean divides by its number of valid elements in all processes of the default group, per process.

    Data-parallel training takes the mean of the processes' gradients. That is the gradient of the whole batch only where each process
    has as many valid elements as the others; with sum / (count of all / processes) it always is. Every process must compute the same
    losses in the same order, as one number per mean is exchanged.
    """
    global _shared
    before, _shared = _shared, enabled
    try:
        yield
    finally:
        _shared = before


def mean_divisor(shape: torch.Size, mask: Tensor | None, device: torch.device) -> Tensor | int:
    """What a mean over the elements of `shape` divides by: how many there are, or are True in `mask` (of that shape); at least 1."""
    if not _shared:
        return max(shape.numel(), 1) if mask is None else mask.sum().clamp(min=1)
    count = torch.tensor(shape.numel(), device=device) if mask is None else mask.sum()
    torch.distributed.all_reduce(count)
    return count.clamp(min=1).to(torch.float32) / torch.distributed.get_world_size()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `values` over the elements where `mask` (broadcastable) is True; 0 where there is none.

    Values that are not counted are selected away, not multiplied by zero: a NaN there reaches neither the mean nor a gradient.
    """
    if mask is not None:
        mask = mask.expand(values.shape)
        values = torch.where(mask, values, 0)
    return values.sum() / mean_divisor(values.shape, mask, values.device)


def reduce_rows(rows: Tensor, width: int, mask: Tensor | None, reduction: str) -> Tensor:
    """Reduce sums over channels to a scalar.

    Args:
        rows: (B, ...), each already summed over `width` channels.
        width: number of channels that a row stands for.
        mask: rows that count, or None.
        reduction: `mean`: over rows and channels; `paper_sum`: the sum over all rows of a clip, mean over clips.
    """
    if reduction == "mean":
        return masked_mean(rows, mask) / width
    if mask is not None:
        rows = torch.where(mask, rows, 0)
    return rows.sum() / rows.shape[0]


def alignment_rows(target: Tensor, reproduced: Tensor, *, detach: bool = True) -> Tensor:
    """||u - u_hat||^2 (eqs. 16-17) of each frame, (B, T) of (B, T, d), in float32 at least; `detach` as in `alignment_loss`."""
    dtype = torch.promote_types(target.dtype, torch.float32)
    target = (target.detach() if detach else target).to(dtype)
    return (target - reproduced.to(dtype)).square().sum(-1)


def alignment_loss(target: Tensor, reproduced: Tensor, *, mask: Tensor | None, reduction: str = "mean", detach: bool = True) -> Tensor:
    """||u - u_hat||^2 (eqs. 16-17).

    Args:
        target: u (B, T, d).
        reproduced: u_hat (B, T, d).
        mask: (B, T) bool, frames where both modalities are there; None = all.
        reduction: see `reduce_rows`.
        detach: stop the gradient into u, so that the encoder is not drawn to what is easy to reproduce.
    """
    return reduce_rows(alignment_rows(target, reproduced, detach=detach), target.shape[-1], mask, reduction)


def squared_error(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error over valid elements, in float32 at least.

    Args:
        prediction: (B, K, T, C).
        target: (B, T, C), the same for all draws.
        mask: (B, T) bool or None.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    error = (prediction.to(dtype) - target.to(dtype)[:, None]).square()
    return masked_mean(error, None if mask is None else mask[:, None, :, None])


def diversity_loss(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """exp(-||Y_1 - Y_2||^2 / 100), the squared distance summed over frames and channels; mean over sequences.

    Args:
        first, second: (B, K, T, C), two reactions to the same clip.
        mask: (B, T) bool or None.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    distance = (first.to(dtype) - second.to(dtype)).square()
    if mask is not None:
        distance = torch.where(mask[:, None, :, None], distance, 0)
    return torch.exp(-distance.sum((-2, -1)) / 100).mean()
