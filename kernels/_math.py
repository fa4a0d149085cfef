"""exp, log and sin/cos of whole turns for Triton kernels, about 1 ulp: the polynomials of csrc/cpu/math.h.

Triton's own functions become the hardware's approximations on NVIDIA (``ex2.approx``, ``lg2.approx``), whose error near u = 1 or at large
exponents is more than the operators promise, and differ on AMD. Plain arithmetic gives the same accuracy on every device and in the
interpreter.
"""

import triton
import triton.language as tl

from . import interpreting

_INTERPRETED = tl.constexpr(interpreting())
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: a float added to it has no room for a fraction


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 x in `dtype`, to the nearest; the interpreter alone would cut bfloat16 off instead."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def dot(a, b, acc):
    """acc + a b, float32 operands without TF32.

    The interpreter would multiply the bits of bfloat16. And its products are those of NumPy's library, which on some processors are not the
    same sums when both operands are transposed; where values cancel, as all do with one key, backward relies on that.
    """
    if _INTERPRETED:
        wide = tl.dot(a.to(tl.float64), b.to(tl.float64), acc.to(tl.float64), input_precision="ieee", out_dtype=tl.float64)
        return wide.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def exponent_bits(n):
    """2^n for an integral float n in [-126, 127]."""
    return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def round_small(x):
    """Nearest integer, as a float, for |x| < 2^22."""
    return (x + _MAGIC) - _MAGIC


@triton.jit
def exp(x):
    """e^x for every float32: 0 below the smallest subnormal, inf above the largest float, NaN stays."""
    clamped = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))
    n = round_small(clamped * 1.44269504088896341)
    r = clamped - n * 0.693359375  # ln 2 in two parts; the first has few bits, so n times it is exact
    r = r + n * 2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    y = (p * (r * r) + r) + 1.0
    # 2^n in two factors, since it may be subnormal or inf while the result is not.
    whole = n.to(tl.int32)
    half = whole >> 1
    low = ((half + 127) << 23).to(tl.float32, bitcast=True)
    high = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x == x, y * low * high, x)


@triton.jit
def log_unit(x):
    """ln x for normal x > 0, which uniforms in (0, 1) are."""
    shifted = x.to(tl.int32, bitcast=True) - 0x3F3504F3  # mantissa in [sqrt(1/2), sqrt(2)): here the exponent steps
    e = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    z = f * f
    p = 7.0376836292e-2 * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    y = f * z * p
    y = y - e * 2.12194440e-4
    y = y - z * 0.5
    return e * 0.693359375 + (f + y)


@triton.jit
def sincos_turns(u):
    """Sine and cosine of 2 pi u for u in [0, 1]; turns are reduced exactly, so small values are as good as large."""
    q = round_small(u * 4.0)
    x = (u - q * 0.25) * 6.28318530717958648
    z = x * x
    s = -1.9515295891e-4 * z + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = (s * z) * x + x
    c = 2.443315711809948e-5 * z - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * (z * z) + (1.0 - z * 0.5)
    quarter = q.to(tl.int32)
    odd = (quarter & 1) != 0
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    return tl.where((quarter & 2) != 0, -sine, sine), tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
