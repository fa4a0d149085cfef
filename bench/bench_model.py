"""The whole EMCModel: a training step and the generation of K = 10 reactions, against the same model on the definitions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from emc_fast import EMCConfig, EMCModel
from emc_fast.ops import use_backend
from tests.ops import parity

from .race import Case, reference

# (B, T, d): training clips and whole clips of Trans-VAE
SIZES = ([(2, 256, 128)], [(1, 64, 128), (4, 256, 128), (16, 256, 128), (1, 750, 128), (4, 750, 128)])


def streams(batch: int, frames: int, *, targets: bool) -> dict[str, Tensor]:
    widths = {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10}
    widths |= {"target_3dmm": 58, "target_emotion": 25} if targets else {}
    return {name: torch.randn(batch, frames, width) for name, width in widths.items()}


def built(width: int) -> EMCModel:
    return EMCModel(EMCConfig(d_model=width))


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
    model, inputs = built(width).eval(), streams(batch, frames, targets=False)

    def outcome(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            out = net(**tensors, num_samples=10, seed=3)
        return {"reaction_3dmm": out.reaction_3dmm, "reaction_emotion": out.reaction_emotion}

    def generate(**tensors: Tensor) -> Tensor:
        return outcome(model, tensors)["reaction_3dmm"]

    race(
        Case(
            "model, generation",
            f"{batch} x {frames} x {width}, K=10",
            generate,
            inputs,
            {"reference": reference(generate)},
            gate=lambda: gate(outcome, model, inputs),
        )
    )


def test_training_step(race, size) -> None:
    batch, frames, width = size
    model, inputs = built(width).train(), streams(batch, frames, targets=True)

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
            f"{batch} x {frames} x {width}",
            step_of(copy.deepcopy(model)),
            inputs,
            {"reference": reference(step_of(copy.deepcopy(model)))},
            gate=lambda: gate(outcome, model, inputs),
        )
    )
