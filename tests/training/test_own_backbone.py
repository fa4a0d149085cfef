"""A model of the user's own: the example of docs/own-backbone.md as it stands there, and what registering takes and refuses."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import FRAMES
from typer.testing import CliRunner

from emc_fast import EMCConfig, EMCModel
from emc_fast.backbones import BACKBONES, backbone_class, register_backbone, use_backbone
from emc_fast.backbones.base import Backbone
from emc_fast.cli import app
from emc_fast.data import REACTDataset
from emc_fast.errors import CheckpointError
from emc_fast.training import load_model, validate

PAGE = Path(__file__).parents[2] / "docs" / "own-backbone.md"
MODULE, NAME = "gru_listener", "gru_listener:GRUListener"


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Whatever a test registers or imports is gone after it."""
    before = dict(BACKBONES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    BACKBONES.clear()
    BACKBONES.update(before)
    sys.modules.pop(MODULE, None)


@pytest.fixture
def blocks():
    """The Python of the page: the module, and its use."""
    return [part.split("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]


@pytest.fixture
def folder(blocks, tmp_path, monkeypatch):
    """The folder in which the reader of the page works."""
    (tmp_path / f"{MODULE}.py").write_text(blocks[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forget():
    """As a new process: nothing is imported."""
    BACKBONES.pop(NAME, None)
    sys.modules.pop(MODULE, None)


def emc_fast(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_example_is_as_short_as_the_page_says(blocks):
    lines = sum(bool(line.strip()) for line in blocks[0].splitlines())
    assert f"A fourth model in {lines} lines" in PAGE.read_text()
    assert lines < 60


@pytest.mark.parametrize("emc", ["--emc", "--no-emc"])
def test_the_example_trains_by_the_command_generates_and_is_kept(folder, corpus, features, emc):
    (folder / "small.json").write_text(PAGE.read_text().split("```json\n")[1].split("```")[0])
    words = ["train", "--config", "small.json", "--data", corpus, "--out", "run", "--batch-size", 4, "--lr", 0.01, "--cache", features, emc]
    assert emc_fast(*words, "--backbone", NAME).exit_code == 0
    history = json.loads((folder / "run" / "checkpoints" / "last" / "state.json").read_text())["history"]
    losses = [epoch["train"]["total"] for epoch in history]
    assert min(losses[-3:]) < 0.7 * losses[0]
    assert (emc == "--emc") == ("fusion" in history[-1]["train"])

    forget()
    words = ["generate", "run", "--data", corpus, "--missing", "face", "--num-samples", 3, "--out", "reactions", "--cache", features]
    refused = emc_fast(*words)
    assert isinstance(refused.exception, CheckpointError)
    assert "config.json cannot be used" in str(refused.exception)
    assert f"--backbone {NAME} on the command line" in str(refused.exception)
    assert MODULE not in sys.modules, "a checkpoint must not import what it names"
    assert emc_fast(*words, "--backbone", NAME).exit_code == 0
    reaction = np.load("reactions/prediction_emotion.npy")
    assert reaction.shape == (4, 3, FRAMES, 25)
    assert np.isfinite(reaction).all()
    assert np.abs(reaction[:, 1:] - reaction[:, :1]).max(axis=(1, 2, 3)).min() > 0  # the draws differ

    trained = load_model("run")
    assert trained.config.backbone == NAME
    val = REACTDataset(corpus, "val", cache_dir=features)
    assert all(np.isfinite(list(validate(trained, val, missing=m, num_samples=2).values())).all() for m in (None, "face", "speech", 0.3))


def test_a_stopped_run_says_how_it_goes_on_with_the_backbone(folder, corpus, features, monkeypatch):
    from emc_fast.training import run

    class Asked(run.StopRequest):
        def __init__(self):
            super().__init__()
            self.signal = signal.SIGTERM

    monkeypatch.setattr(run, "StopRequest", Asked)
    (folder / "small.json").write_text(json.dumps({"model": {"d_model": 16, "num_heads": 2}, "clip_length": 16, "log_every": 1}))
    begun = emc_fast(
        "train", "--backbone", NAME, "--config", "small.json", "--data", corpus, "--out", "run", "--epochs", 1, "--cache", features
    )
    assert begun.exit_code == 143
    assert f"emc-fast train --resume --out run --backbone {NAME}" in begun.output
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    forget()
    assert f"--backbone {NAME} on the command line" in str(emc_fast("train", "--resume", "--out", "run").exception)
    assert emc_fast("train", "--resume", "--out", "run", "--backbone", NAME).exit_code == 0


def test_the_example_in_python(folder, blocks, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    names = {}
    exec(blocks[1], names)
    model = names["model"].eval()
    assert names["name"] == NAME
    generator = torch.Generator().manual_seed(0)
    clip = {
        name: torch.randn(3, 20, width, generator=generator)
        for name, width in {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10}.items()
    }
    lengths, seeds = torch.tensor([20, 14, 9]), torch.tensor([1, 2, 3])
    gone = {"face": clip["face"].clone(), "face_available": torch.ones(3, 20, dtype=torch.bool)}
    gone["face_available"][:, 5:9] = False
    gone["face"][:, 5:9] = float("nan")

    def react(rows=slice(None), frames=20, length=lengths, draws=4, **more):
        given = {name: value[rows, :frames] for name, value in (clip | more).items()}
        with torch.no_grad():
            return model(**given, seed=seeds[rows], num_samples=draws, lengths=length[rows]).reaction_emotion

    whole = react(**gone)
    torch.testing.assert_close(react(slice(1, 2), 14, **gone), whole[1:2, :, :14])  # neither its batch nor padding
    torch.testing.assert_close(react(draws=2, **gone), whole[:, :2])
    assert (whole[1, :, 14:] == 0).all()
    targets = {"target_3dmm": torch.zeros(3, 20, 58), "target_emotion": torch.zeros(3, 20, 25)}
    model.train()(**clip, **targets, lengths=lengths, seed=seeds).losses["total"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    model.eval().save_pretrained("kept")
    assert f"use_backbone('{NAME}')" in Path("kept/README.md").read_text()
    forget()
    with pytest.raises(CheckpointError, match=r"nothing is imported because .* names it.*use_backbone\('gru_listener:GRUListener'\)"):
        EMCModel.from_pretrained("kept")
    assert MODULE not in sys.modules
    use_backbone(NAME)
    model = EMCModel.from_pretrained("kept")
    assert torch.equal(react(**gone), whole)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("lstm", "takes one of faceais.*got 'lstm'.*--backbone package.module:Class"),
        (":GRUListener", "no part of this package"),
        ("no_such_module:X", "there is no module 'no_such_module'"),
        ("gru_listener.part:X", "there is no module 'gru_listener.part'"),
        ("gru_listener:Listener", "gru_listener has no 'Listener'"),
        ("gru_listener:GRUOptions", "takes a subclass of .*Backbone"),
    ],
)
def test_what_cannot_be_used_is_named(folder, monkeypatch, name, fault):
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises((ValueError, TypeError), match=fault):
        use_backbone(name)
    with pytest.raises((ValueError, TypeError), match=fault):
        raise emc_fast("train", "--backbone", name, "--data", "x", "--out", "y").exception


def test_what_a_module_lacks_itself_is_not_taken_for_the_module(tmp_path, monkeypatch):
    (tmp_path / f"{MODULE}.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        use_backbone(NAME)


def test_a_module_may_register_its_class_by_another_name(folder, blocks, monkeypatch):
    (folder / f"{MODULE}.py").write_text(blocks[0].replace("@register_backbone", '@register_backbone(name="gru")'))
    monkeypatch.syspath_prepend(str(folder))
    assert use_backbone(NAME) == "gru"
    assert use_backbone(NAME) == use_backbone("gru") == "gru"
    assert NAME not in BACKBONES


def example():
    """A class that no path leads to."""

    class Mine(backbone_class("trans_vae")):
        pass

    return Mine


def test_names():
    mine = example()
    with pytest.raises(ValueError, match=r"give it a name, register_backbone\(name=...\)"):
        register_backbone(mine)
    assert register_backbone(name="mine")(mine) is mine
    assert use_backbone("mine") == "mine"
    assert isinstance(EMCModel(EMCConfig(backbone="mine", backbone_options={"div_p": 0.0})).backbone, mine)
    again = example()
    assert register_backbone(name="mine")(again) is again  # the same class of a module that was reloaded
    for name in ("trans_vae", "regnn"):
        with pytest.raises(ValueError, match=f"'{name}' is taken by emc_fast.backbones"):
            register_backbone(name=name)(mine)
    with pytest.raises(ValueError, match="without a colon"):
        register_backbone(name="a:b")(mine)


def test_a_class_that_is_no_whole_backbone_is_refused():
    class Half(Backbone):
        def encode(self, *_, **__): ...

    with pytest.raises(TypeError, match="Half lacks decode, distribution, fuse, loss, sample"):
        register_backbone(name="half")(Half)
    mine = example()
    mine.options_type = dict
    with pytest.raises(TypeError, match="options_type takes a dataclass"):
        register_backbone(name="mine")(mine)


def test_a_backbone_may_have_no_options():
    @register_backbone(name="plain")
    class Plain(backbone_class("regnn")):
        def __init__(self, config, options):
            super().__init__(config, backbone_class("regnn").options_type())

        options_type = Backbone.options_type

    assert EMCConfig(backbone="plain").backbone_options == {}
    with pytest.raises(ValueError, match="backbone_options of plain are none; got size"):
        EMCConfig(backbone="plain", backbone_options={"size": 3})
    assert isinstance(EMCModel(EMCConfig(backbone="plain")).backbone, Plain)
