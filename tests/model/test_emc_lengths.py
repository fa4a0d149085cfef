"""Clips of different lengths, missing targets, and windows."""

import pytest
import torch
from model_helpers import ONLINE, build, frames, holes, make_batch, reactions, rows

# Lengths


@pytest.mark.parametrize(
    "options", [{}, {"ea": "add_norm"}, {"emc": False}, {"causal": True, "window": 4}, {"backbone_options": ONLINE}], ids=str
)
def test_padding_changes_nothing_and_gets_nothing(options):
    model = build(**options)
    seeds = torch.tensor([1, 2, 3])
    batch = holes(make_batch(targets=True))
    lengths = torch.tensor([12, 9, 5])
    padded = {n: t.clone() for n, t in batch.items()}
    for b, length in enumerate(lengths):
        for tensor in padded.values():
            tensor[b, length:] = float("nan") if tensor.is_floating_point() else True
    output = model(**padded, lengths=lengths, seed=seeds, num_samples=2)
    for b, length in enumerate(lengths.tolist()):
        alone = model(**frames(rows(batch, [b]), length), seed=seeds[b : b + 1], num_samples=2)
        torch.testing.assert_close(output.reaction_3dmm[b : b + 1, :, :length], alone.reaction_3dmm, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.reaction_emotion[b : b + 1, :, :length], alone.reaction_emotion, rtol=1e-5, atol=1e-5)
        assert (output.reaction_3dmm[b, :, length:] == 0).all()
        assert (output.reaction_emotion[b, :, length:] == 0).all()
    assert output.losses["total"].isfinite()


@pytest.mark.parametrize("options", [{}, {"backbone_options": ONLINE}], ids=str)
def test_losses_of_a_padded_batch_are_those_of_its_frames(options):
    model = build(train=True, dropout=0.0, **options)
    seeds = torch.tensor([1, 1])
    batch = rows(holes(make_batch(targets=True)), [0, 0])
    short = frames(batch, 8)
    padded = {n: t.clone() for n, t in batch.items()}
    for name, tensor in padded.items():
        tensor[:, 8:] = float("nan") if tensor.is_floating_point() else name == "face_available"
    whole = model(**short, seed=seeds)
    part = model(**padded, lengths=torch.tensor([8, 8]), seed=seeds)
    for name, value in whole.losses.items():
        torch.testing.assert_close(part.losses[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_frames_of_the_target_that_are_missing_do_not_count():
    model = build()
    batch = make_batch(targets=True)
    available = torch.rand(3, 12) < 0.5
    available[0, 0] = True
    holed = batch | {n: batch[n].masked_fill(~available[..., None], float("nan")) for n in ("target_3dmm", "target_emotion")}
    output = model(**holed, target_available=available, seed=1)
    error = (output.reaction_emotion[:, 0] - batch["target_emotion"])[available].square().mean()
    torch.testing.assert_close(output.losses["emotion"], error)


# Windows


def test_a_causal_online_model_enhances_once_and_agrees_with_walking(monkeypatch):
    options = {"causal": True, "window": 5, "backbone_options": ONLINE}
    model, batch = build(double=True, **options), make_batch(double=True)
    whole = reactions(model, batch, seed=1, num_samples=2)
    calls = []
    model.emc.ea_face.features.register_forward_hook(lambda *args: calls.append(1))
    reactions(model, batch, seed=1, num_samples=2)
    assert len(calls) == 1
    model.backbone.prefix_stable = False
    torch.testing.assert_close(reactions(model, batch, seed=1, num_samples=2), whole, rtol=1e-10, atol=1e-11)
    assert len(calls) == 4


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"emc": False}], ids=str)
def test_online_a_window_does_not_see_what_comes_after_it(options):
    model = build(backbone_options=ONLINE, **options)
    batch = make_batch()
    whole = reactions(model, batch, seed=1)
    torch.testing.assert_close(reactions(model, frames(batch, 8), seed=1), whole[:, :, :8], rtol=1e-5, atol=1e-6)
