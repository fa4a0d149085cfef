"""Cross covariance: the definition against NumPy, the kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emc_fast.ops import cross_covariance
from emc_fast.ops.reference import cross_covariance as reference

from .parity import assert_opcheck


def test_definition_is_numpys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 12, 3)), rng.standard_normal((1, 12, 3))
    covariance, x_moments, y_moments = reference.cross_covariance(torch.from_numpy(x), torch.from_numpy(y))
    for k in range(2):
        for c in range(3):
            expected = np.cov(x[k, :, c], y[0, :, c], ddof=0)
            assert covariance[k, 0, c].item() == pytest.approx(expected[0, 1], abs=1e-14)
            assert x_moments[k, :, c].tolist() == pytest.approx([x[k, :, c].mean(), expected[0, 0]])
    assert y_moments.shape == (1, 2, 3)


@pytest.mark.parametrize("seed", range(10))
def test_kernel_is_the_definition(isa: str, seed: int) -> None:
    g = np.random.default_rng(seed)
    k, j, t, c = (int(v) for v in g.integers(1, (12, 12, 90, 28)))
    x = torch.from_numpy(g.standard_normal((k, c, t)).astype(np.float32)).transpose(1, 2) + (1000.0 if seed % 4 == 0 else 0.0)
    y = torch.from_numpy(g.standard_normal((j, t, c)).astype(np.float32))
    y[..., 0] = 0.1  # varies not at all
    truth = reference.cross_covariance(x, y)
    ours = cross_covariance(x, y)
    for value, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    assert (ours[0][..., 0] == 0.0).all()
    assert (ours[2][:, 1, 0] == 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, y = torch.randn((2, 20, 3)).to(dtype), torch.randn((1, 20, 3)).to(dtype)
    for value, expected in zip(cross_covariance(x, y), reference.cross_covariance(x, y), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


def test_raw_operator_is_well_declared() -> None:
    assert_opcheck(torch.ops.emc_fast.cross_covariance.default, torch.randn((2, 9, 3)), torch.randn((4, 9, 3)))


def test_bad_arguments_are_named() -> None:
    x = torch.zeros((2, 9, 3))
    with pytest.raises(ValueError, match="x must have shape"):
        cross_covariance(x[0], x)
    with pytest.raises(ValueError, match=r"frames and channels of x, \(9, 3\), got \(8, 3\)"):
        cross_covariance(x, x[:, :8])
    with pytest.raises(TypeError, match="dtype of x"):
        cross_covariance(x, x.double())
    with pytest.raises(ValueError, match="y requires a gradient"):
        cross_covariance(x, torch.zeros((2, 9, 3), requires_grad=True))
