"""``emc-fast evaluate`` on folders of ``emc-fast generate``: what generation.json says is held against the truth that is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from emc_fast.cli import app, reproduce
from emc_fast.cli._truth import read_truth
from emc_fast.data import synthesize_corpus
from emc_fast.errors import DataError

FRAMES = 60
SHORT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation and test split have as many clips, of the same names but for their sessions."""
    root = tmp_path_factory.mktemp("corpus") / "tree"
    return Path(synthesize_corpus(root, train=1, val=2, test=2, frames=FRAMES, neighbours=2, sample_rate=8000))


@pytest.fixture
def generation(corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """As `generate` writes it: zero beyond a clip's length."""

    def write(lengths: list[int] | None = None, split: str = "val", **changed: Any) -> Path:
        folder = tmp_path / "generation"
        folder.mkdir()
        names = read_truth(corpus, split, frames=FRAMES).names
        lengths = lengths or [FRAMES] * len(names)
        pred = np.random.default_rng(0).random((len(names), 2, max(lengths), 25), np.float32)
        for clip, length in zip(pred, lengths, strict=True):
            clip[:, length:] = 0
        np.save(folder / "prediction_emotion.npy", pred)
        about = {"names": names, "lengths": lengths, "source": {"data": "elsewhere", "split": split}} | changed
        (folder / "generation.json").write_text(json.dumps(about))
        return folder

    return write


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--bootstrap", "0"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())  # a title with a long path wraps anywhere


def fails(message: str, pred: Path, corpus: Path) -> None:
    """As a folder, as the file in it, and as a row of the paper's table."""
    for path in (pred, pred / "prediction_emotion.npy"):
        with pytest.raises(DataError, match=message):
            run(path, "--data", corpus)
    with pytest.raises(DataError, match=message):
        reproduce._measure(corpus, "val")(pred)


def test_a_generation_is_measured(generation: Callable[..., Path], corpus: Path) -> None:
    folder = generation()
    assert "4 clips, 2 draws" in run(folder, "--data", corpus)
    table = reproduce._measure(corpus, "val")(folder)
    assert len(table) == 4


def test_padding_is_no_prediction(generation: Callable[..., Path], corpus: Path, tmp_path: Path) -> None:
    folder = generation([FRAMES, SHORT, FRAMES, SHORT])
    name = read_truth(corpus, "val", frames=FRAMES).names[1]
    fails(rf"2 of 4 clips are shorter than the array's 60 frames, and zero from there on: {name} \(40 frames\), ", folder, corpus)
    fails(r"measure all clips over pred\[:, :, :40\], saved elsewhere", folder, corpus)
    np.save(tmp_path / "cut.npy", np.load(folder / "prediction_emotion.npy")[:, :, :SHORT])
    assert "40 frames" in " ".join(run(tmp_path / "cut.npy", "--data", corpus).split())


def test_padding_of_a_clip_that_is_left_out_is_let_alone(generation: Callable[..., Path], corpus: Path, tmp_path: Path) -> None:
    import shutil

    folder = generation([FRAMES, SHORT, FRAMES, SHORT])
    tree = Path(shutil.copytree(corpus, tmp_path / "tree"))
    names = read_truth(corpus, "val", frames=FRAMES).names
    (tree / "val" / "Emotion" / f"{names[1]}.csv").unlink()
    assert "2 clips, 2 draws" in run(folder, "--data", tree)


def test_one_frame_too_many_is_no_padding(tmp_path: Path) -> None:
    """With 751 pictures some clips may be as long and others as long as the 750 rows of emotion: 750 are measured."""
    root = Path(synthesize_corpus(tmp_path / "tree", train=1, val=1, test=1, frames=750, neighbours=1, sample_rate=8000))
    folder = tmp_path / "generation"
    folder.mkdir()
    np.save(folder / "prediction_emotion.npy", np.random.default_rng(0).random((2, 1, 751, 25), np.float32))
    about = {"names": read_truth(root, "val", frames=750).names, "lengths": [751, 750], "source": {"split": "val"}}
    (folder / "generation.json").write_text(json.dumps(about))
    printed = run(folder, "--data", root, "--json", tmp_path / "out.json")
    assert "751 frames are cut to 750" in printed
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["frames"] == 750


def test_another_split_is_refused(generation: Callable[..., Path], corpus: Path) -> None:
    folder = generation(split="test")
    fails(
        "generation: by generation.json these are reactions to split test, not to val; give --split test|emotion.npy: by gen",
        folder,
        corpus,
    )
    assert "4 clips, 2 draws" in run(folder, "--data", corpus, "--split", "test")


def test_other_clips_are_refused(generation: Callable[..., Path], corpus: Path) -> None:
    names = read_truth(corpus, "val", frames=FRAMES).names
    folder = generation(names=[names[0], "site/session/person/1", *names[2:]])
    fails(f"by generation.json clip 1 is a reaction to site/session/person/1, but clip 1 of split val of .* is {names[1]}", folder, corpus)


def test_other_files_beside_the_array(generation: Callable[..., Path], corpus: Path, tmp_path: Path) -> None:
    folder = generation()
    about = json.loads((folder / "generation.json").read_text())
    for change, message in (
        ({"source": {"wav": "a.wav"}}, "these are reactions to one recording"),
        ({"names": about["names"] * 2, "lengths": about["lengths"] * 2}, "generation.json names 8 clips, the array holds 4"),
        ({"names": 3}, "generation.json: takes 'names' and 'lengths'"),
    ):
        (folder / "generation.json").write_text(json.dumps(about | change))
        fails(message, folder, corpus)
    (folder / "prediction_emotion.npy").rename(folder / "mine.npy")  # no file of `generate`: the JSON is of something else
    run(folder / "mine.npy", "--data", corpus)
