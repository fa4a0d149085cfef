"""The measures against the published way: tslearn pair by pair, NumPy channel by channel and lag by lag; FRDist also by dtaidistance.

    pytest bench/bench_metrics.py               # 8 clips x 10 draws x 10 listeners
    pytest bench/bench_metrics.py -s --whole    # 64 clips, and a whole test set by the command (4 GB of disk, two threads)

Ours goes over all clips in every round. The published way takes 10 pairs of FRDist and FRCorr, one of FRSyn, always on one thread, and its
time for all is that for one times their number (a pair's work does not depend on what it holds). The gate compares values first. `--whole`
takes five to seven minutes on two idle cores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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

from .limits import vector_isa
from .peers import FRAMES, Warping, reactions, warpings
from .race import Case

DRAWS = LISTENERS = 10
KINDS = pytest.mark.parametrize("kind", ["reactions", "noise"])


class Problem:
    """N clips, each with ten draws and ten appropriate listeners."""

    def __init__(self, kind: str, clips: int) -> None:
        rng = np.random.default_rng(0)
        self.size = f"{clips} clips x {DRAWS} draws, {LISTENERS} listeners, {kind}"
        self.pred, self.target = reactions(rng, clips, DRAWS, kind=kind), reactions(rng, clips + LISTENERS, kind=kind)
        self.appropriate = np.zeros((clips, clips + LISTENERS), dtype=bool)
        for n in range(clips):
            self.appropriate[n, n : n + LISTENERS] = True
        self.pairs = clips * DRAWS * LISTENERS


def distance_by(warping: Warping) -> Warping:
    """The published distance of two reactions on somebody's warping of two sequences."""
    groups = ((slice(0, 15), 15), (slice(15, 17), 1), (slice(17, 25), 8))
    return lambda a, b: sum(warping(np.ascontiguousarray(a[:, g]), np.ascontiguousarray(b[:, g])) / width for g, width in groups)


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


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def problem(request: pytest.FixtureRequest, kind: str) -> Problem:
    return Problem(kind, 64 if request.config.getoption("--whole") else 8)


def frdist_case(problem: Problem) -> Case:
    pairs = [(problem.pred[0, 0].astype(np.float64), listener.astype(np.float64)) for listener in problem.target[:LISTENERS]]
    here, missing = warpings()
    names = {"tslearn": "published"}

    def ours() -> NDArray:
        return nearest_warped(problem.pred, problem.target, problem.appropriate)

    def by(warping: Warping) -> Callable[[], list[float]]:
        distance = distance_by(warping)
        return lambda: [distance(a, b) for a, b in pairs]

    rivals = {names.get(name, name): by(warping) for name, warping in here.items()}

    def gate() -> None:
        least = ours()[0, 0]
        for rival in rivals.values():
            assert least == pytest.approx(min(rival()), rel=1e-6)

    shares = dict.fromkeys(rivals, LISTENERS / problem.pairs)
    absent = {names.get(name, name): reason for name, reason in missing.items()}
    return Case("FRDist", problem.size, ours, {}, rivals, gate=gate, alike=False, shares=shares, missing=absent, kind="measure")


@KINDS
def test_frdist(race, problem: Problem) -> None:
    race(frdist_case(problem))


@KINDS
def test_frcorr(race, problem: Problem) -> None:
    def ours() -> NDArray:
        return best_concordance(problem.pred, problem.target, problem.appropriate, protocols=("official",))["official"]

    def theirs() -> list[float]:
        return [published_concordance(problem.pred[0, 0], listener) for listener in problem.target[:LISTENERS]]

    def gate() -> None:  # the published means and variances are in float32
        assert ours()[0, 0] == pytest.approx(max(theirs()), rel=1e-4, abs=1e-6)

    shares = {"published": LISTENERS / problem.pairs}
    race(Case("FRCorr", problem.size, ours, {}, {"published": theirs}, gate=gate, alike=False, shares=shares, kind="measure"))


@KINDS
def test_frsyn(race, problem: Problem) -> None:
    speaker = problem.target[: len(problem.pred)]

    def ours() -> NDArray:
        return synchrony_offsets(problem.pred, speaker, protocols=("official",))["official"]

    def theirs() -> int:
        return published_offset(problem.pred[0, 0], speaker[0])

    def gate() -> None:
        assert ours()[0, 0] == theirs()

    shares = {"published": LISTENERS / problem.pairs}
    race(Case("FRSyn", problem.size, ours, {}, {"published": theirs}, gate=gate, alike=False, shares=shares, kind="measure"))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("channels", [2, 8, 15])
def test_cells_against_the_vector_units(channels: int, exact: bool, tmp_path: Path) -> None:
    """Cells a second of the warping kernel, and what the vector units could do if nothing but its arithmetic took time."""
    if shutil.which("g++") is None or vector_isa() != "v4":
        pytest.skip("needs g++ and a processor with AVX-512")
    source = Path(__file__).with_name("vector_peak.cpp")
    options = ["-O3", "-ffp-contract=fast", "-march=x86-64-v4", "-mprefer-vector-width=512", "-o", str(tmp_path / "peak")]
    subprocess.run(["g++", *options, str(source)], check=True)
    x, y = (torch.rand((16, FRAMES, channels)) for _ in range(2))
    pairs = torch.arange(16)[:, None].expand(16, 2).contiguous()
    batched(x, y, pairs, exact=exact)
    peaks, times = [], []
    for _ in range(15):
        times.append(min(cpu_time(lambda: batched(x, y, pairs, exact=exact)) for _ in range(4)))
        peaks.append(float(subprocess.run([str(tmp_path / "peak")], check=True, capture_output=True, text=True).stdout.split()[0]) * 1e9)
    # A vector of 16 cells: a product and its norms, or differences and squares; two minima and a sum, twice and widened in float64.
    instructions = 2 * channels + 9 if exact else channels + 4
    cells = [16 * FRAMES**2 / spent for spent in times]
    share = float(np.median([rate / (peak / instructions * 16) for rate, peak in zip(cells, peaks, strict=True)]))
    name = f"dtw, {channels} channels, {'exact' if exact else 'estimate'}"
    print(
        f"\n{name}: best {max(cells) / 1e9:.2f}, median {np.median(cells) / 1e9:.2f} Gcell/s; vector units {max(peaks) / 1e9:.2f} G/s, "
        f"which is {max(peaks) / instructions * 16 / 1e9:.2f} Gcell/s: {share:.0%} of the limit (median of rounds)"
    )


_COMMAND = """
import resource, sys, threading, time
from emc_fast.cli import main
start, most = time.monotonic(), 0
def watch():
    global most
    while True:
        most = max(most, int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]))
        time.sleep(0.1)
threading.Thread(target=watch, daemon=True).start()
try:
    main()
finally:
    use = resource.getrusage(resource.RUSAGE_SELF)
    print("wall", time.monotonic() - start, "cpu", use.ru_utime + use.ru_stime, "anonymous", most / 2**10, file=sys.stderr)
"""


def test_whole_test_set(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """1612 clips of ten draws with ten listeners each by the command, on two threads: time, and memory beyond the mapped file."""
    if not request.config.getoption("--whole"):
        pytest.skip("takes minutes and 4 GB of disk: --whole")
    clips = 1612
    rng = np.random.default_rng(0)
    root = tmp_path / "tree"
    names = [f"NoXI/s/Expert_video/{n}" for n in range(clips // 2)], [f"NoXI/s/Novice_video/{n}" for n in range(clips // 2)]
    (root / "val").mkdir(parents=True)
    (root / "val.csv").write_text("i,s,l\n" + "".join(f"{n},{a},{b}\n" for n, (a, b) in enumerate(zip(*names, strict=True))))
    header = ",".join(f"c{n}" for n in range(25))
    for name in (*names[0], *names[1]):
        file = root / "val" / "Emotion" / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(file, reactions(rng, kind="reactions"), fmt="%.5f", delimiter=",", header=header, comments="")
    matrix = np.zeros((clips, clips), np.uint8)
    for n in range(clips):
        matrix[n, (n + np.arange(LISTENERS)) % clips] = 1
    np.save(root / "neighbour_emotion_val.npy", matrix)
    pred = np.lib.format.open_memmap(tmp_path / "pred.npy", mode="w+", dtype=np.float32, shape=(clips, DRAWS, FRAMES, 25))
    for n in range(clips):
        pred[n] = reactions(rng, DRAWS, kind="reactions")
    pred.flush()
    del pred
    arguments = ["evaluate", str(tmp_path / "pred.npy"), "--data", str(root), "--bootstrap", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = re.search(r"wall (\S+) cpu (\S+) anonymous (\S+)", done.stderr)
    assert found is not None, done.stderr
    wall, cpu, anonymous = map(float, found.groups())
    print(
        f"\n{clips} clips, both protocols: {wall:.0f} s, {cpu:.0f} s of CPU time; at most {anonymous:.0f} MiB that are not the "
        "mapped file, the interpreter and the emotion of the tree included"
    )
    assert anonymous <= 1024
