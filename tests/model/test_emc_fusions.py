"""Which emotion goes where, the three fusions of training, precision, compilation, learning."""

from pathlib import Path

import pytest
import torch
from model_helpers import build, holes, make_batch, reactions, small

from emc_fast import EMCModel
from emc_fast.config import CHOICES
from emc_fast.nn.emotion import EmotionSources

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
