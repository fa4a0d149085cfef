"""``emc-fast evaluate`` on a tree in the layout of 2025 and 2026: clips of any length."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.data import list_clips, read_attributes
from emc_fast.errors import DataError
from emc_fast.metrics import evaluate_lists

LENGTHS = {"session0/a": (70, 64), "session0/b": (58, 90), "session0/c": (100, 100), "session12/d": (66, 71)}  # speaker, listener
DRAWS = 2


def emotion(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.random((*shape, 25), np.float32)
    x[..., :15] = x[..., :15] > 0.6
    x[..., 17:] /= x[..., 17:].sum(axis=-1, keepdims=True)
    return x


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, (speaker, listener) in LENGTHS.items():
        for role, frames in (("speaker", speaker), ("listener", listener)):
            file = tmp_path / "tree" / "test" / "facial-attributes" / role / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, emotion(rng, frames))
    return tmp_path / "tree"


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.random((DRAWS, speaker, 25), np.float32) for name, (speaker, _) in LENGTHS.items()}


def as_folder(place: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, array in arrays.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{name}.npy", array)
    return place


def as_npz(place: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(place.with_suffix(".npz"), **arrays)
    return place.with_suffix(".npz")


def as_list(place: Path, arrays: dict[str, np.ndarray]) -> Path:
    torch.save({"PRED": [torch.from_numpy(arrays[name]) for name in sorted(arrays)], "GT": []}, place.with_suffix(".pt"))
    return place.with_suffix(".pt")


def as_mapping(place: Path, arrays: dict[str, np.ndarray]) -> Path:
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, place.with_suffix(".pt"))
    return place.with_suffix(".pt")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("write", [as_folder, as_npz, as_list, as_mapping])
def test_figures_are_those_of_the_function(
    tree: Path, arrays: dict[str, np.ndarray], tmp_path: Path, write: Callable[[Path, dict[str, np.ndarray]], Path]
) -> None:
    clips = list_clips(tree, "test")
    rounded = []
    for clip in clips:
        array = arrays[clip.name].copy()
        array[..., :15] = array[..., :15] > 0.5
        rounded.append(array)
    truth = [[read_attributes(file) for file in clip.listeners] for clip in clips], [read_attributes(clip.speaker) for clip in clips]
    printed = run(write(tmp_path / "pred", arrays), "--data", tree, "--split", "test", "--json", tmp_path / "out.json", "--per-clip")
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["names"] == sorted(LENGTHS)
    assert result["draws"] == DRAWS
    for protocol in ("official", "fixed"):
        expected = evaluate_lists(rounded, *truth, protocol=protocol)
        assert {name: entry["value"] for name, entry in result[protocol].items()} == expected
        assert np.mean(result["per_clip"][protocol]["mae"]) == pytest.approx(expected["mae"])
    assert "MAE of AUs" in printed
    assert "FRDvs" not in printed


def test_units_can_be_kept(tree: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    run(as_folder(tmp_path / "pred", arrays), "--data", tree, "--split", "test", "--json", tmp_path / "out.json", "--keep-units")
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    clips = list_clips(tree, "test")
    expected = evaluate_lists(
        [arrays[clip.name] for clip in clips],
        [[read_attributes(file) for file in clip.listeners] for clip in clips],
        [read_attributes(clip.speaker) for clip in clips],
    )
    assert result["official"]["mae"]["value"] == expected["mae"]


def test_two_processes_give_the_same_figures(tree: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    arguments = ["evaluate", str(as_folder(tmp_path / "pred", arrays)), "--data", str(tree), "--split", "test", "--per-clip", "--json"]
    run(*arguments[1:], tmp_path / "one.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "emc_fast"]
    done = subprocess.run([*launch, *arguments, str(tmp_path / "two.json")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


def test_listeners_are_the_own_and_others_of_the_session(tree: Path) -> None:
    home = tree / "test" / "facial-attributes" / "listener"
    clips = {clip.name: clip for clip in list_clips(tree, "test", listeners=3)}
    assert list(clips) == sorted(LENGTHS)
    assert clips["session0/b"].listeners[0] == home / "session0" / "b.npy"
    assert set(clips["session0/b"].listeners[1:]) == {home / "session0" / "a.npy", home / "session0" / "c.npy"}  # enough: none twice
    assert set(clips["session12/d"].listeners) == {home / "session12" / "d.npy"}  # alone in its session
    many = list_clips(tree, "test", listeners=10)
    assert all(len(clip.listeners) == 10 for clip in many)
    assert all(file != many[0].listeners[0] for file in many[0].listeners[1:])
    # A clip's listeners do not depend on the clips of other sessions.
    shutil.rmtree(home / "session12")
    shutil.rmtree(home.parent / "speaker" / "session12")
    assert list_clips(tree, "test", listeners=10) == [clip for clip in many if clip.name.startswith("session0/")]
    assert list_clips(tree, "test", listeners=10, seed=1) != many[:3]


def test_every_fault_is_named_with_its_file(tree: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    def fails(pred: Path, message: str, *more: object) -> None:
        with pytest.raises(DataError, match=message) as caught:
            run(pred, "--data", tree, "--split", "test", "--bootstrap", 0, *more)
        assert "pickle" not in str(caught.value)

    def changed(name: str, array: object) -> Path:
        place = tmp_path / f"pred{len(list(tmp_path.iterdir()))}"
        as_folder(place, arrays)
        np.save(place / f"{name}.npy", np.asarray(array))
        return place

    array = arrays["session0/b"]
    holed = array.copy()
    holed[1, 5, 2] = np.inf
    fails(changed("session0/b", array[0]), r"session0/b.npy: has shape \(58, 25\) and dtype float32; floating \(K,T,25\) is taken")
    fails(changed("session0/b", array.astype(int)), r"session0/b.npy: has shape .* and dtype int64")
    fails(changed("session0/b", array[:, :50]), r"session0/b.npy: has 50 frames, the speaker .*speaker/session0/b.npy has 58")
    fails(changed("session0/b", holed), r"session0/b.npy: inf at draw 1, frame 5, channel 2")
    fails(changed("session0/b", array[:1]), r"session0/b: has 1 draws, .*session0/a has 2")
    lacking = as_folder(tmp_path / "lacking", arrays)
    (lacking / "session12" / "d.npy").unlink()
    fails(lacking, "lacking: lacks 1 of 4 clips; the first is session12/d.npy")
    (tmp_path / "junk.npz").write_text("junk")
    fails(tmp_path / "junk.npz", "junk.npz: is not an .npz of arrays, or is damaged")
    (tmp_path / "junk.pt").write_text("junk")
    fails(tmp_path / "junk.pt", "junk.pt: is not a .pt of tensors alone, or is damaged")
    torch.save([torch.zeros(1)], tmp_path / "short.pt")
    fails(tmp_path / "short.pt", "short.pt: holds a list of 1, the split has 4 clips")
    np.save(tmp_path / "single.npy", np.zeros((4, 2, 9, 25)))
    fails(tmp_path / "single.npy", "single.npy: clips of any length are taken as a folder")
    fails(tmp_path / "nothing", "nothing: there is no such file or folder")
    whole = as_folder(tmp_path / "whole", arrays)
    fails(whole, "has no matrix", "--matrix", tmp_path / "single.npy")
    home = tree / "test" / "facial-attributes"
    kept = np.load(home / "listener" / "session0" / "c.npy")
    holed = kept.copy()
    holed[4, 15] = np.nan
    np.save(home / "listener" / "session0" / "c.npy", holed)
    fails(whole, r"listener/session0/c.npy: nan at frame 4, channel 15 \(valence\)")
    (home / "listener" / "session0" / "c.npy").write_bytes((home / "speaker" / "session0" / "c.npy").read_bytes()[:-40])
    fails(whole, r"listener/session0/c.npy: is damaged or truncated")
    (home / "listener" / "session0" / "c.npy").unlink()
    fails(whole, r"speaker/session0/c.npy: has no listener; .*listener/session0/c.npy is taken")
    shutil.rmtree(home / "listener")
    fails(whole, r"listener: is not a folder")


def test_tensors_may_ask_for_gradients(tree: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    torch.save({name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}, tmp_path / "grad.pt")
    run(tmp_path / "grad.pt", as_mapping(tmp_path / "plain", arrays), "--data", tree, "--split", "test", "--json", tmp_path / "out.json")
    first, second = json.loads((tmp_path / "out.json").read_text())["results"]
    assert first["official"] == second["official"]


def test_a_split_that_is_not_there_is_named(tree: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tree: has no split val, no folder val/facial-attributes; it has test: give --split test"):
        run(as_folder(tmp_path / "pred", arrays), "--data", tree)
