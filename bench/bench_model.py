"""The whole EMCModel: a training step and the generation of K = 10 reactions, against the same model on the definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from emc_fast import EMCConfig, EMCModel
from emc_fast.ops import use_backend
from emc_fast.training.presets import RECIPES, SMALL
from tests.ops import parity

from .race import Case, reference

# (B, T, d): training clips and whole clips of Trans-VAE
SIZES = ([(2, 256, 128)], [(1, 64, 128), (4, 256, 128), (16, 256, 128), (1, 750, 128), (4, 750, 128)])
REGNN_WINDOWS, REGNN_LISTENERS = 16, 10
"""A step of the published recipe has 128 windows; on a CPU an eighth of that says the same."""


def streams(batch: int, frames: int, *, targets: bool, listeners: int = 0) -> dict[str, Tensor]:
    widths = {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10}
    widths |= {"target_3dmm": 58, "target_emotion": 25} if targets else {}
    given = {name: torch.randn(batch, frames, width) for name, width in widths.items()}
    return given | ({"appropriate_emotion": torch.randn(batch, frames, listeners, 25)} if listeners else {})


TARGETS = (("3dmm", 58), ("emotion", 25))


def built(width: int, backbone: str = "trans_vae") -> EMCModel:
    return EMCModel(EMCConfig(d_model=width, backbone=backbone))


def gate(outcome: Any, model: EMCModel, inputs: dict[str, Tensor]) -> None:
    """The error rule of the tests for all that `outcome` gives: the float64 model on the definitions is the truth."""
    with use_backend("reference"):
        truth = outcome(copy.deepcopy(model).double(), {n: x.double() for n, x in inputs.items()})
        eager = outcome(copy.deepcopy(model), inputs)
    got = outcome(copy.deepcopy(model), inputs)
    for name in truth:
        parity.assert_close(name, got[name], eager[name], truth[name])


def test_generation(race, size) -> None:
    batch, frames, width = size
    race_generation(race, f"{batch} x {frames} x {width}, K=10", built(width).eval(), streams(batch, frames, targets=False))


def test_training_step(race, size) -> None:
    batch, frames, width = size
    race_training(race, f"{batch} x {frames} x {width}", built(width).train(), streams(batch, frames, targets=True))


@pytest.mark.parametrize("frames", [50, 750])
def test_regnn_generation(race, frames) -> None:
    race_generation(race, f"REGNN 1 x {frames} x 128, K=10", built(128, "regnn").eval(), streams(1, frames, targets=False))


def test_regnn_training_step(race) -> None:
    inputs = streams(REGNN_WINDOWS, 50, targets=True, listeners=REGNN_LISTENERS)
    model = built(128, "regnn").train()
    model(**inputs, seed=3)  # ActNorm takes its beginning
    race_training(race, f"REGNN {REGNN_WINDOWS} x 50 x 128, {REGNN_LISTENERS} listeners", model, inputs)


def race_generation(race, size: str, model: EMCModel, inputs: dict[str, Tensor]) -> None:
    def outcome(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            out = net(**tensors, num_samples=10, seed=3)
        return {"reaction_3dmm": out.reaction_3dmm, "reaction_emotion": out.reaction_emotion}

    def generate(**tensors: Tensor) -> Tensor:
        return outcome(model, tensors)["reaction_3dmm"]

    race(Case("model, generation", size, generate, inputs, {"reference": reference(generate)}, gate=lambda: gate(outcome, model, inputs)))


def race_training(race, size: str, model: EMCModel, inputs: dict[str, Tensor]) -> None:
    def outcome(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        total = net(**tensors, seed=3).losses["total"]
        names, weights = zip(*((n, p) for n, p in net.named_parameters() if p.requires_grad), strict=True)
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        flat = [g.flatten() for name, g in zip(names, grads, strict=True) if g is not None]
        return {"total": total.detach(), "all gradients": torch.cat(flat)}

    def step_of(net: EMCModel):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)

        def step(**tensors: Tensor) -> Tensor:
            with torch.enable_grad():
                optimizer.zero_grad()
                total = net(**tensors, seed=3).losses["total"]
                total.backward()
                optimizer.step()
            return total.detach()

        return step

    race(
        Case(
            "model, training step",
            size,
            step_of(copy.deepcopy(model)),
            inputs,
            {"reference": reference(step_of(copy.deepcopy(model)))},
            gate=lambda: gate(outcome, model, inputs),
        )
    )


FACEAIS = {"small": (SMALL["faceais"]["model"], 4, 64, 3), "published": (RECIPES["faceais"]["model"], 2, 288, 10)}
"""FaceAIS by size: model, clips, frames, reactions."""


@pytest.mark.parametrize("which", FACEAIS)
@pytest.mark.parametrize("task", ["generation", "training step"])
def test_faceais(race, request, which: str, task: str) -> None:
    """Patch after patch with tokens drawn; and a step of the predictor on a tokenizer that rests."""
    if which == "published" and not request.config.getoption("--full"):
        pytest.skip("113 million parameters: with --full")
    fields, batch, frames, draws = FACEAIS[which]
    model = EMCModel(EMCConfig(**{"backbone": "faceais", "dropout": 0.0, **fields})).train(task != "generation")
    inputs = streams(batch, frames, targets=task != "generation")

    def logits(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        # Z given the target's past, and the loss: a token that rounding decides otherwise would change all that is drawn after it.
        first = {name: x[:1, :64] for name, x in tensors.items()} | {f"target_{n}": torch.zeros(1, min(frames, 64), w) for n, w in TARGETS}
        with torch.no_grad():
            out = net.eval()(**{name: x.to(tensors["face"].dtype) for name, x in first.items()}, seed=3)
        return {"logits": torch.cat([z.logits for z in out.distribution], 2), "cross_entropy": out.losses["cross_entropy"]}

    def work_of(net: EMCModel):
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5)

        def work(**tensors: Tensor) -> Tensor:
            if task == "generation":
                with torch.no_grad():
                    return net(**tensors, num_samples=draws, seed=3).reaction_3dmm
            with torch.enable_grad():
                optimizer.zero_grad()
                total = net(**tensors, seed=3).losses["total"]
                total.backward()
                optimizer.step()
            return total.detach()

        return work

    size = f"{which}, {batch} x {frames}" + (f", K={draws}" if task == "generation" else "")
    mine, other = work_of(copy.deepcopy(model)), work_of(copy.deepcopy(model))
    race(Case(f"FaceAIS, {task}", size, mine, inputs, {"reference": reference(other)}, gate=lambda: gate(logits, model, inputs)))
