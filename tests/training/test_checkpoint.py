from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from emc_fast.errors import CheckpointError
from emc_fast.training.checkpoint import load_optimizer, read_json, readable, recover, save_optimizer, whole_directory, write_json


def write(path: Path, text: str) -> None:
    with whole_directory(path) as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "file").write_text(text)


def test_a_directory_is_replaced_whole(tmp_path):
    write(tmp_path / "last", "old")
    write(tmp_path / "last", "new")
    assert (tmp_path / "last" / "inner" / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["last"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_directory_and_nothing_else(tmp_path, error):
    write(tmp_path / "last", "old")

    def half() -> None:
        with whole_directory(tmp_path / "last") as directory:
            (directory / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        half()
    assert (tmp_path / "last" / "inner" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["last"]


@pytest.mark.parametrize("call", range(1, 3))
def test_death_at_either_rename_leaves_a_whole_directory(tmp_path, monkeypatch, call):
    write(tmp_path / "last", "old")
    rename, calls = Path.rename, []

    class DeathError(BaseException):
        pass

    def dying(self, target):
        calls.append(target)
        if len(calls) >= call:
            raise DeathError
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        patch.setattr("shutil.rmtree", lambda *a, **k: None)  # the dead clean up nothing
        with pytest.raises(DeathError):
            write(tmp_path / "last", "new")
    recover(tmp_path / "last")
    assert (tmp_path / "last" / "inner" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["last"]


def test_death_after_the_renames_leaves_the_new_directory(tmp_path):
    write(tmp_path / "last", "new")
    (tmp_path / ".last.previous").mkdir()
    recover(tmp_path / "last")
    assert (tmp_path / "last" / "inner" / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["last"]


def test_json_is_written_by_a_rename(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 0.1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 0.1}


@pytest.mark.parametrize(("content", "fault"), [(None, "missing"), ('{"a": 1', "no JSON"), ("[1]", "list")])
def test_bad_json_is_named(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"state\.json.*{fault}"):
        read_json(tmp_path / "state.json")


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def model_with_a_resting_part():
    torch.manual_seed(0)
    return nn.ModuleDict({"used": nn.Linear(3, 2), "resting": nn.Linear(2, 2)})


def take_step(model, optimizer):
    model["used"](torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_optimizer_goes_on_bit_for_bit(tmp_path):
    model = model_with_a_resting_part()
    optimizer = optimizer_of(model)
    take_step(model, optimizer)
    save_optimizer(tmp_path / "o.safetensors", optimizer, model)
    copy = model_with_a_resting_part()
    copy.load_state_dict(model.state_dict())
    restored = optimizer_of(copy)
    load_optimizer(tmp_path / "o.safetensors", restored, copy)
    for m, o in ((model, optimizer), (copy, restored)):
        take_step(m, o)
        take_step(m, o)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert not restored.state[copy["resting"].weight]


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    model = model_with_a_resting_part()
    optimizer = optimizer_of(model)
    take_step(model, optimizer)
    save_optimizer(tmp_path / "o.safetensors", optimizer, model)
    other = nn.ModuleDict({"other": nn.Linear(3, 2)})
    with pytest.raises(CheckpointError, match=r"used\."):
        load_optimizer(tmp_path / "o.safetensors", optimizer_of(other), other)
    wider = nn.ModuleDict({"used": nn.Linear(4, 2)})
    with pytest.raises(CheckpointError, match="shape"):
        load_optimizer(tmp_path / "o.safetensors", optimizer_of(wider), wider)
    (tmp_path / "o.safetensors").write_bytes((tmp_path / "o.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_optimizer(tmp_path / "o.safetensors", optimizer, model)


def test_nothing_in_a_checkpoint_is_pickled(trained):
    files = [path for path in (trained / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            header = int.from_bytes(path.read_bytes()[:8], "little")
            json.loads(path.read_bytes()[8 : 8 + header])


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_the_optimizer_has_the_mode_that_the_umask_allows(tmp_path, umask):
    before = os.umask(umask)
    try:
        model = model_with_a_resting_part()
        save_optimizer(tmp_path / "o.safetensors", optimizer_of(model), model)
    finally:
        os.umask(before)
    assert (tmp_path / "o.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_looking_at_a_directory_changes_nothing(tmp_path):
    write(tmp_path / "last", "old")
    with whole_directory(tmp_path / "last") as directory:
        (directory / "file").touch()
        assert readable(tmp_path / "last") == tmp_path / "last"
        assert (directory / "file").exists()
    (tmp_path / "last").rename(tmp_path / ".last.previous")  # as a writer leaves it that dies between its renames
    assert readable(tmp_path / "last") == tmp_path / ".last.previous"
    assert os.listdir(tmp_path) == [".last.previous"]
    assert readable(tmp_path / "none") == tmp_path / "none"
