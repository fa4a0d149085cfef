"""A backbone with a stage of its own before it: FaceAIS's tokenizer, and then the predictor."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_helpers import same, weights
from typer.testing import CliRunner

from emc_fast import EMCConfig
from emc_fast.cli import app
from emc_fast.data import REACTDataset
from emc_fast.errors import CheckpointError
from emc_fast.training import TrainConfig, generate, load_model, recipe, train, validate
from emc_fast.training.trainer import Trainer

OPTIONS = {
    "layers": 1, "context": 16, "block": 8, "vocabulary": 40, "levels": [4, 3, 3],
    "tokenizer_width": 8, "tokenizer_heads": 2, "tokenizer_layers": 1,
}  # fmt: skip
TOKENIZER = {"epochs": 2, "clip_length": 20, "batch_size": 5, "lr": 3e-3}


@pytest.fixture
def tiny(small):
    def config(out="run", *, model=None, **settings):
        shape = {"backbone": "faceais", "d_model": 8, "num_heads": 2, "backbone_options": OPTIONS, **(model or {})}
        return small(out, model=shape, **({"epochs": 1, "decayed": "matrices", "stages": {"tokenizer": TOKENIZER}} | settings))

    return config


def stop_at(monkeypatch, stage, step):
    """Send this process a signal while that step of a stage is computed."""
    advance = Trainer.advance

    def advancing(self, batch):
        if self.config.stage == stage and self.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        advance(self, batch)

    monkeypatch.setattr(Trainer, "advance", advancing)


def tokenizer_of(tensors):
    return {n: t for n, t in tensors.items() if n.startswith("backbone.tokenizer.")}


def test_the_tokenizer_is_trained_first_and_then_rests(tiny):
    result = train(tiny())
    stage = result.paths.run / "stages" / "tokenizer"
    assert json.loads((stage / "config.json").read_text())["stage"] == "tokenizer"
    entries = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    assert {"total", "face", "emotion"} <= entries[0].keys()
    assert [e["step"] for e in entries if e["kind"] == "validation"] == [2, 4]  # 10 clips, 5 a step
    begun, learned = weights(stage / "checkpoints" / "best"), weights(result.paths.last)
    assert same(tokenizer_of(begun), tokenizer_of(learned))
    rest = begun.keys() - tokenizer_of(begun).keys()
    assert sum(not torch.equal(begun[n], learned[n]) for n in rest) > 0.9 * len(rest)
    assert result.history[-1]["validation"].keys() >= {"cross_entropy", "face", "emotion", "total"}
    # AdamW of the tokenizer's run knew the tokenizer alone
    known = load_file(stage / "checkpoints" / "last" / "optimizer.safetensors")
    assert {n.split("/")[1].split(".")[1] for n in known} == {"tokenizer"}


def test_stopped_in_either_stage_it_goes_on_bit_for_bit(tiny, monkeypatch):
    whole = train(tiny("whole"))
    for stage, step in (("tokenizer", 3), ("tokenizer", 4), (None, 1)):  # in the middle, at the border, after it
        out = f"stopped-{stage}-{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, stage, step)
            stopped = train(tiny(out))
        assert stopped.stopped_by == signal.SIGINT
        assert stopped.paths.last.exists() is (stage is None)
        with pytest.raises(FileExistsError):
            train(tiny(out))
        resumed = train(tiny(out), resume=True)
        assert resumed.stopped_by is None
        assert same(weights(whole.paths.last), weights(resumed.paths.last))
        assert (whole.history, whole.best) == (resumed.history, resumed.best)
        logs = [(r.paths.run / "stages" / "tokenizer" / "log.jsonl").read_text() for r in (whole, resumed)]
        assert logs[0] == logs[1]


def test_a_tokenizer_that_is_there_is_taken(tiny, tmp_path):
    first = train(tiny("first", model={"emc": False}))
    stage = first.paths.run / "stages" / "tokenizer"
    second = train(tiny("second", stages={"tokenizer": str(stage)}))  # of a model without EMC, for one with it
    assert not (second.paths.run / "stages").exists()
    assert same(tokenizer_of(weights(stage / "checkpoints" / "best")), tokenizer_of(weights(second.paths.last)))
    with pytest.raises(CheckpointError, match=r"no use for the stage tokenizer: backbone\.tokenizer.* is \(16"):
        train(tiny("third", model={"backbone_options": OPTIONS | {"tokenizer_width": 16}}, stages={"tokenizer": str(stage)}))


def test_settings_of_a_stage_are_checked(tiny):
    for stages, fault in (
        ({"other": {}}, "no stage other"),
        ({"tokenizer": {"epoch": 1}}, "no setting epoch"),
        ({"tokenizer": {"seed": 1}}, "no setting seed"),
        ({"tokenizer": {"epochs": "2"}}, "epochs is '2'"),
        ({"tokenizer": {"lr": 0}}, "lr is 0"),
        ({"tokenizer": 3}, "the path of a run"),
    ):
        with pytest.raises(ValueError, match=fault):
            tiny(stages=stages)
    with pytest.raises(ValueError, match="trans_vae has no stage tokenizer"):
        tiny(model={"backbone": "trans_vae", "backbone_options": {}})


def test_the_published_recipe():
    published = recipe("faceais")
    config = TrainConfig.from_dict({"data": "d", "out": "o", **published})
    part = config.of_stage("tokenizer")
    assert (config.model.d_model, config.model.num_heads, config.model.backbone_options["tokenizer_width"]) == (360, 12, 252)
    assert (config.lr, config.betas, config.weight_decay, config.batch_size, config.warmup_steps) == (1e-3, (0.9, 0.95), 0.1, 16, 200)
    assert (part.epochs, part.batch_size, part.clip_length, part.warmup_steps, part.lr) == (200, 8, 736, 300, 1e-3)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert EMCConfig.from_dict(config.model.to_dict()) == config.model


def test_weight_decay_is_for_matrices_alone(tiny, tmp_path):
    stage = train(tiny("first").of_stage("tokenizer")).paths.run
    for decayed in ("all", "matrices"):
        trainer = Trainer(tiny(decayed, weight_decay=0.5, stages={"tokenizer": str(stage)}, decayed=decayed))
        groups = trainer.plain_optimizer.param_groups
        assert {p.dim() >= 2 for g in groups for p in g["params"] if g["weight_decay"]} == (
            {True} if decayed == "matrices" else {True, False}
        )
        assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in trainer.model.parameters())
        trainer.close()


def test_the_command_trains_generates_and_evaluates(tiny, corpus, features, tmp_path):
    file, run = tmp_path / "settings.json", tmp_path / "made"
    settings = {"model": {"d_model": 8, "num_heads": 2, "backbone_options": OPTIONS}, "epochs": 1, "batch_size": 5, "clip_length": 16}
    file.write_text(json.dumps(settings | {"stages": {"tokenizer": TOKENIZER | {"epochs": 1}}}))
    command = ["train", "--backbone", "faceais", "--config", str(file), "--data", str(corpus), "--out", str(run), "--cache", str(features)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    made = json.loads((run / "config.json").read_text())
    assert (made["model"]["backbone"], made["betas"], made["stages"]["tokenizer"]["warmup_steps"]) == ("faceais", [0.9, 0.95], 300)
    model = load_model(run)
    results = {}
    for missing in (None, "face", "speech", "0.4"):
        out = generate(run, tmp_path / f"out-{missing}", data=corpus, num_samples=2, cache_dir=features, missing=missing, progress=False)
        results[missing] = np.load(out / "prediction_3dmm.npy")
        assert results[missing].shape[1:] == (2, 40, 58)
        assert np.isfinite(results[missing]).all()
        shown = [np.load(out / f"{stream}_available.npy").mean() for stream in ("face", "speech")]
        assert shown == ([0, 1] if missing == "face" else [1, 0] if missing == "speech" else shown)
    assert (results[None] != results["face"]).any()  # at least S-EA's emotion is another
    measured = validate(model, REACTDataset(corpus, "val", cache_dir=features), num_samples=2, missing="face")
    assert all(np.isfinite(value) for value in measured.values())
