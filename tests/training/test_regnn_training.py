"""REGNN through the commands: its recipe, a short run, an exact resume, reactions with a modality missing, the measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from training_helpers import FRAMES, same, weights
from typer.testing import CliRunner

from emc_fast import EMCModel
from emc_fast.cli import app
from emc_fast.training import TrainConfig, demo_config, load_model, recipe, train

SMALL = {"window": 10, "stride": 5, "perceptual_layers": 1, "channels": 2}
MODEL = {"d_model": 16, "num_heads": 2, "backbone_options": SMALL}


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def test_the_recipe_is_the_released_one():
    config = TrainConfig("corpus", "run", **recipe("regnn"))
    assert (config.optimizer, config.lr, config.weight_decay, config.batch_size) == ("adam", 1e-4, 5e-4, 128)
    assert config.model.backbone == "regnn"
    assert (config.clip_length, config.schedule, config.drop_at, config.drop) == (50, "step", 0.09, 0.1)
    assert config.mirror
    assert not config.swap_roles  # every clip in both roles once


def test_there_are_small_settings_too(tmp_path):
    config = demo_config("corpus", tmp_path, backbone="regnn")
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.clip_length == EMCModel(config.model).backbone.window


@pytest.fixture(scope="module")
def run(corpus, features, tmp_path_factory):
    place = tmp_path_factory.mktemp("regnn")
    settings = place / "settings.json"
    settings.write_text(json.dumps({"model": MODEL, "lr": 3e-3, "clip_length": 12}))
    common = ("--data", corpus, "--cache", features, "--config", settings, "--batch-size", 5, "--epochs", 3, "--device", "cpu")
    command("train", "--backbone", "regnn", "--out", place / "run", *common, "--validate-every", 3, "--log-every", 1)
    return place / "run"


def test_a_run_learns_from_all_appropriate_listeners(run):
    config = json.loads((run / "config.json").read_text())
    assert (config["optimizer"], config["schedule"], config["batch_size"], config["lr"]) == ("adam", "step", 5, 3e-3)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if entry["kind"] == "train"]
    assert len(steps) == 6
    assert {"nearest", "mid", "coefficients", "fusion", "align", "cma_kl", "total"} <= set(steps[0])
    assert steps[-1]["total"] < steps[0]["total"]
    assert steps[0]["mid"] > 0  # one listener alone would be his own mean
    assert {"emotion", "coefficients"} <= {name for entry in log if entry["kind"] == "validation" for name in entry}
    backbone = load_model(run).backbone
    means = json.loads((run / "checkpoints/last/state.json").read_text())["history"][-1]["train"]
    torch.testing.assert_close(backbone.threshold, torch.tensor(means["nearest"] / 3))
    assert all(norm.initialised for norm in backbone.motor.norms)


@pytest.mark.parametrize("missing", [None, "face", "speech", "0.4"])
def test_it_reacts_and_is_measured(run, corpus, features, tmp_path, missing):
    words = () if missing is None else ("--missing", missing)
    command("generate", run, "--data", corpus, "--split", "val", "--cache", features, "--num-samples", 3, "--out", tmp_path / "out", *words)
    emotion = np.load(tmp_path / "out" / "prediction_emotion.npy")
    assert emotion.shape == (4, 3, FRAMES, 25)
    assert np.isfinite(np.load(tmp_path / "out" / "prediction_3dmm.npy")).all()
    assert (emotion[:, 0] != emotion[:, 1]).any((1, 2)).all()
    command("evaluate", tmp_path / "out", "--data", corpus, "--split", "val")


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(small, tmp_path):
    settings = {"epochs": 2, "batch_size": 5, "clip_length": 12, "optimizer": "adam", "schedule": "step"}
    model = {"backbone": "regnn", "backbone_options": SMALL}
    whole = train(small("whole", model=model, **settings))
    config = small("cut", model=model, **settings)

    from emc_fast.training.order import StepSampler, training_loader
    from emc_fast.training.rundir import create_run
    from emc_fast.training.trainer import Trainer

    trainer = Trainer(config)
    create_run(trainer.paths, config)
    sampler = StepSampler(len(trainer.corpus), batch=5, epochs=2, seed=config.seed)
    for batch in training_loader(trainer.corpus, sampler, workers=0, pin_memory=False):
        trainer.advance(batch)
        if trainer.step % trainer.per_epoch == 0:
            trainer.end_epoch()
        if trainer.step == 3:
            trainer.save(trainer.paths.last)
            break
    trainer.close()
    resumed = train(config, resume=True)
    assert same(weights(whole.paths.last), weights(resumed.paths.last))
    assert weights(whole.paths.last)["backbone.threshold"] > 0
