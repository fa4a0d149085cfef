"""Multi-head attention in Triton: tiles of scores in registers, softmax by running maximum and sum in base 2, dropout made again by Philox.

Backward is two kernels without atomics: one over blocks of queries (row sums of P dP, then dQ), one over blocks of keys (dK, dV).
Both make P again from the two statistics that forward keeps. Row sums of P dP instead of dO O, and two statistics instead of one
log-sum-exp, cost a pass over the keys and keep the error of PyTorch (docs/decisions.md, 15).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._configs import attention_config
from ._launch import device_guard, fresh, noise_of
from ._math import dot, rounded
from .philox import dropout_scale, keep_from, kept_tile, seed_of

__all__ = ["attention", "attention_backward"]

_LOG2_E = 1.4426950408889634
_INF = tl.constexpr(float("inf"))
_UNSPECIALISED = ("T", "S", "H", "B", "window", "rows_per_seed", "stream", "keep_from", "dropout_scale", "scale", "scale2")


@triton.jit
def load_tile(x, row, stride, column, step, D: tl.constexpr, live):
    """Rows (R, 1) or (1, R) of a head, zeros where not `live` and beyond D."""
    return tl.load(x + row.to(tl.int64) * stride + column.to(tl.int64) * step, mask=live & (column < D), other=0.0)


@triton.jit
def seen_keys(key_mask, s, b, S, mb, ms):
    """Which keys exist and are not masked."""
    seen = s < S
    if key_mask is not None:
        seen = seen & (tl.load(key_mask + b.to(tl.int64) * mb + s.to(tl.int64) * ms, mask=seen, other=0) != 0)
    return seen


@triton.jit
def allowed_pairs(t, s, seen, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which query sees which key; t and s broadcast against each other, `seen` as s."""
    allowed = seen & (t < T)
    if CAUSAL:
        lag = t + (S - T) - s
        allowed = allowed & (lag >= 0)
        if WINDOW:
            allowed = allowed & (lag < window)
    return allowed


@triton.jit
def key_range(t0, t1, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BN: tl.constexpr):
    """Keys [first, last) that queries [t0, t1) may see, first at the beginning of a block."""
    first = 0
    last = S
    if CAUSAL:
        last = tl.maximum(tl.minimum(S, tl.minimum(t1, T) + (S - T)), 0)
        if WINDOW:
            first = tl.maximum(t0 + (S - T) - window + 1, 0) // BN * BN
    return first, last


@triton.jit(do_not_specialize=_UNSPECIALISED)
def forward_kernel(
    query, key, value, key_mask, out, statistics, T, S, H, window, scale2,
    qb, qt, qh, qd, kb, ks, kh, kd, vb, vs, vh, vd, mb, ms, B,
    seeds, rows_per_seed, stream, keep_from, dropout_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head."""
    blocks = tl.cdiv(T, BM)
    head = tl.program_id(0) // blocks
    t0 = tl.program_id(0) % blocks * BM
    b, h = head // H, head % H
    t = t0 + tl.arange(0, BM)
    d = tl.arange(0, BD)
    query += b.to(tl.int64) * qb + h.to(tl.int64) * qh
    key += b.to(tl.int64) * kb + h.to(tl.int64) * kh
    value += b.to(tl.int64) * vb + h.to(tl.int64) * vh
    q = load_tile(query, t[:, None], qt, d[None, :], qd, D, (t < T)[:, None])
    if seeds is not None:
        k0, k1, r = seed_of(head, seeds, rows_per_seed)
    top = tl.full((BM,), -_INF, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    first, last = key_range(t0, t0 + BM, T, S, window, CAUSAL, WINDOW, BN)
    for start in range(first, last, BN):
        s = start + tl.arange(0, BN)
        seen = seen_keys(key_mask, s, b, S, mb, ms)
        k = load_tile(key, s[None, :], ks, d[:, None], kd, D, seen[None, :])
        scores = dot(q, k, tl.zeros((BM, BN), tl.float32)) * scale2
        scores = tl.where(allowed_pairs(t[:, None], s[None, :], seen[None, :], T, S, window, CAUSAL, WINDOW), scores, -_INF)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(higher == -_INF, 0.0, higher)  # nothing seen so far: exp2(-inf - 0) = 0
        rescale = tl.exp2(top - finite)
        p = tl.exp2(scores - finite[:, None])
        total = total * rescale + tl.sum(p, axis=1)
        if seeds is not None:
            p = tl.where(kept_tile(t[:, None], start, S, k0, k1, r, stream, keep_from, BN), p * dropout_scale, 0.0)
        v = load_tile(value, s[:, None], vs, d[None, :], vd, D, seen[:, None])
        acc = dot(rounded(p, v.dtype), v, acc * rescale[:, None])
        top = higher
    o = tl.where((total == 0.0)[:, None], 0.0, acc / total[:, None])
    to = out + ((b.to(tl.int64) * T + t[:, None]) * H + h) * D + d[None, :]
    tl.store(to, rounded(o, out.dtype.element_ty), mask=(t < T)[:, None] & (d < D)[None, :])
    at = statistics + head.to(tl.int64) * T + t
    tl.store(at, top, mask=t < T)
    tl.store(at + B.to(tl.int64) * H * T, total, mask=t < T)


@triton.jit
def probabilities(scores, allowed, top, total):
    """P of a tile from the statistics; all that broadcasts is given in the tile's orientation."""
    return tl.where(allowed, tl.exp2(scores - top), 0.0) / total


@triton.jit
def row_statistics(statistics, head, t, B, H, T):
    """Largest score and sum of exponentials of queries, harmless ones where nothing is seen, and which rows see something."""
    at = statistics + head.to(tl.int64) * T + t
    top = tl.load(at, mask=t < T, other=0.0)
    total = tl.load(at + B.to(tl.int64) * H * T, mask=t < T, other=0.0)
    sees = total != 0.0
    return tl.where(sees, top, 0.0), tl.where(sees, total, 1.0), sees


@triton.jit(do_not_specialize=_UNSPECIALISED)
def query_backward_kernel(
    grad_out, query, key, value, key_mask, statistics, delta, grad_query, T, S, H, window, scale, scale2,
    gb, gt, gh, gd, qb, qt, qh, qd, kb, ks, kh, kd, vb, vs, vh, vd, mb, ms, B,
    seeds, rows_per_seed, stream, keep_from, dropout_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """delta and dQ of one block of queries of one head."""
    blocks = tl.cdiv(T, BM)
    head = tl.program_id(0) // blocks
    t0 = tl.program_id(0) % blocks * BM
    b, h = head // H, head % H
    t = t0 + tl.arange(0, BM)
    d = tl.arange(0, BD)
    grad_out += b.to(tl.int64) * gb + h.to(tl.int64) * gh
    query += b.to(tl.int64) * qb + h.to(tl.int64) * qh
    key += b.to(tl.int64) * kb + h.to(tl.int64) * kh
    value += b.to(tl.int64) * vb + h.to(tl.int64) * vh
    top, total, sees = row_statistics(statistics, head, t, B, H, T)
    q = load_tile(query, t[:, None], qt, d[None, :], qd, D, sees[:, None])
    g = load_tile(grad_out, t[:, None], gt, d[None, :], gd, D, sees[:, None])
    if seeds is not None:
        k0, k1, r = seed_of(head, seeds, rows_per_seed)
    row_sum = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    first, last = key_range(t0, t0 + BM, T, S, window, CAUSAL, WINDOW, BN)
    # Twice over the keys: for the row sums of P dP, and with these for dQ.
    for step in tl.static_range(2):
        for start in range(first, last, BN):
            s = start + tl.arange(0, BN)
            seen = seen_keys(key_mask, s, b, S, mb, ms)
            k = load_tile(key, s[None, :], ks, d[:, None], kd, D, seen[None, :])
            v = load_tile(value, s[None, :], vs, d[:, None], vd, D, seen[None, :])
            allowed = allowed_pairs(t[:, None], s[None, :], seen[None, :], T, S, window, CAUSAL, WINDOW)
            p = probabilities(dot(q, k, tl.zeros((BM, BN), tl.float32)) * scale2, allowed, top[:, None], total[:, None])
            dp = dot(g, v, tl.zeros((BM, BN), tl.float32))
            if seeds is not None:
                dp = tl.where(kept_tile(t[:, None], start, S, k0, k1, r, stream, keep_from, BN), dp * dropout_scale, 0.0)
            if step == 0:
                row_sum += tl.sum(tl.where(allowed, p * dp, 0.0), axis=1)
            else:
                ds = tl.where(allowed, p * (dp - row_sum[:, None]), 0.0)
                acc = dot(rounded(ds, k.dtype), tl.trans(k), acc)
    tl.store(delta + head.to(tl.int64) * T + t, row_sum, mask=t < T)
    to = grad_query + ((b.to(tl.int64) * T + t[:, None]) * H + h) * D + d[None, :]
    tl.store(to, rounded(acc * scale, grad_query.dtype.element_ty), mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=_UNSPECIALISED)
def key_backward_kernel(
    grad_out, query, key, value, key_mask, statistics, delta, grad_key, grad_value, T, S, H, window, scale, scale2,
    gb, gt, gh, gd, qb, qt, qh, qd, kb, ks, kh, kd, vb, vs, vh, vd, mb, ms, B,
    seeds, rows_per_seed, stream, keep_from, dropout_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys of one head; tiles are transposed, (BN, BM)."""
    blocks = tl.cdiv(S, BN)
    head = tl.program_id(0) // blocks
    s0 = tl.program_id(0) % blocks * BN
    b, h = head // H, head % H
    s = s0 + tl.arange(0, BN)
    d = tl.arange(0, BD)
    grad_out += b.to(tl.int64) * gb + h.to(tl.int64) * gh
    query += b.to(tl.int64) * qb + h.to(tl.int64) * qh
    key += b.to(tl.int64) * kb + h.to(tl.int64) * kh
    value += b.to(tl.int64) * vb + h.to(tl.int64) * vh
    seen = seen_keys(key_mask, s, b, S, mb, ms)
    k = load_tile(key, s[:, None], ks, d[None, :], kd, D, seen[:, None])
    v = load_tile(value, s[:, None], vs, d[None, :], vd, D, seen[:, None])
    acc_k = tl.zeros((BN, BD), tl.float32)
    acc_v = tl.zeros((BN, BD), tl.float32)
    if seeds is not None:
        k0, k1, r = seed_of(head, seeds, rows_per_seed)
    first = 0
    last = T
    if CAUSAL:  # key s is seen by the queries from s - (S - T) on, of a window by `window` of them
        first = tl.maximum(s0 - (S - T), 0) // BM * BM
        if WINDOW:
            last = tl.maximum(tl.minimum(T, tl.minimum(s0 + BN, S) - 1 - (S - T) + window), 0)
    for start in range(first, last, BM):
        t = start + tl.arange(0, BM)
        top, total, sees = row_statistics(statistics, head, t, B, H, T)
        q = load_tile(query, t[:, None], qt, d[None, :], qd, D, sees[:, None])
        g = load_tile(grad_out, t[:, None], gt, d[None, :], gd, D, sees[:, None])
        allowed = allowed_pairs(t[None, :], s[:, None], seen[:, None], T, S, window, CAUSAL, WINDOW)
        scores = dot(k, tl.trans(q), tl.zeros((BN, BM), tl.float32)) * scale2
        p = probabilities(scores, allowed, top[None, :], total[None, :])
        dp = dot(v, tl.trans(g), tl.zeros((BN, BM), tl.float32))
        dropped = p
        if seeds is not None:
            keep = tl.trans(kept_tile(t[:, None], s0, S, k0, k1, r, stream, keep_from, BN))
            dp = tl.where(keep, dp * dropout_scale, 0.0)
            dropped = tl.where(keep, p * dropout_scale, 0.0)
        acc_v = dot(rounded(dropped, g.dtype), g, acc_v)
        row_sum = tl.load(delta + head.to(tl.int64) * T + t, mask=t < T, other=0.0)
        ds = tl.where(allowed, p * (dp - row_sum[None, :]), 0.0)
        acc_k = dot(rounded(ds, q.dtype), q, acc_k)
    to = ((b.to(tl.int64) * S + s[:, None]) * H + h) * D + d[None, :]
    live = (s < S)[:, None] & (d < D)[None, :]
    tl.store(grad_key + to, rounded(acc_k * scale, grad_key.dtype.element_ty), mask=live)
    tl.store(grad_value + to, rounded(acc_v, grad_value.dtype.element_ty), mask=live)


def _arguments(
    tensors: tuple[Tensor, ...], key_mask: Tensor | None, dropout_p: float, seed: Tensor | None, stream: int
) -> tuple[list[Any], list[Any]]:
    """Strides with those of the mask and B; and the noise."""
    query, key = tensors[-3], tensors[-2]
    b, t, h, _ = query.shape
    strides = [step for x in tensors for step in x.stride()]
    strides += [*(key_mask.stride() if key_mask is not None else (0, 0)), b]
    noise = noise_of((b, h, t, key.shape[1]), seed if dropout_p > 0 else None, stream, None)
    return strides, [noise.seeds, noise.rows_per_seed, noise.stream, keep_from(dropout_p), dropout_scale(dropout_p)]


def _scale(scale: float | None, width: int) -> float:
    return 1.0 / math.sqrt(width) if scale is None else float(scale)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    causal: bool,
    window: int,
    scale: float | None,
    dropout_p: float,
    seed: Tensor | None,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Kernel of ``attention``; statistics are each query's largest score in base 2 and its sum of powers of two."""
    b, t, h, d = query.shape
    out, statistics = fresh(query, query.shape), fresh(query, (2, b, h, t), torch.float32)
    if out.numel() == 0:
        return out, statistics
    config = attention_config("forward", query, d, dropout_p > 0)
    window = min(window, key.shape[1])  # sums with it stay in 32 bits
    strides, noise = _arguments((query, key, value), key_mask, dropout_p, seed, stream)
    with device_guard(query):
        forward_kernel[(triton.cdiv(t, config.queries) * b * h,)](
            query, key, value, key_mask, out, statistics, t, key.shape[1], h, window, _scale(scale, d) * _LOG2_E, *strides, *noise,
            CAUSAL=causal, WINDOW=window > 0, D=d, **config.options(),
        )  # fmt: skip
    return out, statistics


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    statistics: Tensor,
    key_mask: Tensor | None,
    causal: bool,
    window: int,
    scale: float | None,
    dropout_p: float,
    seed: Tensor | None,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of ``attention_backward``."""
    b, t, h, d = query.shape
    s = key.shape[1]
    if query.numel() == 0 or key.numel() == 0:
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    grads = fresh(query, query.shape), fresh(key, key.shape), fresh(value, value.shape)
    delta = fresh(query, (b, h, t), torch.float32)
    strides, noise = _arguments((grad_out, query, key, value), key_mask, dropout_p, seed, stream)
    factor = _scale(scale, d)
    window = min(window, s)
    shared = (t, s, h, window, factor, factor * _LOG2_E, *strides, *noise)
    tensors = (grad_out, query, key, value, key_mask, statistics.contiguous(), delta)
    with device_guard(query):
        config = attention_config("backward queries", query, d, dropout_p > 0)
        query_backward_kernel[(triton.cdiv(t, config.queries) * b * h,)](
            *tensors, grads[0], *shared, CAUSAL=causal, WINDOW=window > 0, D=d, **config.options()
        )
        config = attention_config("backward keys", query, d, dropout_p > 0)
        key_backward_kernel[(triton.cdiv(s, config.keys) * b * h,)](
            *tensors, grads[1], grads[2], *shared, CAUSAL=causal, WINDOW=window > 0, D=d, **config.options()
        )
    return grads
