"""The measures against the published way: tslearn pair by pair, NumPy channel by channel and lag by lag.

    pytest bench/bench_metrics.py -s            # 8 clips x 10 draws x 10 listeners, one thread each
    pytest bench/bench_metrics.py -s --full     # 64 clips

Rounds are interleaved: the published way on a few pairs, ours on all, the published way again; CPU time, medians. The gate compares values.
"""

from __future__ import annotations

import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emc_fast.metrics.frcorr import best_concordance
from emc_fast.metrics.frdist import nearest_warped
from emc_fast.metrics.frsyn import synchrony_offsets
from emc_fast.ops import dtw as batched
from emc_fast.ops._library import native

DRAWS = LISTENERS = 10
FRAMES = 750
KINDS = pytest.mark.parametrize("kind", ["reactions", "noise"])


def reactions(rng: np.random.Generator, *lead: int, kind: str) -> NDArray[np.float32]:
    """Noise, or something like the corpus: smooth, with action units 0 or 1, valence and arousal in (-1,1), expressions that sum to one."""
    if kind == "noise":
        return rng.random((*lead, FRAMES, 25), np.float32)
    walk = rng.standard_normal((*lead, FRAMES + 24, 25), np.float32).cumsum(axis=-2)
    x = (walk[..., 24:, :] - walk[..., :-24, :]) / 5
    x[..., :15] = x[..., :15] > 1
    x[..., 15:17] = np.tanh(0.7 * x[..., 15:17] + 0.3 * rng.standard_normal((*lead, 1, 2), np.float32))
    e = np.exp(2 * x[..., 17:])
    x[..., 17:] = e / e.sum(axis=-1, keepdims=True)
    return x


class Problem:
    """N clips, each with ten draws and ten appropriate listeners."""

    def __init__(self, request: pytest.FixtureRequest, kind: str) -> None:
        rng = np.random.default_rng(0)
        clips = 64 if request.config.getoption("--full") else 8
        self.pred, self.target = reactions(rng, clips, DRAWS, kind=kind), reactions(rng, clips + LISTENERS, kind=kind)
        self.appropriate = np.zeros((clips, clips + LISTENERS), dtype=bool)
        for n in range(clips):
            self.appropriate[n, n : n + LISTENERS] = True
        self.pairs = clips * DRAWS * LISTENERS


def published_distance(a: NDArray, b: NDArray) -> float:
    from tslearn.metrics import dtw

    return dtw(a[:, :15], b[:, :15]) / 15 + dtw(a[:, 15:17], b[:, 15:17]) + dtw(a[:, 17:], b[:, 17:]) / 8


def published_concordance(a: NDArray, b: NDArray) -> float:
    values = []
    for c in range(25):
        x, y = a[:, c], b[:, c]
        rho = np.nan_to_num(np.corrcoef(x, y)[0, 1])
        values.append(2 * rho * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2 + 1e-8))
    return float(np.mean(values))


def published_offset(x: NDArray, y: NDArray) -> int:
    means = []
    for lag in range(-49, 50):
        a, b = (x[lag:], y[:-lag]) if lag > 0 else (x[:lag], y[-lag:]) if lag < 0 else (x, y)
        means.append(torch.tensor([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(25)], dtype=torch.float32).mean())
    return abs(49 - int(torch.stack(means).argmax()))


def cpu_time(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(name: str, ours: Callable[[], object], pairs: int, theirs: Callable[[], object], their_pairs: int) -> None:
    mine, other = [], []
    for _ in range(3):
        other.append(cpu_time(theirs) / their_pairs)
        mine.append(cpu_time(ours) / pairs)
        other.append(cpu_time(theirs) / their_pairs)
    a, b = float(np.median(mine)), float(np.median(other))
    print(f"\n{name}: {b * 1e3:.2f} ms a pair the published way, {a * 1e6:.1f} us ours: {b / a:.0f} times")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        yield


@KINDS
def test_frdist(kind: str, request: pytest.FixtureRequest) -> None:
    problem = Problem(request, kind)

    def ours() -> NDArray:
        return nearest_warped(problem.pred, problem.target, problem.appropriate)

    def theirs() -> list[float]:
        return [published_distance(problem.pred[0, 0], listener) for listener in problem.target[:LISTENERS]]

    assert ours()[0, 0] == pytest.approx(min(theirs()), rel=1e-6)
    compare(f"FRDist ({kind})", ours, problem.pairs, theirs, LISTENERS)


@KINDS
def test_frcorr(kind: str, request: pytest.FixtureRequest) -> None:
    problem = Problem(request, kind)

    def ours() -> NDArray:
        return best_concordance(problem.pred, problem.target, problem.appropriate, protocols=("official",))["official"]

    def theirs() -> list[float]:
        return [published_concordance(problem.pred[0, 0], listener) for listener in problem.target[:LISTENERS]]

    assert ours()[0, 0] == pytest.approx(max(theirs()), rel=1e-4, abs=1e-6)  # the published means and variances are in float32
    compare(f"FRCorr ({kind})", ours, problem.pairs, theirs, LISTENERS)


@KINDS
def test_frsyn(kind: str, request: pytest.FixtureRequest) -> None:
    problem = Problem(request, kind)
    speaker = problem.target[: len(problem.pred)]

    def ours() -> NDArray:
        return synchrony_offsets(problem.pred, speaker, protocols=("official",))["official"]

    def theirs() -> int:
        return published_offset(problem.pred[0, 0], speaker[0])

    assert ours()[0, 0] == theirs()
    compare(f"FRSyn ({kind})", ours, problem.pairs // LISTENERS, theirs, 1)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("channels", [2, 8, 15])
def test_cells_against_the_vector_units(channels: int, exact: bool, tmp_path: Path) -> None:
    """Cells a second of the warping kernel, and what the vector units could do if nothing but its arithmetic took time."""
    if shutil.which("g++") is None or native().isa != "v4":
        pytest.skip("needs g++ and a processor with AVX-512")
    source = Path(__file__).with_name("vector_peak.cpp")
    options = ["-O3", "-ffp-contract=fast", "-march=x86-64-v4", "-mprefer-vector-width=512", "-o", str(tmp_path / "peak")]
    subprocess.run(["g++", *options, str(source)], check=True)
    x, y = (torch.rand((16, FRAMES, channels)) for _ in range(2))
    pairs = torch.arange(16)[:, None].expand(16, 2).contiguous()
    batched(x, y, pairs, exact=exact)
    peak, spent = 0.0, np.inf
    for _ in range(5):
        peak = max(
            peak, float(subprocess.run([str(tmp_path / "peak")], check=True, capture_output=True, text=True).stdout.split()[0]) * 1e9
        )
        spent = min(spent, cpu_time(lambda: batched(x, y, pairs, exact=exact)))
    # A vector of 16 cells: a product and its norms, or differences and squares; two minima and a sum, twice and widened in float64.
    instructions = 2 * channels + 9 if exact else channels + 4
    cells, limit = 16 * FRAMES**2 / spent, peak / instructions * 16
    name = f"dtw, {channels} channels, {'exact' if exact else 'estimate'}"
    print(f"\n{name}: {cells / 1e9:.2f} of {limit / 1e9:.2f} Gcell/s ({cells / limit:.0%})")
