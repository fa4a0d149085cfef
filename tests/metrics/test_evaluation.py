"""All measures in one go: the single ones' figures, on memory maps, on several processes, with intervals, in the words of an error."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from emc_fast import metrics
from emc_fast.errors import DataError
from emc_fast.metrics import bootstrap_interval, evaluate, measure_clips

from .conftest import Example


def test_figures_are_the_single_measures(example: Example) -> None:
    pred, target, speaker, appropriate = example.arguments
    protocol: metrics._inputs.Protocol
    for protocol in ("official", "fixed"):
        figures = evaluate(*example.arguments, protocol=protocol)
        assert figures == {
            "frcorr": metrics.frcorr(pred, target, appropriate, protocol=protocol),
            "frdist": metrics.frdist(pred, target, appropriate, protocol=protocol),
            "frdiv": metrics.frdiv(pred, protocol=protocol),
            "frvar": metrics.frvar(pred, protocol=protocol),
            "frdvs": metrics.frdvs(pred, protocol=protocol),
            "frsyn": metrics.frsyn(pred, speaker, protocol=protocol),
        }
    assert evaluate(*(torch.from_numpy(a) for a in example.arguments), protocol="fixed") == figures


def test_memory_map_is_read_in_peace(example: Example, tmp_path: Path) -> None:
    np.save(tmp_path / "pred.npy", example.pred)
    mapped = np.load(tmp_path / "pred.npy", mmap_mode="r")
    done: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measure_clips(mapped, *example.arguments[1:], progress=done.append)
    assert table.figures("official") == evaluate(*example.arguments)
    assert sum(done) == len(table) == 20


def test_the_truth_measured_against_itself(example: Example) -> None:
    """The ground-truth row of the challenge: the number of draws but for constant channels, no distance, no diversity between draws."""
    pred = np.repeat(example.target[:, None], 10, axis=1)
    official = evaluate(pred, *example.arguments[1:])
    constant = (example.target == example.target[:, :1]).all(axis=1).mean()
    assert constant > 0
    assert official["frcorr"] == pytest.approx(10 * (1 - constant), rel=1e-4)
    assert official["frdist"] == official["frdiv"] == 0.0
    fixed = evaluate(pred, *example.arguments[1:], protocol="fixed")
    assert fixed["frcorr"] == pytest.approx(1.0, rel=1e-12)
    assert fixed["frsyn"] < official["frsyn"]


_SHARE = """
import sys, numpy as np, torch.distributed as dist
from emc_fast.metrics import measure_clips
dist.init_process_group("gloo")
arrays = np.load(sys.argv[1])
table = measure_clips(*(arrays[name] for name in ("pred", "target", "speaker", "appropriate")))
np.savez(f"{sys.argv[2]}{dist.get_rank()}.npz", **vars(table))
dist.destroy_process_group()
"""


def test_several_processes_give_the_same_bits(example: Example, tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", pred=example.pred, target=example.target, speaker=example.speaker, appropriate=example.appropriate)
    (tmp_path / "share.py").write_text(_SHARE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "0"]
    command = [*launch, "--standalone", str(tmp_path / "share.py"), str(tmp_path / "arrays.npz"), str(tmp_path / "part")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    alone = vars(measure_clips(*example.arguments))
    for rank in range(2):
        shared = np.load(tmp_path / f"part{rank}.npz")
        for name, values in alone.items():
            np.testing.assert_array_equal(shared[name], values, err_msg=name)


def test_interval_holds_the_mean_and_shrinks_with_clips() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal(50), rng.standard_normal(5000)
    intervals = [bootstrap_interval(values, replicates=300) for values in (few, many)]
    for (low, high), values in zip(intervals, (few, many), strict=True):
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / len(values) ** 0.5, rel=0.2)
    assert bootstrap_interval(few, replicates=300) == intervals[0]
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(few, level=1.0)


def test_bad_input_is_named(example: Example) -> None:
    pred, target, speaker, appropriate = example.arguments
    with pytest.raises(DataError, match="speaker: got 20 clips of 59 frames, but pred has 20 clips of 60 frames"):
        evaluate(pred, target, speaker[:, :59], appropriate)
    with pytest.raises(DataError, match=r"appropriate: got shape \(20, 19\)"):
        evaluate(pred, target, speaker, appropriate[:, :19])
    with pytest.raises(TypeError, match="target: got list"):
        evaluate(pred, target.tolist(), speaker, appropriate)
    with pytest.raises(DataError, match="got dtype int64"):
        evaluate(pred.astype(np.int64), target, speaker, appropriate)
    pred[17, 2, 30, 4] = np.inf
    with pytest.raises(DataError, match="pred: inf at clip 17, draw 2, frame 30, channel 4"):
        evaluate(pred, target, speaker, appropriate)
    speaker[3, 1, 0] = np.nan
    with pytest.raises(DataError, match="speaker: nan at clip 3, frame 1, channel 0"):
        evaluate(pred, target, speaker, appropriate)


def test_some_clips_of_the_predictions(example: Example) -> None:
    pred, target, speaker, appropriate = example.arguments
    clips = np.delete(np.arange(20), [1, 17])
    truth = target[clips], speaker[clips], appropriate[np.ix_(clips, clips)]
    expected = measure_clips(pred[clips], *truth)
    pred[17] = np.nan  # not measured, so not looked at
    table = measure_clips(pred, *truth, clips=clips)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(table, name), values, err_msg=name)
    pred[18, 2, 30, 4] = np.inf
    with pytest.raises(DataError, match="pred: inf at clip 18, draw 2, frame 30, channel 4"):
        measure_clips(pred, *truth, clips=clips)
    truth[2][1] = False
    with pytest.raises(DataError, match=r"1 of 18 rows name no listener that is measured \(the first is row 2\)"):
        measure_clips(pred, *truth, clips=clips)
    with pytest.raises(DataError, match=r"target: got 18 clips of 60 frames, but pred\[clips\] has 17 clips"):
        measure_clips(pred, *truth, clips=clips[1:])
    for wrong in (clips[::-1], clips + 3, clips - 1, clips[:0], clips * 1.0, clips[:, None]):
        with pytest.raises(DataError, match=r"(?s)clips: got .* takes ascending whole numbers of clips of pred, from 0 to 19"):
            measure_clips(pred, *truth, clips=wrong)


def test_predictions_are_measured_in_their_own_type(example: Example) -> None:
    """FRDvs is zero for clips that are the same, also where float32 does not hold their numbers."""
    pred = np.full((3, 2, 60, 25), 1234.5678)
    truth = example.target[:3], example.speaker[:3], np.eye(3, dtype=bool)
    assert evaluate(pred, *truth)["frdvs"] == metrics.frdvs(pred) == 0.0
    pred = 1234.5678 + 1e-5 * np.random.default_rng(0).random((3, 2, 60, 25))
    figures = evaluate(pred, *truth)
    assert {name: figures[name] for name in ("frdiv", "frvar", "frdvs")} == {
        "frdiv": metrics.frdiv(pred),
        "frvar": metrics.frvar(pred),
        "frdvs": metrics.frdvs(pred),
    }


def test_what_float32_cannot_add_up_is_refused(example: Example) -> None:
    pred, target, speaker, appropriate = example.arguments
    large = pred.copy()
    large[4, 1, 2, 3] = -1.1e15
    with pytest.raises(DataError, match=r"pred: -1\.1e\+15 at clip 4, draw 1, frame 2, channel 3 .* magnitudes up to 1e\+15"):
        evaluate(large, target, speaker, appropriate)
    with pytest.raises(DataError, match=r"pred: -1\.1e\+15 at clip 4"):
        metrics.frdist(large, target, appropriate)
    with pytest.raises(DataError, match=r"pred: 1e\+300 at clip 0"):
        metrics.frcorr(np.full(pred.shape, 1e300), target, appropriate)
    target[7, 8, 9] = 1e20
    with pytest.raises(DataError, match=r"target: 1e\+20 at clip 7, frame 8, channel 9"):
        evaluate(pred, target, speaker, appropriate)
    with pytest.raises(DataError, match=r"target\[0\]\[0\]: 1e\+20 at"):
        metrics.evaluate_lists([pred[7]], [[target[7]]], [speaker[7]])
