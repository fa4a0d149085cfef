"""Whole models: a training step and the generation of K = 10 reactions, against the same model on plain PyTorch (rivals.py).

Trans-VAE, REGNN and FaceAIS, each with EMC. The gate compares with the float64 model on the definitions. The rivals draw from torch's
generator, so their results differ; the time of the definitions themselves, which make the specified noise in float64, would be no measure.
Under `torch.compile` they run with --compile-models alone, for it may take five minutes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from emc_fast import EMCConfig, EMCModel
from emc_fast.reporting.workloads import TARGETS, generation, streams, training_step
from emc_fast.training.presets import RECIPES, SMALL

from .race import Case, module_gate
from .rivals import PLAIN

GENERATION = ([(1, 750, 128)], [(1, 64, 128), (1, 750, 128)])
TRAINING = ([(4, 256, 128)], [(1, 256, 128), (4, 256, 128)])
"""(B, T, d): whole clips and training clips of Trans-VAE"""
REGNN_FRAMES = ([750], [50, 750])
REGNN_WINDOWS = ([16], [16, 128])
"""A step of the published recipe has 128 windows; an eighth of that says nearly the same. All take eight minutes, for the gate: --whole."""
REGNN_LISTENERS = 10
FACEAIS = {"small": (SMALL["faceais"]["model"], 4, 64, 3), "published": (RECIPES["faceais"]["model"], 1, 288, 2)}
"""FaceAIS by size: model, clips, frames, reactions."""


def built(width: int, backbone: str = "trans_vae") -> EMCModel:
    return EMCModel(EMCConfig(d_model=width, backbone=backbone))


def trans_vae_generation(batch: int, frames: int, width: int) -> Case:
    inputs = streams(batch, frames, targets=False)
    return generation_case("Trans-VAE + EMC", f"{batch} x {frames} x {width}, K=10", built(width).eval(), inputs)


def trans_vae_training(batch: int, frames: int, width: int) -> Case:
    inputs = streams(batch, frames, targets=True)
    return training_case("Trans-VAE + EMC", f"{batch} x {frames} x {width}", built(width).train(), inputs)


def test_generation(race, generation_size) -> None:
    race(trans_vae_generation(*generation_size))


def test_training_step(race, request, training_size) -> None:
    case = trans_vae_training(*training_size)
    case.compiled = ("eager",) if request.config.getoption("--compile-models") else ()
    race(case)


def test_regnn_generation(race, regnn_frames) -> None:
    model, inputs = built(128, "regnn").eval(), streams(1, regnn_frames, targets=False)
    race(generation_case("REGNN + EMC", f"1 x {regnn_frames} x 128, K=10", model, inputs))


def test_regnn_training_step(race, request, regnn_windows) -> None:
    if regnn_windows > REGNN_WINDOWS[0][0] and not request.config.getoption("--whole"):
        pytest.skip("the float64 truth of all windows takes minutes: --whole")
    inputs = streams(regnn_windows, 50, targets=True, listeners=REGNN_LISTENERS)
    model = built(128, "regnn").train()
    model(**inputs, seed=3)  # ActNorm takes its beginning
    race(training_case("REGNN + EMC", f"{regnn_windows} x 50 x 128, {REGNN_LISTENERS} listeners", model, inputs))


def generation_case(name: str, size: str, model: EMCModel, inputs: dict[str, Tensor]) -> Case:
    def outcome(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            out = net(**tensors, num_samples=3, seed=3)  # draws do not depend on their number, and the truth takes its time
        return {"reaction_3dmm": out.reaction_3dmm, "reaction_emotion": out.reaction_emotion}

    generate = generation(model, validate=False)
    return Case(
        name,
        size,
        generate,
        inputs,
        dict.fromkeys(PLAIN, generate),
        kind="generation",
        contexts=PLAIN,
        gate=lambda: module_gate(outcome, model, inputs),
        alike=False,
        memory=True,
    )


def training_case(name: str, size: str, model: EMCModel, inputs: dict[str, Tensor]) -> Case:
    def outcome(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        total = net(**tensors, seed=3).losses["total"]
        names, weights = zip(*((n, p) for n, p in net.named_parameters() if p.requires_grad), strict=True)
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        flat = [g.flatten() for name, g in zip(names, grads, strict=True) if g is not None]
        return {"total": total.detach(), "all gradients": torch.cat(flat)}

    return Case(
        name,
        size,
        training_step(copy.deepcopy(model), validate=False),
        inputs,
        {name: training_step(copy.deepcopy(model), validate=False) for name in PLAIN},
        kind="training step",
        contexts=PLAIN,
        gate=lambda: module_gate(outcome, model, inputs),
        alike=False,
        memory=True,
    )


def test_faceais_generation(race) -> None:
    """Patch after patch with tokens drawn; the published size takes minutes of every contestant."""
    model, inputs, size, draws = faceais("small", training=False)
    work = generation(model, draws, validate=False)
    race_faceais(race, "generation", f"{size}, K={draws}", model, inputs, work, dict.fromkeys(PLAIN, work))


@pytest.mark.parametrize("faceais_model", ["small", "published"])
def test_faceais_training_step(race, request, faceais_model) -> None:
    """A step of the predictor on a tokenizer that rests."""
    if faceais_model == "published" and not request.config.getoption("--whole"):
        pytest.skip("113 million parameters take minutes: --whole")
    model, inputs, size, _ = faceais(faceais_model, training=True)
    work = training_step(copy.deepcopy(model), validate=False)
    rivals = {name: training_step(copy.deepcopy(model), validate=False) for name in PLAIN}
    race_faceais(race, "training step", size, model, inputs, work, rivals)


def faceais(which: str, *, training: bool) -> tuple[EMCModel, dict[str, Tensor], str, int]:
    fields, batch, frames, draws = FACEAIS[which]
    model = EMCModel(EMCConfig(**{"backbone": "faceais", "dropout": 0.0, **fields})).train(training)
    return model, streams(batch, frames, targets=training), f"{which}, {batch} x {frames}", draws


def race_faceais(race, kind: str, size: str, model: EMCModel, inputs: dict[str, Tensor], work, rivals) -> None:
    def logits(net: EMCModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        # Z given the target's past, and the loss: a token that rounding decides otherwise would change all that is drawn after it.
        first = {name: x[:1, :64] for name, x in tensors.items()}
        first |= {name: torch.zeros(1, first["face"].shape[1], width) for name, width in TARGETS.items()}
        with torch.no_grad():
            out = net.eval()(**{name: x.to(tensors["face"].dtype) for name, x in first.items()}, seed=3)
        return {"logits": torch.cat([z.logits for z in out.distribution], 2), "cross_entropy": out.losses["cross_entropy"]}

    gate = lambda: module_gate(logits, model, inputs)  # noqa: E731
    race(Case("FaceAIS + EMC", size, work, inputs, rivals, contexts=PLAIN, gate=gate, alike=False, memory=True, kind=kind))
