"""``emc-fast evaluate`` on a small synthetic corpus."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.cli._truth import read_truth
from emc_fast.errors import DataError
from emc_fast.metrics import evaluate

FRAMES = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from emc_fast.data import synthesize_corpus

    return Path(
        synthesize_corpus(tmp_path_factory.mktemp("corpus") / "tree", train=1, val=4, test=2, frames=FRAMES, neighbours=2, sample_rate=8000)
    )


@pytest.fixture
def pred(corpus: Path, tmp_path: Path) -> Path:
    clips = len(read_truth(corpus, "val", frames=FRAMES).clips)
    np.save(tmp_path / "pred.npy", np.random.default_rng(0).random((clips, 2, FRAMES, 25), np.float32))
    return tmp_path / "pred.npy"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_table_and_json(corpus: Path, pred: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    printed = run(pred, "--data", corpus, "--json", out, "--per-clip", "--bootstrap", 50)
    truth = read_truth(corpus, "val", frames=FRAMES)
    figures = {
        protocol: evaluate(np.load(pred), truth.target, truth.speaker, truth.appropriate, protocol=protocol)
        for protocol in ("official", "fixed")
    }
    (result,) = json.loads(out.read_text())["results"]
    for protocol, expected in figures.items():
        assert {name: entry["value"] for name, entry in result[protocol].items()} == expected
        low, high = result[protocol]["frdist"]["interval"]
        assert low < expected["frdist"] < high
        assert np.mean(result["per_clip"][protocol]["frsyn"]) == pytest.approx(expected["frsyn"])
        assert f"{expected['frdist']:.4f}" in printed
    assert result["names"] == truth.names
    assert not list(out.parent.glob(".*"))


def test_folder_of_generate_one_frame_too_many_and_comparison(corpus: Path, pred: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'emc_fast[viz]'")
    folder = tmp_path / "run"
    folder.mkdir()
    np.save(folder / "prediction_emotion.npy", np.load(pred))
    plots = tmp_path / "plots"
    printed = run(folder, pred, "--data", corpus, "--bootstrap", 0, "--plots", plots)
    assert printed.count("FRCorr") == 2
    assert len(list(plots.glob("*.png"))) == 5


def test_clip_without_emotion_is_left_out(corpus: Path, tmp_path: Path) -> None:
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(corpus, tree)
    next((tree / "val" / "Emotion").rglob("*.csv")).unlink()
    whole, holed = read_truth(corpus, "val", frames=FRAMES), read_truth(tree, "val", frames=FRAMES)
    assert len(holed.clips) == whole.total - 2  # it is speaker in one clip and listener in another
    assert holed.appropriate.shape == (len(holed.clips),) * 2


def test_errors_are_messages(corpus: Path, pred: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "three.npy", np.zeros((4, FRAMES, 25), np.float32))
    np.save(tmp_path / "half.npy", np.zeros((4, 2, FRAMES, 25), np.float32))
    np.save(tmp_path / "long.npy", np.zeros((8, 2, FRAMES + 1, 25), np.float32))
    (tmp_path / "text.npy").write_text("nothing")
    for arguments, message in (
        ((tmp_path / "none.npy",), "there is no such file"),
        ((tmp_path / "text.npy",), "is not a .npy array"),
        ((tmp_path / "three.npy",), r"has shape \(4, 60, 25\)"),
        ((tmp_path / "half.npy",), "holds 4 clips, but split val of .* has 8; the split's list is taken in both directions"),
        ((tmp_path / "long.npy",), "has 60 frames, the predictions have 61"),
        ((pred, "--per-clip"), "give --json FILE"),
        ((pred, "--matrix", tmp_path / "half.npy"), r"has shape \(4, 2, 60, 25\); the split has 8 clips"),
    ):
        with pytest.raises(DataError, match=message):
            run(*arguments, "--data", corpus)


_INTERRUPTED = """
import os, signal, sys
from emc_fast.metrics import evaluation
inner = evaluation._measure_part
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return inner(*arguments)
evaluation._measure_part = interrupted
from emc_fast.cli import main
main()
"""


def test_interrupt_ends_quietly(corpus: Path, pred: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(pred), "--data", str(corpus), "--json", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.json").exists()
