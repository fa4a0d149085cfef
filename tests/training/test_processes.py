"""Two processes over gloo against one with the doubled batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from training_helpers import environment, weights

from emc_fast.training import train
from emc_fast.training.order import StepSampler, training_loader
from emc_fast.training.trainer import Trainer

WORKER = Path(__file__).with_name("worker_of_two.py")


def first_gradients(config) -> dict[str, torch.Tensor]:
    trainer = Trainer(config)
    sampler = StepSampler(
        len(trainer.corpus),
        batch=config.batch_size,
        epochs=1,
        seed=config.seed,
        rank=trainer.rank,
        processes=trainer.processes,
    )
    batch = next(iter(training_loader(trainer.corpus, sampler, workers=0, pin_memory=False)))
    lengths = torch.tensor([5, 9, 16, 12])[trainer.rank * len(batch["lengths"]) :][: len(batch["lengths"])]
    for name, value in batch.items():  # clips of different lengths, cut to the longest of this process
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            batch[name] = value[:, : int(lengths.max())]
    batch["lengths"] = lengths
    if trainer.rank == 0:  # and holes, so that every mean has a count of its own
        batch["face_available"][0, 1:3] = False
        batch["target_available"][1, 4:] = False
    trainer.gradients(batch)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def launch(*arguments) -> None:
    env = environment(OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


MODELS = {
    "trans_vae": {},
    # Its ActNorm begins with the first batch, of all processes.
    "regnn": {"backbone": "regnn", "backbone_options": {"window": 8, "stride": 4, "perceptual_layers": 1, "channels": 2}},
}


@pytest.fixture(scope="module")
def shares(small_in, tmp_path_factory):
    place = tmp_path_factory.mktemp("shares")
    for name, model in MODELS.items():
        config = small_in(place / f"two-{name}", batch_size=2, model=model)
        (place / f"{name}.json").write_text(json.dumps(config.to_dict()))
    launch(WORKER, *(place / f"{name}.json" for name in MODELS))
    return {name: [load_file(place / f"{name}-{rank}.safetensors") for rank in range(2)] for name in MODELS}


@pytest.mark.parametrize("backbone", MODELS)
def test_gradients_are_those_of_the_doubled_batch(small, shares, backbone):
    expected = first_gradients(small("one", batch_size=4, model=MODELS[backbone]))
    shares = shares[backbone]
    assert shares[0].keys() == shares[1].keys() == expected.keys()
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert torch.equal(shares[0][name], shares[1][name]), name
        torch.testing.assert_close(shares[0][name], gradient, rtol=2e-4, atol=2e-6 * float(scale), msg=lambda m, name=name: f"{name}: {m}")


def test_a_run_of_two_processes_is_that_of_one_and_one_of_them_writes(small, tmp_path):
    whole = train(small("one", batch_size=4))
    config = small("two", batch_size=2)
    (tmp_path / "settings.json").write_text(json.dumps(config.to_dict()))
    launch("-m", "emc_fast", "train", "--config", tmp_path / "settings.json", "--out", config.out)
    run = tmp_path / "two"
    state, other = (json.loads((path / "checkpoints" / "last" / "state.json").read_text()) for path in (run, whole.paths.run))
    assert (state["step"], state["batch"]) == (other["step"], other["batch"]) == (6, 4)
    assert state["history"][-1]["validation"]["total"] == pytest.approx(other["history"][-1]["validation"]["total"], rel=1e-3)
    a, b = weights(run / "checkpoints" / "last"), weights(whole.paths.last)
    optimizer = load_file(whole.paths.last / "optimizer.safetensors")
    rms = {name: optimizer[f"exp_avg_sq/{name}"].sqrt() for name in a if f"exp_avg_sq/{name}" in optimizer}
    assert all(torch.equal(a[name], b[name]) for name in a.keys() - rms.keys())  # never trained
    apart = torch.cat([(a[name] - b[name]).abs().flatten() for name in rms])
    gradient = torch.cat([value.flatten() for value in rms.values()])
    # Adam makes steps of full size out of gradients that are rounding alone, as that of a key's bias, which moves no attention: entries
    # with less than a millionth of the largest gradient may part, as far as six steps reach. All others agree to a hundredth of one step.
    rounding = gradient < 1e-6 * gradient.max()
    assert rounding.float().mean() < 0.12
    assert apart[~rounding].max() < 1e-2 * config.lr
    assert apart.max() <= 2 * 6 * config.lr
    assert len(list((run / "tensorboard").glob("events.*"))) == 1
    assert len([line for line in (run / "log.jsonl").read_text().splitlines() if '"validation"' in line]) == 2
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["processes"] == 2


def test_processes_that_find_no_group_are_refused(small, monkeypatch):
    """They would train the same run in one folder."""

    def alone(**options):
        with monkeypatch.context() as patch:
            patch.delenv("WORLD_SIZE")
            return Accelerator(**options)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("emc_fast.training.trainer.Accelerator", alone)
    config = small("alone")
    with pytest.raises(ValueError, match=r"2 processes were started .* a group of 1"):
        Trainer(config)
    assert not Path(config.out).exists()
