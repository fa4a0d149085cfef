"""The end of an attention block in Triton, LayerNorm(x + Dropout(update)), and its gradients: one kernel each.

The operator layer puts the block together from these, the attention kernels and torch's matrix products. A program holds whole rows in
registers. The sums over rows that the gradients of weight and biases need are kept per program, in a number of programs that depends on the
shape alone, and added up in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._configs import tile_of
from ._launch import device_guard, fresh, noise_of
from ._math import rounded
from .philox import dropout_scale, keep_from, noise_rows, word_tile

__all__ = ["attention_block_epilogue", "attention_block_epilogue_backward"]

#: Programs of backward: so many on every device, so that the sums have the same bits.
PROGRAMS = 256

_UNSPECIALISED = ("rows", "tiles", "frames", "rows_per_seed", "stream", "keep_from", "dropout_scale", "eps")


@triton.jit
def dropped(x, row, live, width, seeds, frames, rows_per_seed, stream, keep_from, dropout_scale, COLUMNS: tl.constexpr):
    """x after dropout: selected and not multiplied, so that a NaN that is dropped is gone."""
    if seeds is not None:
        k0, k1, r, low, high = noise_rows(row, live, width, seeds, frames, rows_per_seed, None)
        words = word_tile(tl.arange(0, COLUMNS // 4)[None, :], k0, k1, r, low, high, stream)
        x = tl.where((words >> 9) >= keep_from.to(tl.uint32), x * dropout_scale, 0.0)
    return x


@triton.jit(do_not_specialize=_UNSPECIALISED)
def forward_kernel(
    x, update, weight, bias, out, mean_out, inverse_out, rows, width, eps,
    seeds, frames, rows_per_seed, stream, keep_from, dropout_scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Dense rows of one block."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    live = row < rows
    inside = live & (column < width)
    at = row * width + column
    y = tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
    y = dropped(y, row, live, width, seeds, frames, rows_per_seed, stream, keep_from, dropout_scale, COLUMNS)
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + y
    mean = tl.sum(y, axis=1, keep_dims=True) / width
    y = tl.where(column < width, y - mean, 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(y * y, axis=1, keep_dims=True) / width + eps)
    y = y * inverse * tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out + at, rounded(y, out.dtype.element_ty), mask=inside)
    tl.store(mean_out + row, mean, mask=live)
    tl.store(inverse_out + row, inverse, mask=live)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def backward_kernel(
    grad_out, x, update, weight, mean_in, inverse_in, grad_x, grad_update, partial, rows, tiles, width,
    seeds, frames, rows_per_seed, stream, keep_from, dropout_scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """With y the normalised row and g = grad_out weight: (g - mean(g) - y mean(g y)) / deviation; and three sums over these rows."""
    column = tl.arange(0, COLUMNS)[None, :]
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    sum_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_update = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = (tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
        live = row < rows
        inside = live & (column < width)
        at = row * width + column
        y = tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        y = dropped(y, row, live, width, seeds, frames, rows_per_seed, stream, keep_from, dropout_scale, COLUMNS)
        y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + y
        inverse = tl.load(inverse_in + row, mask=live, other=0.0)
        y = tl.where(inside, (y - tl.load(mean_in + row, mask=live, other=0.0)) * inverse, 0.0)
        go = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        g = go * w
        mean_g = tl.sum(g, axis=1, keep_dims=True) / width
        mean_gy = tl.sum(g * y, axis=1, keep_dims=True) / width
        gx = tl.where(inside, (g - mean_g - y * mean_gy) * inverse, 0.0)
        gu = dropped(gx, row, live, width, seeds, frames, rows_per_seed, stream, keep_from, dropout_scale, COLUMNS)
        tl.store(grad_x + at, rounded(gx, grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_update + at, rounded(gu, grad_update.dtype.element_ty), mask=inside)
        sum_weight += go * y
        sum_bias += go
        sum_update += gu
    to = partial + tl.program_id(0) * 3 * width + column
    tl.store(to, tl.sum(sum_weight, axis=0, keep_dims=True), mask=column < width)
    tl.store(to + width, tl.sum(sum_bias, axis=0, keep_dims=True), mask=column < width)
    tl.store(to + 2 * width, tl.sum(sum_update, axis=0, keep_dims=True), mask=column < width)


def attention_block_epilogue(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dropout_p: float, seed: Tensor | None, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of ``attention_block_epilogue``; dense tensors."""
    out = fresh(x, x.shape)
    mean, inverse = (fresh(x, x.shape[:-1], torch.float32) for _ in range(2))
    if out.numel() == 0:
        return out, mean, inverse
    rows, width = mean.numel(), x.shape[-1]
    tile = tile_of("attention_block", x, rows, width, whole=True)
    noise = noise_of(x.shape, seed if dropout_p > 0 else None, stream, None)
    with device_guard(x):
        forward_kernel[(triton.cdiv(rows, tile.rows),)](
            x, update, weight, bias, out, mean, inverse, rows, width, eps, *noise[:4], keep_from(dropout_p), dropout_scale(dropout_p),
            ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return out, mean, inverse


def attention_block_epilogue_backward(
    grad_out: Tensor,
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse_deviation: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    stream: int,
) -> tuple[Tensor, ...]:
    """Kernel of ``attention_block_epilogue_backward``; dense tensors."""
    grad_x, grad_update = fresh(x, x.shape), fresh(update, update.shape)
    width = x.shape[-1]
    if x.numel() == 0:
        return grad_x, grad_update, *(torch.zeros_like(w) for w in (weight, weight)), torch.zeros_like(weight, dtype=update.dtype)
    rows = mean.numel()
    tile = tile_of("attention_block", x, rows, width, whole=True)
    tiles = triton.cdiv(rows, tile.rows)
    partial = fresh(x, (min(tiles, PROGRAMS), 3, width), torch.float32)
    noise = noise_of(x.shape, seed if dropout_p > 0 else None, stream, None)
    with device_guard(x):
        backward_kernel[(partial.shape[0],)](
            grad_out, x, update, weight, mean, inverse_deviation, grad_x, grad_update, partial, rows, tiles, width, *noise[:4],
            keep_from(dropout_p), dropout_scale(dropout_p), ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    of_weight, of_bias, of_update = partial.sum(0)
    return grad_x, grad_update, of_weight.to(weight.dtype), of_bias.to(weight.dtype), of_update.to(update.dtype)
