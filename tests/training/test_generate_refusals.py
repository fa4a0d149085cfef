"""Reading beside a trainer, and what ``emc-fast generate`` refuses before any work."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.errors import CheckpointError
from emc_fast.training import generate, generation, load_model, loading
from emc_fast.training.checkpoint import whole_directory
from emc_fast.training.loading import find_checkpoint, load_preprocessing


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def wav(tmp_path):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", (0.1 * random.standard_normal(20 * 640)).astype(np.float32), 16000)
    return tmp_path / "a.wav"


def react(checkpoint, out, wav, **options):
    return generate(checkpoint, out, wav=wav, num_samples=1, progress=False, **options)


def said(out):
    return json.loads((out / "generation.json").read_text())


def test_reading_a_run_leaves_its_trainers_work_alone(run, wav, tmp_path):
    for name in ("last", "best"):
        with whole_directory(run / "checkpoints" / name) as directory:
            (directory / "half").touch()
            load_model(run)
            load_model(run / "checkpoints" / name)
            react(run, tmp_path / "out", wav, overwrite=True)
            assert (directory / "half").exists()
            shutil.copytree(run / "checkpoints" / name, directory, dirs_exist_ok=True)
    load_model(run)


def test_a_checkpoint_aside_is_read_where_it_lies(run, wav, tmp_path):
    best = run / "checkpoints" / "best"
    mean = load_preprocessing(run)["mean_face"]
    best.rename(best.with_name(".best.previous"))  # as a trainer leaves it that dies between its renames
    assert find_checkpoint(run) == best
    load_model(run)
    np.testing.assert_array_equal(load_preprocessing(best)["mean_face"], mean)
    assert said(react(run, tmp_path / "out", wav))["checkpoint"] == str(best)
    assert sorted(os.listdir(best.parent)) == [".best.previous", "last"]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(run, monkeypatch):
    best, reads = run / "checkpoints" / "best", []
    other = {name: torch.zeros_like(value) for name, value in load_file(best / "model.safetensors").items()}
    read = loading.EMCModel.from_pretrained.__func__

    def replaced(cls, directory, **options):
        reads.append(directory)
        if len(reads) == 1:
            model = read(cls, directory, **options)
            with whole_directory(best) as new:
                model.load_state_dict(other)
                model.save_pretrained(new)
            raise FileNotFoundError(directory / "model.safetensors")
        return read(cls, directory, **options)

    monkeypatch.setattr(loading.EMCModel, "from_pretrained", classmethod(replaced))
    assert not any(bool(value.any()) for value in load_model(run).parameters())
    assert len(reads) == 2


def test_the_best_checkpoint_without_weights_is_not_passed_over(run, wav, tmp_path):
    (run / "checkpoints" / "best" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"best lacks model\.safetensors.*or name .*last to take"):
        react(run, tmp_path / "out", wav)
    last = run / "checkpoints" / "last"
    assert said(react(last, tmp_path / "out", wav))["checkpoint"] == str(last)
    shutil.rmtree(run / "checkpoints" / "best")
    assert said(react(run, tmp_path / "out", wav, overwrite=True))["checkpoint"] == str(last)


def refused(monkeypatch, error, match, *arguments, **options):
    """The call is refused, and before any work."""
    with monkeypatch.context() as patch:
        patch.setattr(generation, "load_model", lambda *_, **__: pytest.fail("worked first"))
        with pytest.raises(error, match=match):
            react(*arguments, **options)


def files(directory):
    return sorted(path.relative_to(directory) for path in directory.rglob("*"))


def test_only_a_generation_is_overwritten(run, wav, tmp_path, monkeypatch):
    before = files(run)
    for place in (run, run / "checkpoints", run / "checkpoints" / "best"):
        refused(monkeypatch, FileExistsError, r"holds no generation\.json", run, place, wav, overwrite=True)
    (run / "generation.json").touch()
    refused(monkeypatch, FileExistsError, "checkpoints|run", run, run, wav, overwrite=True)
    (run / "generation.json").unlink()
    assert files(run) == before

    out = react(run, tmp_path / "out", wav)
    react(run, out, wav, overwrite=True)
    shutil.copy(wav, out / "inside.wav")
    refused(monkeypatch, FileExistsError, r"inside\.wav in it", run, out, out / "inside.wav", overwrite=True)
    (out / "models").mkdir()
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", out / "models")
    refused(monkeypatch, FileExistsError, r"model\.safetensors in it is no part", run, out, wav, overwrite=True)
    refused(monkeypatch, FileExistsError, "is a file", run, wav, wav, overwrite=True)


def test_places_that_cannot_be_replaced_are_refused(run, wav, tmp_path, monkeypatch):
    refused(monkeypatch, OSError, "mount point.*name a folder inside", run, "/", wav)
    (tmp_path / "mounted").mkdir()
    ismount = os.path.ismount
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: path == tmp_path / "mounted" or ismount(path))
        refused(monkeypatch, OSError, "mounted is a mount point", run, tmp_path / "mounted", wav)
        patch.setattr(os.path, "ismount", lambda path: False)  # as of a folder bound from the same file system
        refused(monkeypatch, OSError, "mount point", run, "/", wav)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(monkeypatch, OSError, "here is the folder that this command runs in", run, ".", wav)


def test_a_symlink_stays_one(run, wav, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for overwrite in (False, True):
        assert react(run, tmp_path / "link", wav, overwrite=overwrite) == tmp_path / "link"
        assert (tmp_path / "link").is_symlink()
        assert said(tmp_path / "real")["lengths"] == [20]


def test_without_the_mean_face_no_face_is_taken_and_none_added(run, wav, tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    load_model(run).save_pretrained(plain)
    np.save(tmp_path / "face.npy", np.zeros((20, 58), np.float32))
    np.save(tmp_path / "emotion.npy", np.zeros((20, 25), np.float32))
    face = {"face": tmp_path / "face.npy", "face_emotion": tmp_path / "emotion.npy"}
    refused(monkeypatch, CheckpointError, r"plain/preprocessing\.json is missing.*Copy", plain, tmp_path / "out", wav, **face)
    with pytest.warns(UserWarning, match=r"preprocessing\.json is missing"):
        out = react(plain, tmp_path / "out", wav)
    assert said(out)["mean_face_added"] is False
    shutil.copy(run / "checkpoints" / "best" / "preprocessing.json", plain)
    assert said(react(plain, tmp_path / "faces", wav, **face))["mean_face_added"] is True


def test_weights_that_are_not_finite_are_named(run, wav, tmp_path):
    file = run / "checkpoints" / "best" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n, _ in load_model(run).named_parameters())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"best/model\.safetensors: {name} holds NaN"):
        react(run, tmp_path / "out", wav)
    assert not (tmp_path / "out").exists()


def test_reactions_that_are_not_finite_are_not_written(run, wav, tmp_path):
    file = run / "checkpoints" / "best" / "model.safetensors"
    tensors = load_file(file)
    for tensor in tensors.values():  # finite, and too large to be multiplied
        tensor.fill_(torch.finfo(tensor.dtype).max if tensor.is_floating_point() else 1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="best gives NaN or Inf as a reaction to clip a"):
        react(run, tmp_path / "out", wav)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_warns_of_in_one_line(run, wav, tmp_path):
    load_model(run).save_pretrained(tmp_path / "plain")
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "plain"), "--wav", str(wav), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if "preprocessing.json" in line]
    assert line.startswith("warning: ")


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_a_device_that_cannot_compute_is_named(run, wav, tmp_path, monkeypatch, device):
    refused(
        monkeypatch, ValueError, f"device '{device}' cannot be used here .*auto, cpu, or cuda", run, tmp_path / "out", wav, device=device
    )
