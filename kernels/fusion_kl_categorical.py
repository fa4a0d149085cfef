"""The fusion loss of categorical distributions given as logits, in Triton.

    KL(p || q) = sum_i p_i (log p_i - log q_i) = sum_i p_i phi(y_i),  y = log q - log p,  phi(y) = e^y - 1 - y,  since p and q both sum to 1

No term of the second form is negative, so that a loss near 0 keeps its digits. Where y is large, p phi(y) is q - p (1 + y), which cannot
overflow. Places beyond a row hold -inf in all three distributions, for which every term is 0. The arithmetic is that of
csrc/cpu/fusion_kl_categorical.cpp; forward walks a row twice (the second time from the cache), backward once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._exponential import exp_of, exponential, minus_tangent
from ._launch import device_guard, fresh
from ._math import rounded
from .fusion_kl import NONE, counted_rows, problem_of, put_tile, reduce_programs, row_grad, share_of_row
from .philox import row_offset

__all__ = ["fusion_kl_categorical", "fusion_kl_categorical_backward"]

#: Numbers per row that forward keeps for backward; emc_fast/ops/fusion_kl_categorical.py has the same. In order: the largest logit and the
#: reciprocal of the sum of e^(logit - largest) of real, face and speech; the shifts of real-face and face-speech; origin and mean of the
#: slopes of real and face.
STATS = 12

_UNSPECIALISED = ("rows", "n1", "n2", "tiles", "q0", "q1", "q2", "share")
_INF = tl.constexpr(float("inf"))


@triton.jit
def load_logits(x, column, stride, inside):
    """One distribution's part of a tile as float32, -inf outside."""
    return tl.load(x + column.to(tl.int64) * stride, mask=inside, other=-_INF).to(tl.float32)


@triton.jit
def log_ratio(x_p, x_q, shift):
    """log q - log p of each class; for one that p excludes a number that stands for inf but times 0 is 0."""
    return tl.where(x_p == -_INF, 1e30, (x_q - x_p) - shift)


@triton.jit
def relative(x_p, slope, origin):
    """Slope - origin; 0 for a class that p excludes: 0 log 0 = 0, and so is its derivative."""
    return tl.where(x_p == -_INF, 0.0, slope - origin)


@triton.jit
def base_of(top):
    """The largest logit, or 0 where every class is excluded so far: each adds 0, and a NaN is still found."""
    return tl.where(top == -_INF, 0.0, top)


@triton.jit
def next_top(x, slope, top, origin):
    """Largest logit (R, 1) with the slope of its class, over one more part of the rows. A NaN is found by the sums and not here."""
    here = tl.max(x, axis=1, keep_dims=True)
    found = tl.max(tl.where(x == here, slope, -_INF), axis=1, keep_dims=True)
    return tl.where(here > top, here, top), tl.where(here > top, found, origin)


@triton.jit
def rescaled(total, top, higher):
    """A sum of e^(logit - top) for another top."""
    return total * tl.where((higher > top) & (top > -_INF), exp_of(top - higher), 1.0).to(tl.float64)


@triton.jit
def row_sum(x):
    """Sum of rows (R, 1) in float64."""
    return tl.sum(x.to(tl.float64), axis=1, keep_dims=True)


@triton.jit
def divergence(p, q, y):
    """Terms p phi(y) of KL(p || q), and q - p, without the cancellation of close p and q."""
    scale, n, r, bounded, curvature = exponential(y)
    positive = tl.where(p < 1.1754943508222875e-38, 1.1754943508222875e-38, p)  # an underflown p is not 0: what only q excludes costs inf
    far = y > 1.0
    kl = tl.where(far, q - p * (1.0 + y), positive * minus_tangent(scale, n, r, curvature))
    return kl, tl.where(far, q - p, p * (scale * (bounded + curvature) + (scale - 1.0)))


@triton.jit
def difference(p, q, y):
    """q - p of each class, likewise."""
    scale, n, r, bounded, curvature = exponential(y)
    return tl.where(y > 1.0, q - p, p * (scale * (bounded + curvature) + (scale - 1.0)))


@triton.jit
def finite(x):
    """x, or 0 where it is not finite."""
    return tl.where(tl.abs(x) < _INF, x, 0.0)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def forward_kernel(
    real, face, speech, mask, loss, partial, counted, stats, rows, tiles, width, n1, n2,
    a0, a1, a2, ac, b0, b1, b2, bc, c0, c1, c2, cc, q0, q1, q2,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Loss per row, or one partial sum and count per program; and what backward keeps of each row."""
    total = tl.zeros((), tl.float64)
    count = tl.zeros((), tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, live, counts = counted_rows(tile, rows, n1, n2, mask, q0, q1, q2, OUTER, ROWS, LONG)
        r_row = real + row_offset(row, n1, n2, a0, a1, a2, OUTER)
        f_row = face + row_offset(row, n1, n2, b0, b1, b2, OUTER)
        s_row = speech + row_offset(row, n1, n2, c0, c1, c2, OUTER)

        top_r = tl.full((ROWS, 1), -_INF, tl.float32)
        top_f, top_s = top_r, top_r
        origin_r = tl.zeros((ROWS, 1), tl.float32)
        origin_f, unused = origin_r, origin_r
        sum_r = tl.zeros((ROWS, 1), tl.float64)
        sum_f, sum_s = sum_r, sum_r
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            inside = counts & (column < width)
            r, f, s = load_logits(r_row, column, ac, inside), load_logits(f_row, column, bc, inside), load_logits(s_row, column, cc, inside)
            high_r, origin_r = next_top(r, (r - f) + (r - s), top_r, origin_r)
            high_f, origin_f = next_top(f, f - s, top_f, origin_f)
            high_s, unused = next_top(s, s, top_s, unused)
            sum_r = rescaled(sum_r, top_r, high_r) + row_sum(exp_of(r - base_of(high_r)))
            sum_f = rescaled(sum_f, top_f, high_f) + row_sum(exp_of(f - base_of(high_f)))
            sum_s = rescaled(sum_s, top_s, high_s) + row_sum(exp_of(s - base_of(high_s)))
            top_r, top_f, top_s = high_r, high_f, high_s
        origin_r, origin_f = finite(origin_r), finite(origin_f)
        scale_r, scale_f, scale_s = (1.0 / sum_r).to(tl.float32), (1.0 / sum_f).to(tl.float32), (1.0 / sum_s).to(tl.float32)
        log_r, log_f, log_s = tl.log(sum_r), tl.log(sum_f), tl.log(sum_s)
        gap_rf = (top_f.to(tl.float64) + log_f) - (top_r.to(tl.float64) + log_r)
        gap_rs = (top_s.to(tl.float64) + log_s) - (top_r.to(tl.float64) + log_r)
        gap_fs = (top_s.to(tl.float64) + log_s) - (top_f.to(tl.float64) + log_f)
        shift_rf, shift_rs, shift_fs = gap_rf.to(tl.float32), gap_rs.to(tl.float32), gap_fs.to(tl.float32)

        zeros = tl.zeros((ROWS, 1), tl.float64)
        kl, excess_rf, excess_rs, excess_fs = zeros, zeros, zeros, zeros
        mass_r, mass_f, moment_r, moment_f = zeros, zeros, zeros, zeros
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            inside = counts & (column < width)
            r, f, s = load_logits(r_row, column, ac, inside), load_logits(f_row, column, bc, inside), load_logits(s_row, column, cc, inside)
            p_r, p_f, p_s = exp_of(r - top_r) * scale_r, exp_of(f - top_f) * scale_f, exp_of(s - top_s) * scale_s
            p_r, p_f, p_s = tl.where(inside, p_r, 0.0), tl.where(inside, p_f, 0.0), tl.where(inside, p_s, 0.0)
            kl_rf, by_rf = divergence(p_r, p_f, log_ratio(r, f, shift_rf))
            kl_rs, by_rs = divergence(p_r, p_s, log_ratio(r, s, shift_rs))
            kl_fs, by_fs = divergence(p_f, p_s, log_ratio(f, s, shift_fs))
            kl += row_sum(kl_rf) + row_sum(kl_rs) + row_sum(kl_fs)
            excess_rf += row_sum(by_rf)
            excess_rs += row_sum(by_rs)
            excess_fs += row_sum(by_fs)
            mass_r += row_sum(p_r)
            mass_f += row_sum(p_f)
            moment_r += row_sum(p_r * relative(r, (r - f) + (r - s), origin_r))
            moment_f += row_sum(p_f * relative(f, f - s, origin_f))
        # Both distributions of a pair sum to 1. What the sum of q - p lacks of 0 is the rounding error of the shift, and with it both the
        # loss of close distributions and their gradients are put right.
        kl -= 0.5 * (excess_rf * excess_rf + excess_rs * excess_rs + excess_fs * excess_fs)
        to = stats + row.to(tl.int64) * 12
        tl.store(to, top_r, mask=live)
        tl.store(to + 1, top_f, mask=live)
        tl.store(to + 2, top_s, mask=live)
        tl.store(to + 3, scale_r, mask=live)
        tl.store(to + 4, scale_f, mask=live)
        tl.store(to + 5, scale_s, mask=live)
        tl.store(to + 6, (shift_rf.to(tl.float64) + excess_rf).to(tl.float32), mask=live)
        tl.store(to + 7, (shift_fs.to(tl.float64) + excess_fs).to(tl.float32), mask=live)
        tl.store(to + 8, origin_r, mask=live)
        tl.store(to + 9, (moment_r / mass_r).to(tl.float32), mask=live)
        tl.store(to + 10, origin_f, mask=live)
        tl.store(to + 11, (moment_f / mass_f).to(tl.float32), mask=live)
        total, count = put_tile(tl.where(counts, kl, 0.0), row, counts, total, count, loss, rows)
    if partial is not None:
        tl.store(partial + tl.program_id(0), total)
        tl.store(counted + tl.program_id(0), count)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def backward_kernel(
    real, face, speech, mask, stats, grad, share, count, to_real, to_face, to_speech, rows, width, n1, n2,
    a0, a1, a2, ac, b0, b1, b2, bc, c0, c1, c2, cc, q0, q1, q2, g0, g1, g2,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Dense gradients of the logits: dKL(p || q) / dx_p = p (a - mean of a) with a = x_p - x_q, dKL(p || q) / dx_q = q - p."""
    row, live, counts = counted_rows(tl.program_id(0), rows, n1, n2, mask, q0, q1, q2, OUTER, ROWS, LONG)
    g = row_grad(grad, share, count, row, counts, n1, n2, g0, g1, g2, OUTER)
    r_row = real + row_offset(row, n1, n2, a0, a1, a2, OUTER)
    f_row = face + row_offset(row, n1, n2, b0, b1, b2, OUTER)
    s_row = speech + row_offset(row, n1, n2, c0, c1, c2, OUTER)
    at = stats + row.to(tl.int64) * 12
    top_r, top_f, top_s = tl.load(at, mask=live), tl.load(at + 1, mask=live), tl.load(at + 2, mask=live)
    scale_r, scale_f, scale_s = tl.load(at + 3, mask=live), tl.load(at + 4, mask=live), tl.load(at + 5, mask=live)
    shift_rf, shift_fs = tl.load(at + 6, mask=live), tl.load(at + 7, mask=live)
    origin_r, mean_r = tl.load(at + 8, mask=live), tl.load(at + 9, mask=live)
    origin_f, mean_f = tl.load(at + 10, mask=live), tl.load(at + 11, mask=live)
    dtype = to_real.dtype.element_ty
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = counts & (column < width)
        r, f, s = load_logits(r_row, column, ac, inside), load_logits(f_row, column, bc, inside), load_logits(s_row, column, cc, inside)
        p_r, p_f, p_s = exp_of(r - top_r) * scale_r, exp_of(f - top_f) * scale_f, exp_of(s - top_s) * scale_s
        rf, fs = difference(p_r, p_f, log_ratio(r, f, shift_rf)), difference(p_f, p_s, log_ratio(f, s, shift_fs))
        own_r = p_r * (relative(r, (r - f) + (r - s), origin_r) - mean_r)
        own_f = p_f * (relative(f, f - s, origin_f) - mean_f)
        to = row.to(tl.int64) * width + column
        written = live & (column < width)
        tl.store(to_real + to, rounded(tl.where(inside, own_r * g, 0.0), dtype), mask=written)
        tl.store(to_face + to, rounded(tl.where(inside, (rf + own_f) * g, 0.0), dtype), mask=written)
        tl.store(to_speech + to, rounded(tl.where(inside, (fs + (fs + rf)) * g, 0.0), dtype), mask=written)


def fusion_kl_categorical(
    real: Tensor, comp_face: Tensor, comp_speech: Tensor, mask: Tensor | None, reduction: int
) -> tuple[Tensor, Tensor]:
    """Kernel of ``fusion_kl_categorical``: the loss, and the statistics (..., STATS) for backward."""
    stats = fresh(real, (*real.shape[:-1], STATS), torch.float32)
    if real.numel() == 0:
        return torch.zeros(real.shape[:-1] if reduction == NONE else (), dtype=torch.float32, device=real.device), stats.zero_()
    problem = problem_of("fusion_kl_categorical", (real, comp_face, comp_speech), mask, None)
    *operands, mask, _ = problem.rows.operands
    rows = problem.rows

    def launch(programs: int, loss: Tensor | None, partial: Tensor | None, counted: Tensor | None) -> None:
        forward_kernel[(programs,)](
            *operands, mask, loss, partial, counted, stats, rows.total, problem.tiles, problem.width, *rows.sizes,
            *problem.steps(3), *rows.strides[3], **problem.options(),
        )  # fmt: skip

    with device_guard(real):
        return reduce_programs(real, problem, reduction, launch), stats


def fusion_kl_categorical_backward(
    grad: Tensor, real: Tensor, comp_face: Tensor, comp_speech: Tensor, stats: Tensor, mask: Tensor | None, reduction: int
) -> tuple[Any, ...]:
    """Kernel of ``fusion_kl_categorical_backward``."""
    inputs = (real, comp_face, comp_speech)
    grads = tuple(fresh(x, x.shape) for x in inputs)
    if real.numel() == 0:
        return grads
    problem = problem_of("fusion_kl_categorical", inputs, mask, grad)
    *operands, mask, per_row = problem.rows.operands
    rows = problem.rows
    with device_guard(real):
        backward_kernel[(problem.tiles,)](
            *operands, mask, stats.contiguous(), grad if per_row is None else per_row, *share_of_row(mask, rows.total, reduction), *grads,
            rows.total, problem.width, *rows.sizes, *problem.steps(3), *rows.strides[3], *rows.strides[4], **problem.options(),
        )  # fmt: skip
    return grads
