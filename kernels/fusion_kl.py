"""The fusion loss of diagonal Gaussians in Triton: six tensors are read once forward, once backward, and no float is added atomically."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._configs import Tile, tile_of
from ._exponential import exp_minus_one, exp_minus_tangent, inverse_variance, linear, quadratic
from ._launch import Rows, as_rows, device_guard, fresh
from ._math import rounded
from .philox import row_offset

__all__ = ["fusion_kl", "fusion_kl_backward"]

#: Partial sums of a reduced loss: as many on every device, so that the loss has the same bits.
PARTIALS = 1024
MEAN, SUM, NONE = range(3)  # as in emc_fast/ops/fusion_kl.py

_UNSPECIALISED = ("rows", "n1", "n2", "tiles", "q0", "q1", "q2", "share")


@triton.jit
def load_row(x, column, stride, inside):
    """One operand's part of a tile as float32, zeros outside."""
    return tl.load(x + column.to(tl.int64) * stride, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def twice_loss(m_r, m_f, m_s, l_r, l_f, l_s):
    """Twice the loss per element."""
    f_low, f_high, f_rest = inverse_variance(l_f)
    s_low, s_high, s_rest = inverse_variance(l_s)
    means = quadratic(m_r - m_f, f_low, f_high, f_rest) + quadratic(m_r - m_s, s_low, s_high, s_rest)
    means += quadratic(m_f - m_s, s_low, s_high, s_rest)
    return means + exp_minus_tangent(l_r - l_f) + exp_minus_tangent(l_r - l_s) + exp_minus_tangent(l_f - l_s)


@triton.jit
def counted_rows(tile, rows, n1, n2, mask, q0, q1, q2, OUTER: tl.constexpr, ROWS: tl.constexpr, LONG: tl.constexpr):
    """Row numbers of a tile (ROWS, 1), and which of them exist, and which of these count."""
    if LONG:
        row = (tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    else:
        row = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    live = row < rows
    counts = live
    if mask is not None:
        counts = live & (tl.load(mask + row_offset(row, n1, n2, q0, q1, q2, OUTER), mask=live, other=0) != 0)
    return row, live, counts


@triton.jit
def put_tile(value, row, counts, total, count, loss, rows):
    """Add a tile's row losses (ROWS, 1) to the program's sum, or write them where every row has its own."""
    if loss is not None:
        tl.store(loss + row, value.to(tl.float32), mask=row < rows)
    return total + tl.sum(value), count + tl.sum(counts.to(tl.int32)).to(tl.int64)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def forward_kernel(
    m_r, l_r, m_f, l_f, m_s, l_s, mask, loss, partial, counted, rows, tiles, width, n1, n2,
    a0, a1, a2, ac, b0, b1, b2, bc, c0, c1, c2, cc, d0, d1, d2, dc, e0, e1, e2, ec, f0, f1, f2, fc, q0, q1, q2,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Loss per row, or one partial sum and count per program. Sums over and of rows are float64: no order of theirs shows."""
    total = tl.zeros((), tl.float64)
    count = tl.zeros((), tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, live, counts = counted_rows(tile, rows, n1, n2, mask, q0, q1, q2, OUTER, ROWS, LONG)
        r_m = m_r + row_offset(row, n1, n2, a0, a1, a2, OUTER)
        f_m = m_f + row_offset(row, n1, n2, c0, c1, c2, OUTER)
        s_m = m_s + row_offset(row, n1, n2, e0, e1, e2, OUTER)
        value = tl.zeros((ROWS, 1), tl.float64)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            inside = counts & (column < width)
            r, f, s = load_row(r_m, column, ac, inside), load_row(f_m, column, cc, inside), load_row(s_m, column, ec, inside)
            if l_r is None:
                twice = (r - f) * (r - f) + (r - s) * (r - s) + (f - s) * (f - s)
            else:
                v_r = load_row(l_r + row_offset(row, n1, n2, b0, b1, b2, OUTER), column, bc, inside)
                v_f = load_row(l_f + row_offset(row, n1, n2, d0, d1, d2, OUTER), column, dc, inside)
                v_s = load_row(l_s + row_offset(row, n1, n2, f0, f1, f2, OUTER), column, fc, inside)
                twice = twice_loss(r, f, s, v_r, v_f, v_s)
            value += 0.5 * tl.sum(twice.to(tl.float64), axis=1, keep_dims=True)
        total, count = put_tile(value, row, counts, total, count, loss, rows)
    if partial is not None:
        tl.store(partial + tl.program_id(0), total)
        tl.store(counted + tl.program_id(0), count)


@triton.jit(do_not_specialize=("programs",))
def finish_kernel(partial, counted, loss, programs, MEAN_OF_COUNTED: tl.constexpr, PROGRAMS: tl.constexpr):
    """The loss from the programs' sums."""
    at = tl.arange(0, PROGRAMS)
    total = tl.sum(tl.load(partial + at, mask=at < programs, other=0.0))
    if MEAN_OF_COUNTED:
        count = tl.sum(tl.load(counted + at, mask=at < programs, other=0))
        total = total / tl.maximum(count, 1).to(tl.float64)
    tl.store(loss, total.to(tl.float32))


@triton.jit
def row_grad(grad, share, count, row, counts, n1, n2, g0, g1, g2, OUTER: tl.constexpr):
    """Gradient of each row's loss: 0 where it does not count; a mean gives each its share, which a mask makes 1 / count."""
    g = tl.load(grad + row_offset(row, n1, n2, g0, g1, g2, OUTER), mask=counts, other=0.0) * share
    if count is not None:
        g = g / tl.maximum(tl.load(count), 1).to(tl.float32)
    return g


@triton.jit(do_not_specialize=_UNSPECIALISED)
def backward_kernel(
    m_r, l_r, m_f, l_f, m_s, l_s, mask, grad, share, count, to_m_r, to_l_r, to_m_f, to_l_f, to_m_s, to_l_s, rows, width, n1, n2,
    a0, a1, a2, ac, b0, b1, b2, bc, c0, c1, c2, cc, d0, d1, d2, dc, e0, e1, e2, ec, f0, f1, f2, fc, q0, q1, q2, g0, g1, g2,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Dense gradients of what was given."""
    row, live, counts = counted_rows(tl.program_id(0), rows, n1, n2, mask, q0, q1, q2, OUTER, ROWS, LONG)
    g = row_grad(grad, share, count, row, counts, n1, n2, g0, g1, g2, OUTER)
    r_m = m_r + row_offset(row, n1, n2, a0, a1, a2, OUTER)
    f_m = m_f + row_offset(row, n1, n2, c0, c1, c2, OUTER)
    s_m = m_s + row_offset(row, n1, n2, e0, e1, e2, OUTER)
    dtype = to_m_r.dtype.element_ty
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = counts & (column < width)
        to = row.to(tl.int64) * width + column
        written = live & (column < width)
        r, f, s = load_row(r_m, column, ac, inside), load_row(f_m, column, cc, inside), load_row(s_m, column, ec, inside)
        rf, rs, fs = r - f, r - s, f - s
        if l_r is None:
            tl.store(to_m_r + to, rounded((rf + rs) * g, dtype), mask=written)
            tl.store(to_m_f + to, rounded((fs - rf) * g, dtype), mask=written)
            tl.store(to_m_s + to, rounded((rs + fs) * -g, dtype), mask=written)
        else:
            v_r = load_row(l_r + row_offset(row, n1, n2, b0, b1, b2, OUTER), column, bc, inside)
            v_f = load_row(l_f + row_offset(row, n1, n2, d0, d1, d2, OUTER), column, dc, inside)
            v_s = load_row(l_s + row_offset(row, n1, n2, f0, f1, f2, OUTER), column, fc, inside)
            f_low, f_high, f_rest = inverse_variance(v_f)
            s_low, s_high, s_rest = inverse_variance(v_s)
            slope_rf = linear(rf, f_low, f_high, f_rest)
            slope_rs = linear(rs, s_low, s_high, s_rest)
            slope_fs = linear(fs, s_low, s_high, s_rest)
            tl.store(to_m_r + to, rounded((slope_rf + slope_rs) * g, dtype), mask=written)
            tl.store(to_m_f + to, rounded((slope_fs - slope_rf) * g, dtype), mask=written)
            tl.store(to_m_s + to, rounded((slope_rs + slope_fs) * -g, dtype), mask=written)
            half = 0.5 * g
            excess_rf, excess_rs, excess_fs = exp_minus_one(v_r - v_f), exp_minus_one(v_r - v_s), exp_minus_one(v_f - v_s)
            tl.store(to_l_r + to, rounded((excess_rf + excess_rs) * half, dtype), mask=written)
            own_f = excess_fs - excess_rf - quadratic(rf, f_low, f_high, f_rest)
            tl.store(to_l_f + to, rounded(own_f * half, dtype), mask=written)
            own_s = excess_rs + excess_fs + quadratic(rs, s_low, s_high, s_rest) + quadratic(fs, s_low, s_high, s_rest)
            tl.store(to_l_s + to, rounded(own_s * -half, dtype), mask=written)


class Problem(NamedTuple):
    """What a launch over the rows of the distributions needs."""

    rows: Rows
    width: int
    tile: Tile
    tiles: int

    def steps(self, inputs: int) -> list[int]:
        """Strides of the first ``inputs`` operands with that of their last dimension."""
        found: list[int] = []
        for strides, x in zip(self.rows.strides[:inputs], self.rows.operands[:inputs], strict=True):
            found += [*strides, 0 if x is None else x.stride(-1)]
        return found

    def options(self) -> dict[str, Any]:
        """The compile-time arguments."""
        tile = self.tile
        return {"OUTER": self.rows.outer, "ROWS": tile.rows, "COLUMNS": tile.columns, "LONG": tile.long, "num_warps": tile.warps}


def problem_of(operator: str, inputs: Sequence[Tensor | None], mask: Tensor | None, grad: Tensor | None) -> Problem:
    """Rows of the inputs, the mask and, where it has one value per row, the gradient."""
    first = inputs[0]
    assert first is not None
    per_row = grad if grad is not None and grad.dim() else None
    rows = as_rows(first.shape[:-1], (*inputs, mask, per_row))
    tile = tile_of(operator, first, rows.total, first.shape[-1])
    return Problem(rows, first.shape[-1], tile, triton.cdiv(rows.total, tile.rows))


def reduce_programs(like: Tensor, problem: Problem, reduction: int, launch: Any) -> Tensor:
    """Run ``launch(programs, loss, partial, counted)`` and put the loss together."""
    if reduction == NONE:
        loss = fresh(like, like.shape[:-1], torch.float32)
        launch(problem.tiles, loss, None, None)
        return loss
    programs = min(problem.tiles, PARTIALS)
    loss, partial = fresh(like, (), torch.float32), fresh(like, (programs,), torch.float64)
    counted = fresh(like, (programs,), torch.int64)
    launch(programs, None, partial, counted)
    finish_kernel[(1,)](
        partial, counted, loss, programs, MEAN_OF_COUNTED=reduction == MEAN, PROGRAMS=triton.next_power_of_2(programs), num_warps=4
    )
    return loss


def share_of_row(mask: Tensor | None, rows: int, reduction: int) -> tuple[float, Tensor | None]:
    """What a row's gradient is multiplied by, and the count on the device by which it is divided where a mask says how many count."""
    if reduction != MEAN:
        return 1.0, None
    return (1.0 / rows, None) if mask is None else (1.0, mask.sum())


def fusion_kl(*arguments: Any) -> Tensor:
    """Kernel of ``fusion_kl``: three pairs (mu, logvar), the mask, the reduction."""
    *inputs, mask, reduction = arguments
    first = inputs[0]
    if first.numel() == 0:
        return torch.zeros(first.shape[:-1] if reduction == NONE else (), dtype=torch.float32, device=first.device)
    problem = problem_of("fusion_kl", inputs, mask, None)
    *operands, mask, _ = problem.rows.operands
    rows = problem.rows

    def launch(programs: int, loss: Tensor | None, partial: Tensor | None, counted: Tensor | None) -> None:
        forward_kernel[(programs,)](
            *operands, mask, loss, partial, counted, rows.total, problem.tiles, problem.width, *rows.sizes,
            *problem.steps(6), *rows.strides[6], **problem.options(),
        )  # fmt: skip

    with device_guard(first):
        return reduce_programs(first, problem, reduction, launch)


def fusion_kl_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Kernel of ``fusion_kl_backward``; means first, then log-variances, which are empty for unit variance."""
    *inputs, mask, reduction = arguments
    first = inputs[0]
    grads = [None if x is None else fresh(x, x.shape) for x in inputs]
    if first.numel():
        problem = problem_of("fusion_kl", inputs, mask, grad)
        *operands, mask, per_row = problem.rows.operands
        rows = problem.rows
        with device_guard(first):
            backward_kernel[(problem.tiles,)](
                *operands, mask, grad if per_row is None else per_row, *share_of_row(mask, rows.total, reduction), *grads, rows.total,
                problem.width, *rows.sizes, *problem.steps(6), *rows.strides[6], *rows.strides[7], **problem.options(),
            )  # fmt: skip
    found = (*grads[::2], *grads[1::2])
    return tuple(fresh(first, (0,)) if x is None else x for x in found)
