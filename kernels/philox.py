"""Philox4x32-10 (Salmon et al., 2011) in Triton, and the operators philox_normal, philox_uniform and dropout.

How elements of a tensor map to counters: docs/operators.md, "Noise". Four neighbouring elements of a row share a block, so a tile of
C columns is made from C / 4 counters a row and its words are put side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._configs import tile_of
from ._launch import as_rows, device_guard, fresh, noise_of
from ._math import log_unit, rounded, sincos_turns

__all__ = ["dropout", "philox_normal", "philox_uniform"]


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds; all words uint32."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def noise_rows(row, live, width, seeds, frames, rows_per_seed, frame_offset):
    """Where the noise of rows begins: key words, r, and the two words of each row's first block number.

    row: flat indices over (*lead, T), int32 or int64; live: which of them exist.
    """
    lead = row // frames
    frame = (row % frames).to(tl.int64)
    seed = tl.load(seeds + lead // rows_per_seed, mask=live, other=0)
    if frame_offset is not None:
        frame += tl.load(frame_offset)
    first = frame * ((width + 3) // 4)
    r = (lead % rows_per_seed).to(tl.uint32)
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32), r, first.to(tl.uint32), (first >> 32).to(tl.uint32)


@triton.jit
def block_words(group, k0, k1, r, low, high, stream):
    """The four words of blocks `group` (1, G) of rows (R, 1): each (R, G) uint32."""
    c0 = low + group.to(tl.uint32)
    c1 = high + (c0 < low).to(tl.uint32)  # the carry
    zeros = c0 ^ c0
    return philox4x32(c0, c1, zeros + r, zeros + stream.to(tl.uint32), k0, k1)


@triton.jit
def side_by_side(x0, x1, x2, x3):
    """Four (R, G) -> (R, 4 G), element 4 g + k from the k-th."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (x0.shape[0], 4 * x0.shape[1]))


@triton.jit
def uniform(word):
    """(w >> 9 + 1/2) 2^-23: exact, never 0 or 1."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def box_muller(first, second):
    """Two standard normals from two words."""
    radius = tl.sqrt_rn(-2.0 * log_unit(uniform(first)))
    sine, cosine = sincos_turns(uniform(second))
    return radius * cosine, radius * sine


@triton.jit
def normal_tile(group, k0, k1, r, low, high, stream):
    """Normals of a tile (R, 4 G)."""
    w0, w1, w2, w3 = block_words(group, k0, k1, r, low, high, stream)
    x0, x1 = box_muller(w0, w1)
    x2, x3 = box_muller(w2, w3)
    return side_by_side(x0, x1, x2, x3)


@triton.jit
def word_tile(group, k0, k1, r, low, high, stream):
    """Words of a tile (R, 4 G)."""
    w0, w1, w2, w3 = block_words(group, k0, k1, r, low, high, stream)
    return side_by_side(w0, w1, w2, w3)


@triton.jit
def row_index(ROWS: tl.constexpr, LONG: tl.constexpr):
    """Row numbers of this program, int64 where LONG."""
    program = tl.program_id(0)
    if LONG:
        program = program.to(tl.int64)
    return program * ROWS + tl.arange(0, ROWS)


@triton.jit
def row_offset(row, n1, n2, s0, s1, s2, OUTER: tl.constexpr):
    """Offset of rows of a tensor with OUTER dimensions before the last, in elements, int64."""
    if OUTER == 1:
        offset = row.to(tl.int64) * s2
    else:
        inner = row % n2
        rest = row // n2
        offset = inner.to(tl.int64) * s2
        if OUTER == 2:
            offset += rest.to(tl.int64) * s1
        else:
            offset += (rest % n1).to(tl.int64) * s1 + (rest // n1).to(tl.int64) * s0
    return offset


@triton.jit
def seed_of(lead, seeds, rows_per_seed):
    """Key words and r of one leading index, scalars."""
    seed = tl.load(seeds + lead // rows_per_seed)
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32), (lead % rows_per_seed).to(tl.uint32)


@triton.jit
def kept_tile(row, start, width, k0, k1, r, stream, keep_from, COLUMNS: tl.constexpr):
    """Which elements of rows (R, 1) of one leading index dropout keeps, columns [start, start + COLUMNS): (R, COLUMNS).

    Bits are put side by side and not words: a quarter of the registers, and of what changes its layout.
    """
    first = row.to(tl.int64) * ((width + 3) // 4)
    group = start // 4 + tl.arange(0, COLUMNS // 4)[None, :]
    w0, w1, w2, w3 = block_words(group, k0, k1, r, first.to(tl.uint32), (first >> 32).to(tl.uint32), stream)
    bound = keep_from.to(tl.uint32)
    x0, x1 = ((w0 >> 9) >= bound).to(tl.int8), ((w1 >> 9) >= bound).to(tl.int8)
    x2, x3 = ((w2 >> 9) >= bound).to(tl.int8), ((w3 >> 9) >= bound).to(tl.int8)
    return side_by_side(x0, x1, x2, x3) != 0


_SIZES = ("rows", "frames", "rows_per_seed", "stream")


@triton.jit(do_not_specialize=_SIZES)
def fill_kernel(
    out, rows, width, seeds, frames, rows_per_seed, stream, frame_offset,
    NORMAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Dense out (rows, width) of normals or uniforms."""
    row = row_index(ROWS, LONG)[:, None]
    live = row < rows
    k0, k1, r, low, high = noise_rows(row, live, width, seeds, frames, rows_per_seed, frame_offset)
    for start in range(0, width, COLUMNS):
        group = start // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        column = start + tl.arange(0, COLUMNS)[None, :]
        if NORMAL:
            x = normal_tile(group, k0, k1, r, low, high, stream)
        else:
            x = uniform(word_tile(group, k0, k1, r, low, high, stream))
        tl.store(out + row.to(tl.int64) * width + column, rounded(x, out.dtype.element_ty), mask=live & (column < width))


@triton.jit(do_not_specialize=(*_SIZES, "keep_from", "scale", "n1", "n2"))
def dropout_kernel(
    x, out, rows, width, n1, n2, x0, x1, x2, xc, seeds, frames, rows_per_seed, stream, frame_offset, keep_from, scale,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """x * scale where the word's upper 23 bits reach keep_from, else 0. A NaN that is dropped is gone."""
    row = row_index(ROWS, LONG)[:, None]
    live = row < rows
    k0, k1, r, low, high = noise_rows(row, live, width, seeds, frames, rows_per_seed, frame_offset)
    from_row = x + row_offset(row, n1, n2, x0, x1, x2, OUTER)
    for start in range(0, width, COLUMNS):
        group = start // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = live & (column < width)
        keep = (word_tile(group, k0, k1, r, low, high, stream) >> 9) >= keep_from.to(tl.uint32)
        value = tl.load(from_row + column.to(tl.int64) * xc, mask=inside).to(tl.float32)
        tl.store(out + row.to(tl.int64) * width + column, rounded(tl.where(keep, value * scale, 0.0), out.dtype.element_ty), mask=inside)


def keep_from(p: float) -> int:
    """Dropout keeps where u >= p, which in integers is (w >> 9) >= this."""
    bound = p * 2.0**23 - 0.5
    return 0 if bound <= 0 else int(bound) + (int(bound) < bound)


def dropout_scale(p: float) -> float:
    """What kept elements are multiplied by."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


def _fill(like: Tensor, seed: Tensor, stream: int, frame_offset: Tensor | None, normal: bool) -> Tensor:
    out = fresh(like, like.shape)
    if out.numel() == 0:
        return out
    width = like.shape[-1]
    rows, noise = out.numel() // width, noise_of(like.shape, seed, stream, frame_offset)
    tile = tile_of("philox", like, rows, width)
    with device_guard(out):
        fill_kernel[(triton.cdiv(rows, tile.rows),)](
            out, rows, width, *noise, NORMAL=normal, ROWS=tile.rows, COLUMNS=tile.columns, LONG=tile.long, num_warps=tile.warps
        )
    return out


def philox_normal(like: Tensor, seed: Tensor, stream: int, frame_offset: Tensor | None) -> Tensor:
    """Kernel of ``philox_normal``; ``like`` gives shape, dtype and device and is not read."""
    return _fill(like, seed, stream, frame_offset, True)


def philox_uniform(like: Tensor, seed: Tensor, stream: int, frame_offset: Tensor | None) -> Tensor:
    """Kernel of ``philox_uniform``; ``like`` gives shape, dtype and device and is not read."""
    return _fill(like, seed, stream, frame_offset, False)


def dropout(x: Tensor, seed: Tensor, p: float, stream: int, frame_offset: Tensor | None) -> Tensor:
    """Kernel of ``dropout``; any strides."""
    out = fresh(x, x.shape)
    if out.numel() == 0:
        return out
    width = x.shape[-1]
    rows, noise = as_rows(x.shape[:-1], (x,)), noise_of(x.shape, seed, stream, frame_offset)
    (x,) = rows.operands  # type: ignore[assignment]
    tile = tile_of("philox", x, rows.total, width)
    with device_guard(out):
        dropout_kernel[(triton.cdiv(rows.total, tile.rows),)](
            x, out, rows.total, width, *rows.sizes, *rows.strides[0], x.stride(-1), *noise, keep_from(p), dropout_scale(p),
            OUTER=rows.outer, ROWS=tile.rows, COLUMNS=tile.columns, LONG=tile.long, num_warps=tile.warps,
        )  # fmt: skip
    return out
