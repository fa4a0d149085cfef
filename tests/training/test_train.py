from __future__ import annotations

import itertools
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from training_helpers import same, weights
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.errors import CheckpointError, DataError
from emc_fast.training import DivergenceError, load_model, train
from emc_fast.training.order import StepSampler, training_loader
from emc_fast.training.trainer import Trainer, learning_rate


def stop_after(monkeypatch, step, number=signal.SIGINT):
    """Send this process a signal while that step is computed."""
    advance = Trainer.advance

    def advancing(self, batch):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        advance(self, batch)

    monkeypatch.setattr(Trainer, "advance", advancing)


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(small):
    config = small()
    result = train(config)
    run = result.paths.run
    assert json.loads((run / "config.json").read_text()) == json.loads(json.dumps(config.to_dict()))
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["step"] == 0
    assert start["packages"]["torch"] == torch.__version__.split("+")[0] or start["packages"]["torch"] == torch.__version__
    assert {"command", "commit", "device", "seed", "python"} <= start.keys()
    assert list((run / "tensorboard").glob("events.*"))
    assert [(record["epoch"], record["step"]) for record in result.history] == [(1, 3), (2, 6)]
    assert result.best["loss"] == min(record["validation"]["total"] for record in result.history)
    entries = log_of(run)
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == [2, 4, 6]
    assert [entry["step"] for entry in entries if entry["kind"] == "validation"] == [3, 6]
    assert all(math.isfinite(value) for entry in entries for value in entry.values() if isinstance(value, float))
    for which in ("last", "best"):
        assert same(load_model(run / "checkpoints" / which).state_dict(), weights(run / "checkpoints" / which))
    assert same(load_model(run).state_dict(), weights(run / "checkpoints" / "best"))


def test_training_learns_and_the_same_seed_gives_the_same_weights(small):
    a, b, c = (train(small(out, seed=seed, epochs=4)) for out, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(weights(a.paths.last), weights(b.paths.last))
    assert not same(weights(a.paths.last), weights(c.paths.last))
    assert a.history == b.history
    assert a.history[-1]["train"]["total"] < a.history[0]["train"]["total"]


def test_torchs_random_state_is_left_alone(small):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(small(epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(small, monkeypatch, step):
    whole = train(small("whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        stopped = train(small("stopped"))
    assert stopped.stopped_by == signal.SIGINT
    assert json.loads((stopped.paths.last / "state.json").read_text())["step"] == step
    resumed = train(small("stopped"), resume=True)
    assert resumed.stopped_by is None
    assert same(weights(whole.paths.last), weights(resumed.paths.last))
    assert (whole.history, whole.best) == (resumed.history, resumed.best)
    assert log_of(whole.paths.run) == log_of(resumed.paths.run)
    assert [start["step"] for start in json.loads(resumed.paths.environment.read_text())["starts"]] == [0, step]


def test_resuming_with_workers_and_another_checkpoint_interval_changes_nothing(small, monkeypatch):
    whole = train(small("whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGTERM)
        assert train(small("stopped", checkpoint_every=1)).stopped_by == signal.SIGTERM
    resumed = train(small("stopped", workers=2), resume=True)
    assert same(weights(whole.paths.last), weights(resumed.paths.last))


def test_a_finished_run_resumes_to_itself(small):
    first = train(small(epochs=1))
    again = train(small(epochs=1), resume=True)
    assert first.history == again.history
    assert same(weights(first.paths.last), weights(again.paths.last))


def test_a_directory_with_something_in_it_is_not_taken(small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="--resume"):
        train(small())
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]
    with pytest.raises(CheckpointError, match=r"config\.json"):
        train(small(), resume=True)


def test_resuming_with_other_settings_names_them(small):
    train(small(epochs=1))
    with pytest.raises(CheckpointError, match=r"epochs \(1 in the run, now 3\).*lr.*model\.d_model \(16 in the run, now 32\)"):
        train(small(epochs=3, lr=0.5, model={"d_model": 32}), resume=True)
    with pytest.raises(CheckpointError, match=r"batch_size \(4 in the run, now 2\)"):
        train(small(epochs=1, batch_size=2), resume=True)


def test_a_run_begun_by_a_version_with_fewer_settings_goes_on(small):
    run = train(small(epochs=1)).paths
    values = json.loads(run.config.read_text())
    del values["drop_at"], values["model"]["emotion_positions"], values["model"]["backbone_options"]["memory"]
    run.config.write_text(json.dumps(values))
    assert train(small(epochs=1), resume=True).best
    run.config.write_text(json.dumps(values | {"drop_at": 0.1}))
    with pytest.raises(CheckpointError, match=r"drop_at \(0.1 in the run, now 0.5\)"):
        train(small(epochs=1), resume=True)
    run.config.write_text(json.dumps(values | {"colour": "red"}))
    with pytest.raises(CheckpointError, match=r"config.json cannot be used: unknown training settings colour"):
        train(small(epochs=1), resume=True)


def test_resuming_on_another_corpus_is_refused(small, corpus, tmp_path):
    config = small(epochs=1, cache_dir=None)
    train(config)
    other = tmp_path / "other"
    other.mkdir()
    for path in corpus.iterdir():
        if path.name != "train.csv":
            (other / path.name).symlink_to(path)
    rows = (corpus / "train.csv").read_text().splitlines()
    (other / "train.csv").write_text("\n".join(rows[:-1]) + "\n")
    config.data = str(other)
    with pytest.raises(CheckpointError, match="another corpus"):
        train(config, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(small, monkeypatch):
    advance = Trainer.advance

    def advancing(self, batch):
        if self.step + 1 == 5:
            batch["target_emotion"] = batch["target_emotion"] * float("inf")
        advance(self, batch)

    monkeypatch.setattr(Trainer, "advance", advancing)
    config = small(checkpoint_every=2, log_every=6)
    with pytest.raises(DivergenceError, match=r"is (nan|inf) at step 5 \(epoch 2\).*\(step 4\)"):
        train(config)
    assert json.loads((Path(config.out) / "checkpoints" / "last" / "state.json").read_text())["step"] == 4
    assert all(bool(torch.isfinite(value).all()) for value in load_model(Path(config.out) / "checkpoints" / "last").state_dict().values())


def test_weights_that_are_not_finite_are_never_saved(small, monkeypatch):
    advance = Trainer.advance

    def advancing(self, batch):
        advance(self, batch)
        if self.step == 4:
            next(self.model.parameters()).data[0] = float("nan")

    monkeypatch.setattr(Trainer, "advance", advancing)
    config = small(checkpoint_every=1, log_every=100)
    with pytest.raises(DivergenceError, match="after step 4"):
        train(config)
    assert all(bool(torch.isfinite(value).all()) for value in load_model(config.out).state_dict().values())


def test_bf16_trains_on_a_cpu_and_fp16_says_what_it_needs(small):
    result = train(small(precision="bf16", epochs=1))
    assert math.isfinite(result.history[0]["train"]["total"])
    assert all(value.dtype == torch.float32 for value in weights(result.paths.last).values())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="fp16 needs a GPU"):
            train(small("half", precision="fp16"))


def test_the_backbone_alone_trains_too(small):
    result = train(small(model={"emc": False}, epochs=1))
    assert not any("cma" in name for name in weights(result.paths.last))


def test_gradient_clipping_is_logged_and_obeyed(small):
    config = small(grad_clip=1e-3, epochs=1, batch_size=3)
    trainer = Trainer(config)
    sampler = StepSampler(len(trainer.corpus), batch=3, epochs=1, seed=config.seed)
    trainer.advance(next(iter(training_loader(trainer.corpus, sampler, workers=0, pin_memory=False))))
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert float(trainer.pending[0][1]["gradient_norm"]) > 1e-3


def test_the_learning_rate_is_a_function_of_the_step(small):
    config = small(lr=1.0, schedule="cosine", warmup_steps=4)
    rates = [learning_rate(config, step, 24) for step in range(24)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"precision": "fp8"}, "fp16"),
        ({"schedule": "linear"}, "cosine"),
        ({"clip_length": 1}, "clip_length"),
    ],
)
def test_bad_settings_are_named(small, settings, fault):
    with pytest.raises(ValueError, match=fault):
        small(**settings)


def test_a_corpus_without_lists_is_named(small, tmp_path):
    (tmp_path / "empty").mkdir()
    config = small()
    config.data = str(tmp_path / "empty")
    with pytest.raises(DataError, match=r"train\.csv"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_validation_counts_the_frames_that_have_a_target(small):
    """Whatever the batches: half of the clips have none, as where a listener's file is missing."""

    class Holed:
        def __init__(self, corpus, every):
            self.corpus, self.every = corpus, every

        def __len__(self):
            return len(self.corpus)

        def __getitem__(self, clip):
            found = dict(self.corpus[clip])
            if clip % self.every == 0:
                found["target_available"] = torch.zeros_like(torch.as_tensor(found["target_available"]))
            return found

    losses = []
    for batch in (1, 3):
        trainer = Trainer(small(f"of{batch}", batch_size=batch))
        whole = trainer.validation
        trainer.validation = Holed(whole, 2)
        losses.append(trainer.validate())
    for name in ("total", "emotion", "expression", "pose"):  # a divergence is a mean over all frames
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5), name
    trainer.validation = Holed(whole, 1)
    with pytest.raises(DataError, match="no frame of the validation split has a target"):
        trainer.validate()


def test_resuming_with_the_same_settings_again_is_no_change(small, tmp_path):
    """Settings in a file name a part of `model`; what the run has besides stays."""
    config = small("again", epochs=1)
    train(config)
    file = tmp_path / "again.json"
    file.write_text(json.dumps({"model": {"num_heads": 2}}))
    result = CliRunner().invoke(app, ["train", "--resume", "--config", str(file), "--out", config.out], catch_exceptions=False)
    assert result.exit_code == 0, result.output
