"""The reparameterised draw with its divergence to N(0, I) in Triton: one pass forward, one backward, noise in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._configs import tile_of
from ._launch import as_rows, device_guard, fresh, noise_of
from ._math import exp, rounded
from .philox import noise_rows, normal_tile, row_index, row_offset

__all__ = ["reparameterize", "reparameterize_backward"]

_UNSPECIALISED = ("rows", "frames", "rows_per_seed", "stream", "n1", "n2")


@triton.jit(do_not_specialize=_UNSPECIALISED)
def forward_kernel(
    mu, logvar, given, z, kl, rows, width, n1, n2, m0, m1, m2, mc, v0, v1, v2, vc, g0, g1, g2, gc,
    seeds, frames, rows_per_seed, stream, frame_offset,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """z (rows, width) dense, kl (rows,) float32. `given` is the noise, or None where it is made here.

    Rows are summed in float64: the order of the sum follows the layout that Triton picks for the strides, and must not show.
    """
    row = row_index(ROWS, LONG)[:, None]
    live = row < rows
    mu += row_offset(row, n1, n2, m0, m1, m2, OUTER)
    logvar += row_offset(row, n1, n2, v0, v1, v2, OUTER)
    if given is None:
        k0, k1, r, low, high = noise_rows(row, live, width, seeds, frames, rows_per_seed, frame_offset)
    else:
        given += row_offset(row, n1, n2, g0, g1, g2, OUTER)
    total = tl.zeros((ROWS,), tl.float64)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = live & (column < width)
        m = tl.load(mu + column.to(tl.int64) * mc, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(logvar + column.to(tl.int64) * vc, mask=inside, other=0.0).to(tl.float32)
        if given is None:
            eps = normal_tile(start // 4 + tl.arange(0, COLUMNS // 4)[None, :], k0, k1, r, low, high, stream)
        else:
            eps = tl.load(given + column.to(tl.int64) * gc, mask=inside, other=0.0).to(tl.float32)
        drawn = m + exp(0.5 * v) * eps
        tl.store(z + row.to(tl.int64) * width + column, rounded(drawn, z.dtype.element_ty), mask=inside)
        total += tl.sum((m * m + (exp(v) - 1.0 - v)).to(tl.float64), axis=1)  # places outside hold zeros and add exactly nothing
    flat = row_index(ROWS, LONG)
    tl.store(kl + flat, (0.5 * total).to(tl.float32), mask=flat < rows)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def backward_kernel(
    mu, logvar, given, grad_z, grad_kl, grad_mu, grad_logvar, rows, width, n1, n2,
    m0, m1, m2, mc, v0, v1, v2, vc, g0, g1, g2, gc, z0, z1, z2, zc, k_0, k_1, k_2,
    seeds, frames, rows_per_seed, stream, frame_offset,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Dense gradients of mu and logvar; the noise is made again."""
    row = row_index(ROWS, LONG)[:, None]
    live = row < rows
    mu += row_offset(row, n1, n2, m0, m1, m2, OUTER)
    logvar += row_offset(row, n1, n2, v0, v1, v2, OUTER)
    grad_z += row_offset(row, n1, n2, z0, z1, z2, OUTER)
    from_kl = tl.load(grad_kl + row_offset(row, n1, n2, k_0, k_1, k_2, OUTER), mask=live, other=0.0)
    if given is None:
        k0, k1, r, low, high = noise_rows(row, live, width, seeds, frames, rows_per_seed, frame_offset)
    else:
        given += row_offset(row, n1, n2, g0, g1, g2, OUTER)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = live & (column < width)
        m = tl.load(mu + column.to(tl.int64) * mc, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(logvar + column.to(tl.int64) * vc, mask=inside, other=0.0).to(tl.float32)
        from_z = tl.load(grad_z + column.to(tl.int64) * zc, mask=inside, other=0.0).to(tl.float32)
        if given is None:
            eps = normal_tile(start // 4 + tl.arange(0, COLUMNS // 4)[None, :], k0, k1, r, low, high, stream)
        else:
            eps = tl.load(given + column.to(tl.int64) * gc, mask=inside, other=0.0).to(tl.float32)
        to = row.to(tl.int64) * width + column
        tl.store(grad_mu + to, rounded(from_z + from_kl * m, grad_mu.dtype.element_ty), mask=inside)
        slope = 0.5 * ((from_z * eps) * exp(0.5 * v) + from_kl * (exp(v) - 1.0))
        tl.store(grad_logvar + to, rounded(slope, grad_logvar.dtype.element_ty), mask=inside)


def reparameterize(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, stream: int, frame_offset: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Kernel of ``reparameterize``."""
    z, kl = fresh(mu, mu.shape), fresh(mu, mu.shape[:-1], torch.float32)
    if kl.numel() == 0 or mu.shape[-1] == 0:
        return z, kl.zero_()
    rows = as_rows(mu.shape[:-1], (mu, logvar, noise))
    steps = [(*s, 0 if x is None else x.stride(-1)) for s, x in zip(rows.strides, rows.operands, strict=True)]
    tile = tile_of("reparameterize", mu, rows.total, mu.shape[-1])
    with device_guard(mu):
        forward_kernel[(triton.cdiv(rows.total, tile.rows),)](
            *rows.operands, z, kl, rows.total, mu.shape[-1], *rows.sizes, *(step for s in steps for step in s),
            *noise_of(mu.shape, seed, stream, frame_offset),
            OUTER=rows.outer, ROWS=tile.rows, COLUMNS=tile.columns, LONG=tile.long, num_warps=tile.warps,
        )  # fmt: skip
    return z, kl


def reparameterize_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    stream: int,
    frame_offset: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Kernel of ``reparameterize_backward``."""
    grad_mu, grad_logvar = fresh(mu, mu.shape), fresh(mu, mu.shape)
    if mu.numel() == 0:
        return grad_mu, grad_logvar
    rows = as_rows(mu.shape[:-1], (mu, logvar, noise, grad_z, grad_kl))
    *wide, from_kl = rows.operands
    steps = [(*s, 0 if x is None else x.stride(-1)) for s, x in zip(rows.strides[:-1], wide, strict=True)]
    tile = tile_of("reparameterize", mu, rows.total, mu.shape[-1])
    with device_guard(mu):
        backward_kernel[(triton.cdiv(rows.total, tile.rows),)](
            *wide, from_kl, grad_mu, grad_logvar, rows.total, mu.shape[-1], *rows.sizes, *(step for s in steps for step in s),
            *rows.strides[-1], *noise_of(mu.shape, seed, stream, frame_offset),
            OUTER=rows.outer, ROWS=tile.rows, COLUMNS=tile.columns, LONG=tile.long, num_warps=tile.warps,
        )  # fmt: skip
    return grad_mu, grad_logvar
