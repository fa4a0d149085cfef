"""lagged_correlation against its definition in plain PyTorch, and against Fourier transforms with running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from emc_fast.ops import lagged_correlation
from emc_fast.ops.reference.lagged_correlation import lagged_correlation as definition

from .race import Case

# (N, K, T, C, lag): the draws of some clips at FRSyn's lags
SIZES = ([(8, 10, 750, 25, 49)], [(1, 10, 750, 25, 49), (8, 10, 750, 25, 49)])


def fourier(x: Tensor, y: Tensor, max_lag: int) -> Tensor:
    """The quick way to all lags at once: products by transforms, moments by running sums. Subtracting those loses digits, and finds no
    channel that is constant in an overlap only; the random signals here have none.
    """
    frames = x.shape[2]
    lags = torch.arange(-max_lag, max_lag + 1)
    # Long signals are correlated by transforms of the next length that has small factors alone.
    length = next(n for n in range(frames + max_lag, 4 * frames) if _smooth(n))
    a, b = x.transpose(2, 3).double(), y[:, None].transpose(2, 3).double()
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    products = torch.fft.irfft(torch.fft.rfft(a, length) * torch.fft.rfft(b, length).conj(), length)[..., lags % length]

    def sums(signal: Tensor, first: Tensor) -> Tensor:
        """Of the overlap at each lag, which begins at `first`."""
        total = torch.nn.functional.pad(signal.cumsum(-1), (1, 0))
        return total[..., first + count] - total[..., first]

    count = frames - lags.abs()
    starts = lags.clamp(min=0), (-lags).clamp(min=0)
    means = [sums(s, first) / count for s, first in zip((a, b), starts, strict=True)]
    variances = [sums(s.square(), first) / count - mean.square() for s, first, mean in zip((a, b), starts, means, strict=True)]
    found = (products / count - means[0] * means[1]) / (variances[0] * variances[1]).sqrt()
    return found.transpose(2, 3)


def _smooth(n: int) -> bool:
    for factor in (2, 3, 5):
        while n % factor == 0:
            n //= factor
    return n == 1


def test_lagged_correlation(race, size) -> None:
    clips, draws, frames, channels, max_lag = size
    inputs = {"x": torch.rand(clips, draws, frames, channels), "y": torch.rand(clips, frames, channels)}

    def gate() -> None:
        truth = definition(**inputs, max_lag=max_lag)
        for function in (lagged_correlation, fourier):
            torch.testing.assert_close(function(**inputs, max_lag=max_lag), truth, rtol=0.0, atol=1e-9)

    def of(function):
        return lambda x, y: function(x, y, max_lag)

    race(
        Case(
            "lagged_correlation",
            f"{clips} x {draws} x {frames} x {channels}, lags to {max_lag}",
            of(lagged_correlation),
            inputs,
            {"eager": lambda x, y: definition(x[:1], y[:1], max_lag), "fourier": of(fourier)},
            gate=gate,
            alike=False,  # the definition takes its time: it gets one clip
            shares={"eager": 1 / clips},
            kind="measure",
        )
    )
