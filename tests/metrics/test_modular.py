"""The torchmetrics classes give the functions' figures, batch by batch and across processes' states."""

from __future__ import annotations

import pytest
import torch

from emc_fast.errors import EmcError
from emc_fast.metrics import evaluate

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


def test_states_of_two_processes_are_joined(example: Example) -> None:
    """What torchmetrics does when it synchronises: lists are gathered, sums are added."""
    pred = torch.from_numpy(example.pred)
    halves = []
    for part in (pred[:8], pred[8:]):
        metric = modular.FRVar()
        metric.update(part)
        halves.append(metric)
    joined = modular.FRVar()
    joined.values = [torch.cat([half.values[0] for half in halves])]
    joined._update_count = 1
    assert joined.compute().item() == evaluate(*example.arguments)["frvar"]


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
