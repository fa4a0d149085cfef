"""e^x in parts, from which e^x - 1 and e^x - 1 - x are put together without the cancellation that a finished e^x brings.

The arithmetic is that of csrc/cpu/fusion_kl_rows.h and fusion_kl.cpp, which the fusion losses need on every device: a loss near 0 keeps its
digits, and extreme variances make no NaN of a finite term.
"""

import triton
import triton.language as tl

from ._math import exponent_bits, round_small


@triton.jit
def exponential(x):
    """Parts (2^n, n, r, bounded r, e^r - 1 - r) of e^x = 2^n e^r, |r| <= ln 2 / 2."""
    n = round_small(clamp(x * 1.44269504, -126.0, 127.0))
    # r is far from 0 where n had to be bounded; ln 2 in two parts, n times the first is exact
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    bounded = tl.where(r < -1.0, -1.0, r)  # below, 2^n has already taken such a term below the last bit
    p = 1.985780254e-4 * bounded + 1.393360668e-3  # minimax of (e^r - 1 - r) / r^2, relative error 3e-9
    p = p * bounded + 8.333360776e-3
    p = p * bounded + 4.166646674e-2
    p = p * bounded + 1.666666716e-1
    p = p * bounded + 0.5
    return exponent_bits(n), n, r, bounded, p * (bounded * bounded)


@triton.jit
def clamp(x, low, high):
    """x between two bounds; a NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def exp_of(x):
    """e^x, 0 below the normal numbers."""
    scale, n, r, bounded, curvature = exponential(x)
    return tl.where(r < -1.0, 0.0, scale * (1.0 + (bounded + curvature)))


@triton.jit
def exp_minus_one(x):
    """e^x - 1."""
    scale, n, r, bounded, curvature = exponential(x)
    return scale * (bounded + curvature) + (scale - 1.0)


@triton.jit
def minus_tangent(scale, n, r, curvature):
    """e^x - 1 - x, never negative."""
    whole = scale - 1.0
    return scale * curvature + (whole * r + (whole - n * 0.693147182))


@triton.jit
def exp_minus_tangent(x):
    """e^x - 1 - x, never negative; with n = 0 the polynomial alone."""
    scale, n, r, bounded, curvature = exponential(x)
    return minus_tangent(scale, n, r, curvature)


@triton.jit
def inverse_variance(logvar):
    """Factors (low, high, rest) of e^-logvar = (low high)^2 rest, where low high is a power of two.

    The power is applied to a difference of means before that is squared, in two steps: neither equal means over a tiny variance (0 * inf)
    nor far means over a huge one (inf * 0) make a NaN of a finite term.
    """
    y = clamp(-logvar, -350.0, 350.0)  # beyond, float32 holds no term but 0 and inf
    m = round_small(y * 0.72134752)  # 1 / (2 ln 2)
    r = (y - m * 1.38671875) + m * 4.24388880e-4
    p = 2.444009260e-5 * r + 2.010984899e-4  # minimax of (e^r - 1 - r) / r^2 for |r| <= ln 2
    p = p * r + 1.389370416e-3
    p = p * r + 8.332527243e-3
    p = p * r + 4.166652635e-2
    p = p * r + 1.666667312e-1
    p = p * r + 0.5
    half = round_small(m * 0.5)
    return exponent_bits(half), exponent_bits(m - half), (p * (r * r) + r) + 1.0


@triton.jit
def quadratic(d, low, high, rest):
    """d^2 e^-logvar."""
    scaled = d * low * high
    return scaled * rest * scaled


@triton.jit
def linear(d, low, high, rest):
    """d e^-logvar."""
    return d * low * high * rest * low * high
