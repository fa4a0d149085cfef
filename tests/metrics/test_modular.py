"""The torchmetrics classes give the functions' figures, batch by batch and across processes' states."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from emc_fast.errors import EmcError
from emc_fast.metrics import evaluate, frdvs

from .conftest import Example

modular = pytest.importorskip("emc_fast.metrics.modular", reason="needs torchmetrics: pip install 'emc_fast[metrics]'")


@pytest.mark.parametrize("protocol", ["official", "fixed"])
def test_batches_give_the_figures_of_the_whole(example: Example, protocol: str) -> None:
    pred, target, speaker, appropriate = (torch.from_numpy(a) for a in example.arguments)
    expected = evaluate(*example.arguments, protocol=protocol)
    with_listeners = [modular.FRCorr(protocol=protocol), modular.FRDist(protocol=protocol)]
    alone = [modular.FRDiv(protocol=protocol), modular.FRVar(protocol=protocol)]
    synchrony, between = modular.FRSyn(protocol=protocol), modular.FRDvs(protocol=protocol)
    for part in (slice(0, 7), slice(7, 8), slice(8, 20)):
        for metric in with_listeners:
            metric.update(pred[part], target, appropriate[part])
        for metric in (*alone, between):
            metric.update(pred[part])
        synchrony.update(pred[part], speaker[part])
    for metric in (*with_listeners, *alone, synchrony):
        assert metric.compute().item() == expected[type(metric).__name__.lower()]
    assert between.compute().item() == pytest.approx(expected["frdvs"], rel=1e-12)


_LIVE = """
import json, sys
import numpy as np, torch, torch.distributed as dist
from emc_fast.metrics import modular
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
arrays = {name: torch.from_numpy(value) for name, value in np.load(sys.argv[1]).items()}
clips = len(arrays["pred"])
cut = int(sys.argv[3])
mine = range(0, cut) if rank == 0 else range(cut, clips)
figures = {}
for protocol in ("official", "fixed"):
    metrics = [getattr(modular, name)(protocol=protocol) for name in ("FRCorr", "FRDist", "FRDiv", "FRVar", "FRSyn", "FRDvs")]
    for start in range(mine.start, mine.stop, 3):
        part = slice(start, min(start + 3, mine.stop))
        pred = arrays["pred"][part]
        for metric in metrics[:2]:
            metric.update(pred, arrays["target"], arrays["appropriate"][part])
        for metric in (metrics[2], metrics[3], metrics[5]):
            metric.update(pred)
        metrics[4].update(pred, arrays["speaker"][part])
    figures[protocol] = {type(metric).__name__.lower(): metric.compute().item() for metric in metrics}
json.dump(figures, open(f"{sys.argv[2]}{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("cut", [13, 0])  # clips of the first process: some, none
def test_two_live_processes_give_the_digits_of_one(example: Example, tmp_path: Path, cut: int) -> None:
    np.savez(tmp_path / "arrays.npz", pred=example.pred, target=example.target, speaker=example.speaker, appropriate=example.appropriate)
    (tmp_path / "live.py").write_text(_LIVE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, str(tmp_path / "live.py"), str(tmp_path / "arrays.npz"), str(tmp_path / "rank"), str(cut)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for protocol, figures in first.items():
        expected = evaluate(*example.arguments, protocol=protocol)
        between = modular.FRDvs(protocol=protocol)
        between.update(torch.from_numpy(example.pred))
        assert figures.pop("frdvs") == between.compute().item() == pytest.approx(expected.pop("frdvs"), rel=1e-14)
        assert figures == expected


def test_nearly_equal_reactions_keep_their_digits() -> None:
    """Sums of squares lose what differs in the fifth digit only, unless they keep more digits than float64 has."""
    pred = (1.0 + 1e-5 * np.random.default_rng(0).standard_normal((7, 2, 12, 25))).astype(np.float32)
    metric = modular.FRDvs()
    for clip in pred:
        metric(torch.from_numpy(clip[None]))  # forward: update, and the batch's own figure
    assert metric.compute().item() == pytest.approx(frdvs(pred), rel=1e-12)


def test_reset_and_misuse() -> None:
    metric = modular.FRDvs()
    with pytest.raises(EmcError, match="has seen no clip yet"):
        metric.compute()
    metric.update(torch.rand((2, 1, 5, 25)))
    with pytest.raises(EmcError, match=r"batches before had \(B,1,5,25\)"):
        metric.update(torch.rand((2, 1, 6, 25)))
    metric.reset()
    metric.update(torch.rand((1, 1, 6, 25)))
    assert metric.compute() == 0.0
    with pytest.raises(ValueError, match="protocol"):
        modular.FRVar(protocol="best")
