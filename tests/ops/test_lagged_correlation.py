"""Lagged correlation: the definition against NumPy, the kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emc_fast.ops import lagged_correlation
from emc_fast.ops.reference import lagged_correlation as reference

from .parity import assert_opcheck


def test_definition_is_numpys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 1, 12, 2)), rng.standard_normal((1, 12, 2))
    ours = reference.lagged_correlation(torch.from_numpy(x), torch.from_numpy(y), 4)
    for lag in range(-4, 5):
        a, b = (x[0, 0, lag:], y[0, : 12 - lag]) if lag >= 0 else (x[0, 0, :lag], y[0, -lag:])
        for c in range(2):
            assert ours[0, 0, lag + 4, c].item() == pytest.approx(np.corrcoef(a[:, c], b[:, c])[0, 1], abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_kernel_is_the_definition(isa: str, seed: int) -> None:
    g = np.random.default_rng(seed)
    n, k, t, c, max_lag = (int(v) for v in g.integers(1, (4, 4, 90, 28, 60)))
    x = torch.from_numpy(g.standard_normal((n, k, c, t)).astype(np.float32)).transpose(2, 3) + (1000.0 if seed % 4 == 0 else 0.0)
    y = torch.from_numpy(g.standard_normal((n, t, c)).astype(np.float32))
    if seed % 3 == 0:
        x[..., t // 2 :, 0], y[..., : t // 3, -1] = 0.1, 0.7
    if seed % 3 == 1:  # an overlap far from the whole's mean with hardly any variation
        x[..., t // 2 :, 0] = 5.0 + 1e-5 * x[..., t // 2 :, 0]
    truth = reference.lagged_correlation(x, y, max_lag)
    ours = lagged_correlation(x, y, max_lag)
    torch.testing.assert_close(ours, truth, rtol=0.0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, y = torch.randn((2, 1, 20, 3)).to(dtype), torch.randn((2, 20, 3)).to(dtype)
    torch.testing.assert_close(lagged_correlation(x, y, 5), reference.lagged_correlation(x, y, 5), rtol=0.0, atol=1e-9)


def test_raw_operator_is_well_declared() -> None:
    assert_opcheck(torch.ops.emc_fast.lagged_correlation.default, torch.randn((2, 2, 9, 3)), torch.randn((2, 9, 3)), 4)


def test_bad_arguments_are_named() -> None:
    x, y = torch.zeros((2, 1, 9, 3)), torch.zeros((2, 9, 3))
    with pytest.raises(ValueError, match="x must have shape"):
        lagged_correlation(y, y, 3)
    with pytest.raises(ValueError, match=r"y must have shape \(2, 9, 3\)"):
        lagged_correlation(x, y[:1], 3)
    with pytest.raises(ValueError, match="max_lag must be an int of at least 0, got -1"):
        lagged_correlation(x, y, -1)
    with pytest.raises(ValueError, match="x requires a gradient"):
        lagged_correlation(x.requires_grad_(), y, 3)
