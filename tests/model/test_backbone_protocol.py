"""The protocol carries other kinds of backbones through every path of EMC."""

import pytest
import torch
from model_helpers import build, frames, make_batch, rows
from toy_backbones import TOYS

from emc_fast.backbones import BACKBONES

KINDS = list(TOYS)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for name, entry in TOYS.items():
        monkeypatch.setitem(BACKBONES, name, entry)


def masked(batch, length=10):
    generator = torch.Generator().manual_seed(4)
    face = torch.rand(len(batch["face"]), length, generator=generator) < 0.7
    face[:, 0] = True
    return batch | {"face_available": face}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"emc": False}, {"causal": True}, {"ea": "none"}, {"reduction": "paper_sum"}], ids=str)
def test_a_backbone_trains_and_reacts(kind, options):
    model = build(train=True, backbone=kind, **options)
    batch = masked(make_batch(3, 10, targets=True))
    output = model(**batch, seed=1, lengths=torch.tensor([10, 9, 6]))
    assert set(output.losses) == {"total", "backbone"} | ({"align", "cma_kl", "fusion"} if model.config.emc else set())
    output.losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    seen, few = (model(**batch, seed=1, num_samples=k).reaction_emotion for k in (5, 2))
    assert seen.shape == (3, 5, 10, 25)
    torch.testing.assert_close(seen[:, :2], few, rtol=1e-5, atol=1e-6)
    assert (seen[:, 1:] - seen[:, :1]).abs().amax((1, 2, 3)).min() > 0
    assert model(None, batch["speech"], speech_emotion=batch["speech_emotion"], seed=1).reaction_3dmm.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ea", ["attention", "none"])
@pytest.mark.parametrize("length", [8, 9, 1])
def test_padding_changes_nothing(kind, ea, length):
    """Also where a clip, alone, ends with a segment of a single frame: that is no vector for the whole clip."""
    model = build(backbone=kind, ea=ea)
    batch = masked(make_batch(2, 10))
    seeds = torch.tensor([1, 2])
    together = model(**batch, lengths=torch.tensor([10, length]), seed=seeds, num_samples=2).reaction_emotion
    alone = model(**frames(rows(batch, [1]), length), seed=seeds[1:], num_samples=2).reaction_emotion
    torch.testing.assert_close(together[1:, :, :length], alone, rtol=1e-5, atol=1e-5)
    assert (together[1, :, length:] == 0).all()


@pytest.mark.parametrize(
    ("method", "wrong", "fault"),
    [
        ("encode", lambda u: (u[0], u[1][..., :7]), r"encode: speech gave .*\(2, \d+, 7\); \(B, T, d_model\) = \(2, \d+, 16\) is taken"),
        ("encode", lambda u: (None, u[1]), r"encode: face gave NoneType; a tensor \(B, T, d_model\)"),
        ("fuse", lambda x: x[:, 1:], r"fuse gave .*\(2, 3, 16\); \(rows, T, fused_dim\) = \(2, 4, 16\)"),
        ("sample", lambda s: s._replace(values=s.values[:, :1]), r"sample: values gave .*\(2, 1, 4, 16\); .* = \(2, 3, 4, 16\)"),
        ("decode", lambda r: r._replace(emotion=r.coefficients), r"decode: emotion gave .*\(6, 4, 58\); .* = \(6, 4, 25\)"),
    ],
    ids=["encode", "encode-none", "fuse", "sample", "decode"],
)
@pytest.mark.parametrize("emc", [True, False])
def test_a_method_that_gives_another_shape_is_named(method, wrong, fault, emc, monkeypatch):
    model = build(backbone="toy_windows", emc=emc)
    right = getattr(model.backbone, method)
    monkeypatch.setattr(model.backbone, method, lambda *args, **kwargs: wrong(right(*args, **kwargs)))
    with pytest.raises(ValueError, match=r"Windows\." + fault):
        model(**make_batch(2, 10), seed=1, num_samples=3)


def test_independent_windows_see_only_themselves():
    for options in ({}, {"causal": True}):
        model = build(backbone="toy_windows", **options)
        batch = make_batch(1, 10)
        changed = {n: t.clone() for n, t in batch.items()}
        changed["face"][:, :4] += 1
        before, after = (model(**b, seed=1).reaction_emotion[0, 0] for b in (batch, changed))
        # Windows are 0-3, 2-5, 4-7, 6-9, 8-9: frames from 6 on are in none that has frame 3 or before.
        torch.testing.assert_close(before[6:], after[6:])
        assert (before[:6] != after[:6]).any(-1).all()


def test_patches_are_taught_by_the_target_in_training_and_see_themselves_otherwise():
    model = build(backbone="toy_patches", train=True, dropout=0.0, fusion_pick="real")
    batch = make_batch(2, 10, targets=True)
    model(**batch, seed=1, num_samples=2)
    # three fusions, two draws each
    expected = batch["target_emotion"][:, :4].repeat_interleave(2, 0).repeat(3, 1, 1)
    torch.testing.assert_close(model.backbone.seen[0], expected)
    model.backbone.seen.clear()
    model.eval()
    output = model(**batch, seed=1, num_samples=2)
    torch.testing.assert_close(model.backbone.seen[1], output.reaction_emotion.flatten(0, 1)[:, :8])
