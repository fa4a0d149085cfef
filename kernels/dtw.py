"""Dynamic time warping in Triton, D[t,s] = d[t,s] + min(D[t-1,s], D[t,s-1], D[t-1,s-1]): a program takes a pair, along anti-diagonals.

x is cut into bands of BAND frames, a lane to a frame. Each lane is one column of y behind the lane of the frame above, so that what it
needs of that frame is what that lane has computed the step before, and `tl.gather` hands it over. The last frame's costs pass from band to
band through memory, in place: the first lane reads a column BAND - 1 steps before the last lane writes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._configs import band_of
from ._launch import device_guard, fresh, processors

__all__ = ["dtw"]

_INF = tl.constexpr(float("inf"))
_NAN = tl.constexpr(float("nan"))
#: Programs to a multiprocessor; each takes one pair after the other and has a workspace of its own.
_PROGRAMS = 32


# The order in which Triton adds up the channels may follow the alignment that it knows of, and that must not show in the bits.
@triton.jit(
    do_not_specialize=("count", "x_count", "y_count", "x_frames", "y_frames"),
    do_not_specialize_on_alignment=("x", "y", "pairs", "x_lengths", "y_lengths", "bound", "out", "workspace"),
)
def dtw_kernel(
    x, y, pairs, x_lengths, y_lengths, bound, out, workspace, count, x_count, y_count, x_frames, y_frames,
    CHANNELS: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """x and y as `side_by_side` lays them; costs have the type of `workspace` (programs, y_frames)."""
    COST: tl.constexpr = workspace.dtype.element_ty
    lane = BAND - 1 - tl.arange(0, BAND)  # backwards, so that neighbours read ascending frames of y
    top = lane == 0
    bottom = lane == BAND - 1
    before = tl.minimum(tl.arange(0, BAND) + 1, BAND - 1)  # where the lane of the frame above stands
    channel = tl.arange(0, BC)[:, None]
    beside = channel * 32
    there = channel < CHANNELS
    workspace += tl.program_id(0).to(tl.int64) * y_frames
    for pair in range(tl.program_id(0), count, tl.num_programs(0)):
        n = tl.load(pairs + pair + pair)
        m = tl.load(pairs + pair + pair + 1)
        # The caller cannot look at these numbers without waiting for the device.
        known = (n >= 0) & (n < x_count) & (m >= 0) & (m < y_count)
        rows = x_frames.to(tl.int64)
        if x_lengths is not None:
            rows = tl.load(x_lengths + n, mask=known, other=0)
        columns = y_frames.to(tl.int64)
        if y_lengths is not None:
            columns = tl.load(y_lengths + m, mask=known, other=0)
        known = known & (rows >= 1) & (rows <= x_frames) & (columns >= 1) & (columns <= y_frames)
        rows = tl.where(known, rows, 0).to(tl.int32)
        columns = tl.where(known, columns, 0).to(tl.int32)
        of_x = x + tl.where(known, n, 0) * ((x_frames + 31) // 32) * (CHANNELS * 32)
        of_y = y + tl.where(known, m, 0) * ((y_frames + 31) // 32) * (CHANNELS * 32)
        if bound is not None:
            limit = tl.load(bound + pair)
            limit = limit * limit
            limit += limit * 8.8817841970012523e-16  # a rounding above the square, so that a pair at its bound is within it

        value = tl.full((BAND,), _INF, COST)
        first = 0
        left = rows  # frames of x that have yet to be gone over; none when the pair is certainly too far
        while left > 0:
            t = first + lane
            alive = t < rows
            below = top & (first > 0)
            x_at = (of_x + (t >> 5).to(tl.int64) * (CHANNELS * 32) + (t & 31))[None, :] + beside
            if BC >= CHANNELS:
                x_tile = tl.load(x_at, mask=alive[None, :] & there, other=0.0)
            diagonal = tl.where(t == 0, 0.0, _INF).to(COST)
            value = tl.full((BAND,), _INF, COST)
            low = tl.full((BAND,), _INF, COST)
            tl.debug_barrier()
            for step in range(columns + BAND - 1):
                s = step - lane
                inside = alive & (s >= 0) & (s < columns)
                y_at = (of_y + (s >> 5).to(tl.int64) * (CHANNELS * 32) + (s & 31))[None, :] + beside
                if BC >= CHANNELS:
                    gap = x_tile - tl.load(y_at, mask=inside[None, :] & there, other=0.0)
                    distance = tl.sum(gap * gap, axis=0)
                else:
                    distance = tl.zeros((BAND,), tl.float32)
                    for start in range(0, CHANNELS, BC):
                        some = channel < CHANNELS - start
                        gap = tl.load(x_at + start * 32, mask=alive[None, :] & some, other=0.0)
                        gap -= tl.load(y_at + start * 32, mask=inside[None, :] & some, other=0.0)
                        distance += tl.sum(gap * gap, axis=0)
                above = tl.gather(value, before, 0)
                from_band = tl.load(workspace + s, mask=inside & below, other=_INF)
                above = tl.where(top, from_band, above)
                here = tl.minimum(tl.minimum(value, diagonal), above) + distance.to(COST)
                value = tl.where(inside, here, value)  # the cell left of the next one; past the last column it stays
                diagonal = above
                last = inside & bottom
                tl.store(workspace + s, value, mask=last)
                if bound is not None:
                    low = tl.where(last, tl.minimum(low, value), low)
            first += BAND
            left -= BAND
            if bound is not None:  # every path crosses every frame of x: a pair is too far once all costs of one are
                left = tl.where(tl.min(low, axis=0).to(tl.float64) > limit, tl.minimum(left, 0), left)
        # Of a pair that was given up, the last frame is not in the band.
        cost = tl.min(tl.where(first - BAND + lane == rows - 1, value, _INF), axis=0).to(tl.float64)
        distance = tl.sqrt(cost)
        if bound is not None:
            distance = tl.where(cost > limit, _INF, distance)
        tl.store(out + pair, tl.where(known, distance, _NAN))


def side_by_side(x: Tensor) -> Tensor:
    """(N,T,C) -> (N, ceil(T/32), C, 32): neighbouring lanes read neighbours, and a channel is a constant away from the one before it."""
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 32)).unflatten(1, (-1, 32)).mT.contiguous()


def dtw(
    x: Tensor, y: Tensor, pairs: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, bound: Tensor | None, exact: bool
) -> Tensor:
    """Kernel of ``dtw``. Distances of frames are squared differences in either case; ``exact`` adds them up in float64, not in float32."""
    count, channels = pairs.shape[0], x.shape[2]
    out = fresh(x, (count,), torch.float64)
    if count == 0:
        return out
    band = band_of(x, x.shape[1])
    programs = min(count, _PROGRAMS * processors(x))
    workspace = fresh(x, (programs, y.shape[1]), torch.float64 if exact else torch.float32)
    numbers = (count, x.shape[0], y.shape[0], x.shape[1], y.shape[1])
    with device_guard(x):
        dtw_kernel[(programs,)](
            side_by_side(x), side_by_side(y), pairs, x_lengths, y_lengths, bound, out, workspace, *numbers,
            CHANNELS=channels, BC=min(band.channels, triton.next_power_of_2(channels)), BAND=band.frames, num_warps=band.warps,
        )  # fmt: skip
    return out
