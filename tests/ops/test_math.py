"""csrc/cpu/simd.h and math.h: conversions of every half, and the error of the functions that noise is made of, for each instruction set."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import build

from .parity import needs_for_isa

CPU = Path(__file__).resolve().parents[2] / "csrc" / "cpu"
FLAGS = {"base": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
SOURCE = """
#include "philox.h"
using namespace emc::EMC_ISA;
#define EACH(name, in, out, body) extern "C" void name(const in* x, out* y, long n) { for (long i = 0; i + W <= n; i += W) { body; } }
EACH(t_deviation, float, float, store(y + i, Deviation(load(x + i)).value))
EACH(t_excess, float, float, store(y + i, Deviation(load(x + i)).variance_minus_one))
EACH(t_log, float, float, store(y + i, log_normal_number(load(x + i))))
#define WORDS(x) U w; std::memcpy(&w, x, sizeof w); F s; F c; sincos_uniform(w, &s, &c);
EACH(t_uniform, uint32_t, float, WORDS(x + i) store(y + i, uniform(w)))
EACH(t_sin, uint32_t, float, WORDS(x + i) store(y + i, s))
EACH(t_cos, uint32_t, float, WORDS(x + i) store(y + i, c))
EACH(t_least, float, float, store(y + i, at_least(load(x + i), -2.f)))
EACH(t_most, float, float, store(y + i, at_most(load(x + i), 2.f)))
EACH(t_past, float, float, store_some(y + i, load(x + i), W, true))
EACH(t_past_half, float, uint16_t, store_some((Half*)(y + i), load(x + i), W, true))
EACH(t_past_bfloat, float, uint16_t, store_some((BFloat16*)(y + i), load(x + i), W, true))
EACH(t_from_half, uint16_t, float, store(y + i, load((const Half*)(x + i))))
EACH(t_to_half, float, uint16_t, store((Half*)(y + i), load(x + i)))
EACH(t_from_bfloat, uint16_t, float, store(y + i, load((const BFloat16*)(x + i))))
EACH(t_to_bfloat, float, uint16_t, store((BFloat16*)(y + i), load(x + i)))
extern "C" void t_reduce(const float* x, float* y, long n) { y[0] = sum(load_n(x, n)); y[1] = max(load_n(x, n)); }
extern "C" void t_copy(const float* x, float* y, long n) { store_n(y, load_n(x, n), n); }
extern "C" void t_spread(const uint16_t* x, uint16_t* y, long n) { store_n((Half*)y, load_some((const Half*)x, 2, n), n); }
extern "C" int t_width() { return W; }
"""


@pytest.fixture(scope="module", params=FLAGS)
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The headers compiled for one instruction set."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    isa: str = request.param
    if reason := needs_for_isa(isa):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(isa)
    (folder / "math.cpp").write_text(SOURCE)
    options = ["-std=gnu++17", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fPIC", "-shared"]
    subprocess.run(
        [compiler, *options, *FLAGS[isa], f"-DEMC_ISA={isa}", f"-I{CPU}", folder / "math.cpp", "-o", folder / "math.so"], check=True
    )
    return ctypes.CDLL(str(folder / "math.so"))


def call(lib: ctypes.CDLL, name: str, x: np.ndarray, out: type = np.float32) -> np.ndarray:
    x = np.ascontiguousarray(np.resize(x, -(-len(x) // 16) * 16))
    y = np.zeros(len(x), out)
    getattr(lib, name)(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(len(x)))
    return y


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units of the last place of the float32 nearest to the exact value."""
    near = exact.astype(np.float32)
    unit = np.maximum(np.abs(np.spacing(near)), np.float32(2.0**-149)).astype(np.float64)
    return float(np.max(np.abs(got.astype(np.float64) - exact) / unit))


def test_deviation(lib: ctypes.CDLL) -> None:
    """e^(v/2) and e^v - 1, from the smallest deviation that is a normal number to the largest variance, and densely around 0."""
    wide, near = np.linspace(-174, 88.7, 1 << 18), np.concatenate([np.linspace(-1, 1, 1 << 16), np.geomspace(1e-30, 1, 1 << 12)])
    for v in (wide, near, -near):
        v = v.astype(np.float32)
        exact = v.astype(np.float64)
        assert ulps(call(lib, "t_deviation", v)[: len(v)], np.exp(exact / 2)) < 1.6
        assert ulps(call(lib, "t_excess", v)[: len(v)], np.expm1(exact)) < 4.0
    special = np.array([-np.inf, np.inf, np.nan, -1000, 1000, 178, -210, 0] * 2, np.float32)
    values = np.array([0, np.inf, np.nan, 0, np.inf, np.inf, 0, 1] * 2, np.float32)
    assert np.array_equal(call(lib, "t_deviation", special), values, equal_nan=True)
    assert np.array_equal(call(lib, "t_excess", special), values - 1, equal_nan=True)
    below = call(lib, "t_deviation", np.linspace(-206, -175, 1 << 10).astype(np.float32))  # subnormal: right to the last bit or two
    assert np.all(np.abs(below - np.exp(np.linspace(-206, -175, 1 << 10).astype(np.float32).astype(np.float64) / 2)) < 3 * 2.0**-149)


def test_log(lib: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    normal = rng.integers(0x00800000, 0x7F800000, 1 << 18, dtype=np.uint32).view(np.float32)  # every exponent
    near_one = np.linspace(0.5, 2, 1 << 17, dtype=np.float32)
    for x in (normal, near_one):
        assert ulps(call(lib, "t_log", x), np.log(x.astype(np.float64))) < 1.6
    assert np.array_equal(call(lib, "t_log", np.ones(16, np.float32)), np.zeros(16, np.float32))


def test_sincos(lib: ctypes.CDLL) -> None:
    """Every uniform that noise can be made of, thinned, with the ends and the surroundings of the zeros; a word's low bits do not count."""
    k = np.unique(
        np.concatenate(
            [np.arange(0, 1 << 23, 61), *(np.arange(max(c - 300, 0), min(c + 300, 1 << 23)) for c in range(0, (1 << 23) + 1, 1 << 21))]
        )
    )
    words = (k.astype(np.uint32) << 9) | np.random.default_rng(0).integers(0, 512, len(k), dtype=np.uint32)
    u, count = (k + 0.5) * 2.0**-23, len(k)
    assert np.array_equal(call(lib, "t_uniform", words)[:count], u.astype(np.float32))
    exact = 2 * np.pi * u.astype(np.longdouble)
    assert ulps(call(lib, "t_sin", words)[:count], np.sin(exact).astype(np.float64)) < 2.0
    assert ulps(call(lib, "t_cos", words)[:count], np.cos(exact).astype(np.float64)) < 2.0


def test_bounds_let_nan_through(lib: ctypes.CDLL) -> None:
    x = np.array([-np.inf, -2.5, -2, 0, 2, 2.5, np.inf, np.nan] * 2, np.float32)
    assert np.array_equal(call(lib, "t_least", x), np.maximum(x, np.float32(-2)), equal_nan=True)
    assert np.array_equal(call(lib, "t_most", x), np.minimum(x, np.float32(2)), equal_nan=True)


def test_stores_past_the_caches(lib: ctypes.CDLL) -> None:
    """The same values as by the caches, where the place is aligned and where it is not."""
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    for name, like, out in (
        ("t_past", None, np.float32),
        ("t_past_half", "t_to_half", np.uint16),
        ("t_past_bfloat", "t_to_bfloat", np.uint16),
    ):
        want = x if like is None else call(lib, like, x, out)
        memory = np.zeros(len(x) * 2, out)
        for start in (0, 1, 5, 16):
            y = memory[start : start + len(x)]
            getattr(lib, name)(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(len(x)))
            assert np.array_equal(y, want)


def test_every_half_and_bfloat_comes_through(lib: ctypes.CDLL) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    floats = call(lib, "t_from_half", bits)
    assert np.array_equal(floats, bits.view(np.float16).astype(np.float32), equal_nan=True)
    assert np.array_equal(call(lib, "t_to_half", floats, np.uint16).view(np.float16), bits.view(np.float16), equal_nan=True)
    wide = call(lib, "t_from_bfloat", bits)
    assert np.array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)
    back = call(lib, "t_to_bfloat", wide, np.uint16)
    assert np.array_equal(back[~np.isnan(wide)], bits[~np.isnan(wide)])
    assert np.isnan((back.astype(np.uint32) << 16).view(np.float32)[np.isnan(wide)]).all()


def test_rounding_to_half_and_bfloat(lib: ctypes.CDLL) -> None:
    """To nearest, ties to even: random floats of every size, and the exact middle between neighbours."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x[~np.isnan(x)], (rng.normal(size=1 << 16) * 10.0 ** rng.integers(-8, 5, 1 << 16)).astype(np.float32)])
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    x = np.resize(
        np.concatenate([x, middles, -middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf), [65519.9, 65520.0]]),
        len(x) // 16 * 16 + (1 << 18),
    )
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(call(lib, "t_to_half", x, np.uint16), x.astype(np.float16).view(np.uint16))
    bits = x.view(np.uint32).astype(np.uint64)
    assert np.array_equal(call(lib, "t_to_bfloat", x, np.uint16), ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def test_tails_and_reductions(lib: ctypes.CDLL) -> None:
    """Loads and stores of n lanes touch exactly n elements; lanes beyond them are zero."""
    width = lib.t_width()
    rng = np.random.default_rng(2)
    for n in range(1, width + 1):
        x = np.full(2 * width, np.nan, np.float32)
        x[:n] = rng.normal(size=n).astype(np.float32)
        y = np.full(2 * width, -7, np.float32)
        lib.t_copy(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(n))
        assert np.array_equal(y[:n], x[:n])
        assert (y[n:width] == -7).all()
        spread, halves = rng.normal(size=2 * n - 1).astype(np.float16), np.full(width, -7, np.float16)
        lib.t_spread(spread.ctypes.data_as(ctypes.c_void_p), halves.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(n))
        assert np.array_equal(halves[:n], spread[::2])
        assert (halves[n:] == -7).all()
        lib.t_reduce(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(n))
        assert abs(y[0] - x[:n].astype(np.float64).sum()) < 1e-5
        assert y[1] == max(x[:n].max(), 0 if n < width else -np.inf)
