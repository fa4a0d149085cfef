"""The model as a whole: options, determinism, missing modalities, draws, lengths, gradients."""

from pathlib import Path

import pytest
import torch
from model_helpers import build, frames, make_batch, rows, small

from emc_fast import EMCModel
from emc_fast.config import CHOICES
from emc_fast.nn.emotion import EmotionSources

ONLINE = {"online": True, "window": 4}


def reactions(model, batch, **kwargs):
    with torch.no_grad():
        output = model(**batch, **kwargs)
    return torch.cat((output.reaction_3dmm, output.reaction_emotion), -1)


def holes(batch, *, clips=3, length=12, seed=5):
    """The batch with random frames missing, never both streams of one clip throughout."""
    generator = torch.Generator().manual_seed(seed)
    face = torch.rand(clips, length, generator=generator) < 0.6
    speech = torch.rand(clips, length, generator=generator) < 0.6
    face[:, 0] = True
    speech[:, 1] = True
    return batch | {"face_available": face, "speech_available": speech}


def poisoned(batch, value=float("nan")):
    """The batch with `value` in every frame that is marked unavailable."""
    batch = dict(batch)
    for name in ("face", "speech"):
        missing = ~batch[f"{name}_available"][..., None]
        batch[name] = batch[name].masked_fill(missing, value)
        batch[f"{name}_emotion"] = batch[f"{name}_emotion"].masked_fill(missing, value)
    return batch


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


# Which emotion goes where


def test_emotions_go_where_the_configuration_says():
    face, speech = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None], torch.tensor([10.0, 20.0, 30.0, 40.0])[None, :, None]
    has_face = torch.tensor([[True, True, False, False]])
    has_speech = torch.tensor([[True, False, True, False]])
    sources = EmotionSources(face, speech, has_face, has_speech)

    def values(emotion):
        return emotion.values[0, :3, 0].tolist()

    auto = sources.view("auto")
    assert values(auto.face) == values(auto.speech) == values(auto.fused) == [1, 2, 30]
    assert auto.fused.mask.tolist() == [[True, True, True, False]]
    mean = sources.view("mean")
    assert values(mean.face) == [5.5, 2, 30]
    own = sources.view("per_modality")
    assert (values(own.face), values(own.speech), values(own.fused)) == ([1, 2, 30], [10, 2, 30], [1, 2, 30])
    for source in CHOICES["emotion_source"]:
        assert values(sources.without_face(source).face) == [10, 2, 30]
        assert values(sources.without_face(source).fused) == [10, 2, 30]
        assert values(sources.without_speech(source).speech) == [1, 2, 30]
    assert sources._replace(face=None, has_face=torch.zeros_like(has_face)).view("mean").face.values is speech


def test_without_the_faces_emotion_speechs_serves():
    model, batch = build(), make_batch()
    batch["face_emotion"] = None
    seen = reactions(model, batch, seed=1)
    assert not torch.equal(seen, reactions(model, batch | {"speech_emotion": batch["speech_emotion"] + 1}, seed=1))


def test_the_emotion_of_a_missing_stream_is_not_used():
    model, batch = build(), make_batch() | {"face": None}
    assert torch.equal(reactions(model, batch, seed=1), reactions(model, batch | {"face_emotion": None}, seed=1))


# The three fusions


@pytest.mark.parametrize(("how", "distinct"), [("sample", 3), ("batch", 1), ("real", 1)])
def test_fusions_are_picked_per_clip_per_batch_or_not(how, distinct):
    from emc_fast.nn.inputs import prepare
    from emc_fast.nn.noise import resolve_seed
    from emc_fast.pipeline import Pass

    model = build(fusion_pick=how, train=True)
    clips = 60
    nothing = dict.fromkeys(("face_available", "speech_available", "lengths", "target_3dmm", "target_emotion", "target_available"))
    inputs = prepare(model.config, **make_batch(clips, 2), **nothing, training=True, validate=True)
    picks = [Pass(model, inputs, 1, resolve_seed(seed, clips, inputs.device), learn=True).pick for seed in range(12)]
    assert all(pick.unique().numel() == distinct for pick in picks)
    counts = torch.bincount(torch.cat(picks), minlength=3)
    if how == "real":
        assert counts.tolist() == [12 * clips, 0, 0]
    elif how == "sample":
        assert (counts / (12 * clips) - 1 / 3).abs().max() < 0.06
    else:
        assert (counts > 0).all()
    assert torch.equal(picks[0], Pass(model, inputs, 1, resolve_seed(0, clips, inputs.device), learn=True).pick)


def test_a_clip_goes_on_with_the_distribution_of_its_fusion():
    model = build(train=True, dropout=0.0)
    batch = make_batch(16, 5, targets=True)
    stacked = []
    original = model.backbone.distribution

    def spy(fused, **kwargs):
        result = original(fused, **kwargs)
        stacked.append(result)
        return result

    model.backbone.distribution = spy
    output = model(**batch, seed=3)
    mu = torch.stack(stacked[0].mu.chunk(3))
    same = (mu == output.distribution[0].mu).all(-1).squeeze(-1)
    assert (same.sum(0) == 1).all()
    assert same.any(1).all()
    # The second pass computes the picked fusion alone; without noise in its way it would be the same distribution.
    assert stacked[1].mu.shape == (16, 1, 16)


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


# Precision, compilation


def test_under_autocast_losses_and_gradients_are_finite_and_near():
    batch = make_batch(targets=True)
    full = build(train=True, dropout=0.0)(**batch, seed=1).losses
    model = build(train=True, dropout=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(**holes(batch), seed=1).losses
        near = model(**batch, seed=1).losses
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    for name, value in full.items():
        assert near[name].item() == pytest.approx(value.item(), rel=0.1, abs=0.02), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_reacts(dtype):
    model = build().to(dtype)
    batch = {n: t.to(dtype) for n, t in make_batch().items()}
    seen = reactions(model, batch | {"face": None}, seed=1, num_samples=2)
    assert seen.dtype == dtype
    torch.testing.assert_close(seen.float(), reactions(build(), make_batch() | {"face": None}, seed=1, num_samples=2), rtol=0.2, atol=0.2)


def test_the_model_is_one_graph():
    model = build()
    batch = holes(make_batch()) | {"lengths": torch.tensor([12, 9, 5])}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    seed = torch.tensor([1, 2, 3])
    expected, actual = (m(**batch, seed=seed, num_samples=2, validate=False) for m in (model, compiled))
    torch.testing.assert_close(actual.reaction_3dmm, expected.reaction_3dmm)


def test_gradients_of_a_tiny_model_are_right():
    model = build(double=True, train=True, dropout=0.0, d_model=4, num_heads=2, backbone_options={"div_p": 1.0})
    batch = make_batch(1, 3, targets=True, double=True)

    def loss(face, weight, _):
        return model(**batch | {"face": face}, seed=2).losses["total"]

    face = batch["face"].requires_grad_()
    weight = model.backbone.fusion.weight
    bias = model.emc.cma_speech.to_features.bias
    # Reductions and KL terms are float32 by contract, hence the step and the tolerance.
    assert torch.autograd.gradcheck(loss, (face, weight, bias), eps=1e-3, atol=5e-3, rtol=5e-3, fast_mode=True, nondet_tol=0.0)


@pytest.mark.parametrize("options", [{}, {"emc": False}], ids=str)
def test_a_few_steps_learn_a_batch(options):
    model = build(train=True, dropout=0.0, backbone_options={"div_p": 0.0}, **options)
    batch = make_batch(2, 6, targets=True)
    for encoder in (model.backbone.face_encoder, model.backbone.speech_encoder):
        encoder.requires_grad_(False)  # else what is to be reproduced moves
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = model(**batch, seed=step).losses
        loss["total"].backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in loss.items()})
    assert losses[-1]["backbone"] < 0.8 * losses[0]["backbone"]
    assert "align" not in losses[0] or losses[-1]["align"] < losses[0]["align"]


def test_the_documents_example_runs():
    text = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["output"].reaction_3dmm.shape == (1, 10, 250, 58)
    assert names["output"].reaction_emotion.shape == (1, 10, 250, 25)


def test_a_configuration_may_be_given_as_a_mapping():
    assert EMCModel(small().to_dict()).config == small()
