"""The model as a whole: options, what a seed means, missing modalities."""

import pytest
import torch
from model_helpers import ONLINE, build, holes, make_batch, poisoned, reactions, rows

from emc_fast.config import CHOICES

# Options


OPTIONS = [{name: choice} for name in ("norm", "ea", "cma_prior", "emotion_source", "fusion_pick", "reduction") for choice in CHOICES[name]]
OPTIONS += [
    {"cma_latent_dim": 5, "cma_hidden_dim": 7},
    {"detach_target": False},
    {"causal": True},
    {"causal": True, "window": 3},
    {"dropout": 0.0},
    {"emc": False},
    {"backbone_options": {"div_p": 0.0}},
    {"backbone_options": ONLINE},
    {"backbone_options": ONLINE, "causal": True, "ea": "add_norm"},
    {"backbone_options": ONLINE, "ea": "none", "cma_prior": "learned"},
    {"backbone_options": ONLINE, "emc": False},
    {"face_dim": 20, "speech_dim": 30},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_and_reacts(options):
    model = build(train=True, **options)
    batch = make_batch(targets=True)
    batch["face"], batch["speech"] = batch["face"][..., : model.config.face_dim], batch["speech"][..., : model.config.speech_dim]
    output = model(**batch, seed=3)
    emc_terms = {"align", "cma_kl", "fusion"} if model.config.emc else set()
    second = {"diversity"} if model.backbone.alternative_weight else set()
    assert set(output.losses) == {"total", "backbone", "emotion", "expression", "pose", "latent_kl"} | emc_terms | second
    expected = output.losses["backbone"] + sum(output.losses[name] for name in emc_terms)
    torch.testing.assert_close(output.losses["total"], expected)
    output.losses["total"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    model.eval()
    seen = reactions(model, holes(batch), seed=3, num_samples=2)
    assert seen.shape == (3, 2, 12, 83)
    assert seen.isfinite().all()
    assert set(model(**batch, seed=3).losses) == {"total", "backbone", "emotion", "expression", "pose", "latent_kl"}


def test_weights_scale_the_terms_of_emc():
    batch = make_batch(targets=True)
    losses = build(train=True, l_align=2.0, l_kl=0.5, l_fusion=3.0)(**batch, seed=1).losses
    expected = losses["backbone"] + 2 * losses["align"] + 0.5 * losses["cma_kl"] + 3 * losses["fusion"]
    torch.testing.assert_close(losses["total"], expected)


def test_paper_sum_is_the_mean_times_the_elements_of_a_clip():
    batch = make_batch(targets=True)
    mean, total = (build(train=True, reduction=how)(**batch, seed=1).losses for how in ("mean", "paper_sum"))
    torch.testing.assert_close(total["align"], mean["align"] * 12 * 16)
    torch.testing.assert_close(total["cma_kl"], mean["cma_kl"] * 12 * 16)
    torch.testing.assert_close(total["fusion"], mean["fusion"] * 16)


# Noise


@pytest.mark.parametrize("options", [{}, {"emc": False}, {"backbone_options": ONLINE}], ids=str)
def test_the_same_seed_gives_the_same_bits_in_training_and_generation(options):
    model = build(train=True, **options)
    batch = make_batch(targets=True)
    first, second, other = (model(**batch, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.reaction_3dmm, second.reaction_3dmm)
    assert all(torch.equal(first.losses[name], second.losses[name]) for name in first.losses)
    assert not torch.equal(first.reaction_3dmm, other.reaction_3dmm)
    model.eval()
    torch.manual_seed(7)
    drawn = reactions(model, batch)
    torch.manual_seed(7)
    assert torch.equal(reactions(model, batch), drawn)
    assert not torch.equal(reactions(model, batch), drawn)


@pytest.mark.parametrize("missing", ["nothing", "face", "speech", "frames"])
@pytest.mark.parametrize("options", [{}, {"cma_prior": "learned"}, {"cma_prior": "mean"}, {"backbone_options": ONLINE}], ids=str)
def test_draw_k_does_not_depend_on_how_many_are_drawn(options, missing):
    model = build(**options)
    batch = make_batch()
    batch = holes(batch) if missing == "frames" else batch | ({missing: None} if missing in batch else {})
    many, few = reactions(model, batch, num_samples=10, seed=6), reactions(model, batch, num_samples=3, seed=6)
    torch.testing.assert_close(many[:, :3], few, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many[:, :1], reactions(model, batch, seed=6), rtol=1e-5, atol=1e-6)
    assert (many[:, 1:] - many[:, :1]).abs().amax((1, 2, 3)).min() > 1e-4


def test_what_stands_before_the_first_draw_is_computed_once(monkeypatch):
    model = build()
    batch = make_batch()
    seen = []
    for name in ("ea_face", "ea_speech", "ea_fused", "ea_sample"):
        module = getattr(model.emc, name)
        module.features.register_forward_hook(lambda m, args, out, name=name: seen.append((name, len(out))))
        module.emotion.register_forward_hook(lambda m, args, out, name=name: seen.append((name + "'s emotion", len(out))))
    reactions(model, batch, num_samples=10, seed=1)
    once = dict.fromkeys(("ea_face", "ea_speech", "ea_fused"), 3) | {
        f"{n}'s emotion": 3 for n in ("ea_face", "ea_speech", "ea_fused", "ea_sample")
    }
    assert dict(seen) == once | {"ea_sample": 30}
    assert len(seen) == 8
    seen.clear()
    reactions(model, batch | {"face": None}, num_samples=10, seed=1)
    assert dict(seen) == once | {"ea_face": 30, "ea_fused": 30, "ea_sample": 30}
    seen.clear()
    model.train()(**make_batch(targets=True), seed=1)
    # Face and speech with their reproductions; three fusions of which two have one emotion; then the second pass.
    first = {"ea_face": 6, "ea_face's emotion": 6, "ea_speech": 6, "ea_speech's emotion": 3}
    first |= {"ea_fused": 9, "ea_fused's emotion": 6, "ea_sample": 3, "ea_sample's emotion": 3}
    assert dict(seen[:8]) == first
    assert {count for _, count in seen[8:]} == {3}


def test_under_its_own_seed_a_clip_does_not_depend_on_its_batch_mates():
    seeds = torch.tensor([11, 12, 13])
    for train in (False, True):
        model = build(train=train)
        batch = holes(make_batch(targets=train))
        together = model(**batch, seed=seeds)
        for index in ([1], [2, 0]):
            alone = model(**rows(batch, index), seed=seeds[index])
            # Matrix products of another size may round otherwise, so this is to tolerance, not to the bit.
            torch.testing.assert_close(alone.reaction_3dmm, together.reaction_3dmm[index], rtol=1e-5, atol=1e-5)
    double = build(double=True)
    batch = holes(make_batch(double=True))
    together = reactions(double, batch, seed=seeds, num_samples=2)
    torch.testing.assert_close(reactions(double, rows(batch, [2]), seed=seeds[2:], num_samples=2), together[2:], rtol=1e-11, atol=1e-12)


def test_one_seed_tells_clips_apart_and_the_first_keeps_it():
    model = build()
    batch = rows(make_batch(), [0, 0, 0])
    seen = reactions(model, batch, seed=4)
    assert (seen[0] - seen[1]).abs().max() > 1e-4
    torch.testing.assert_close(seen[:1], reactions(model, rows(batch, [0]), seed=4), rtol=1e-5, atol=1e-5)


# Missing modalities


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize(
    "options", [{}, {"ea": "add_norm"}, {"emc": False}, {"backbone_options": ONLINE}, {"emotion_source": "mean"}], ids=str
)
def test_what_stands_in_unavailable_frames_changes_no_bit(options, value):
    batch = holes(make_batch())
    model = build(**options)
    assert torch.equal(reactions(model, batch, seed=1, num_samples=2), reactions(model, poisoned(batch, value), seed=1, num_samples=2))

    model.train()
    batch = holes(make_batch(targets=True))
    gradients = []
    for b in (batch, poisoned(batch, value)):
        model.zero_grad()
        b = {n: t.clone().requires_grad_() if n in ("face", "speech") else t for n, t in b.items()}
        model(**b, seed=1).losses["total"].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None] + [b["face"].grad, b["speech"].grad])
        assert all(g.isfinite().all() for g in gradients[-1])
        assert (b["face"].grad[~b["face_available"]] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["face", "speech"])
@pytest.mark.parametrize(
    "options", [{}, {"ea": "none"}, {"emc": False}, {"backbone_options": ONLINE}, {"emotion_source": "per_modality"}], ids=str
)
def test_none_is_a_mask_of_nothing(options, name):
    model, batch = build(**options), make_batch()
    absent = reactions(model, batch | {name: None}, seed=1, num_samples=2)
    nothing = torch.zeros(3, 12, dtype=torch.bool)
    masked = reactions(model, batch | {f"{name}_available": nothing}, seed=1, num_samples=2)
    torch.testing.assert_close(absent, masked, rtol=1e-5, atol=1e-6)


def test_a_mask_of_everything_is_no_mask():
    model, batch = build(), make_batch()
    everything = torch.ones(3, 12, dtype=torch.bool)
    masked = batch | {"face_available": everything, "speech_available": everything, "lengths": torch.tensor([12, 12, 12])}
    assert torch.equal(reactions(model, batch, seed=1, num_samples=2), reactions(model, masked, seed=1, num_samples=2))
    unseen = reactions(model, masked, seed=1, num_samples=2, validate=False)
    torch.testing.assert_close(unseen, reactions(model, batch, seed=1, num_samples=2), rtol=1e-5, atol=1e-6)


def test_compensation_is_used_where_a_frame_is_missing_and_only_there():
    model = build(ea="none")
    batch = make_batch(1)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 4] = False
    streams = []
    model.backbone.fusion.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
    reactions(model, batch, seed=1)
    reactions(model, batch | {"face_available": mask}, seed=1)
    whole, holed = (s[..., :16] for s in streams)
    assert torch.equal(whole[0, mask[0]], holed[0, mask[0]])
    made = model.emc.cma_face.compensate(model.backbone.speech_encoder(batch["speech"]), seed=torch.tensor([1]))
    torch.testing.assert_close(holed[0, 4], made[0, 0, 4])


def test_frames_without_any_stream_are_attended_by_nothing():
    model = build()
    batch = make_batch(1)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 7] = False
    masks = {"face_available": mask, "speech_available": mask}
    attended = []
    model.emc.ea_face.features.register_forward_hook(lambda m, args, kwargs, out: attended.append(kwargs["key_mask"]), with_kwargs=True)
    assert reactions(model, batch | masks, seed=1).isfinite().all()
    assert torch.equal(attended[0], mask)
