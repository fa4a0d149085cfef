"""FaceAIS through every path of EMC, its losses and its tokenizer's stage."""

import json

import pytest
import torch
from faceais_helpers import BLOCK, CONTEXT, SMALL, faceais
from model_helpers import frames, holes, make_batch, poisoned, reactions, rows

from emc_fast import EMCConfig, EMCModel
from emc_fast.backbones.base import Past, Reaction

VARIANTS = [
    {},
    {"emc": False},
    {"causal": True, "window": 3},
    {"ea": "none"},
    {"ea": "add_norm", "options": SMALL | {"speaker": "past"}},
    {"reduction": "paper_sum", "emotion_source": "per_modality", "options": SMALL | {"speaker": "past"}},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: " ".join(o))
def test_it_trains_and_reacts(options):
    model = faceais(train=True, **options)
    batch = holes(make_batch(3, 12, targets=True))
    output = model(**batch, seed=1, lengths=torch.tensor([12, 9, 6]))
    emc = model.config.emc
    assert set(output.losses) == {"total", "backbone", "cross_entropy", "face", "emotion"} | (
        {"align", "cma_kl", "fusion"} if emc else set()
    )
    output.losses["total"].backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.values())
    assert not any("tokenizer" in n for n in learning)
    assert bool(output.losses["backbone"] > output.losses["cross_entropy"]) is (emc and model.config.ea != "none")
    model.eval()
    given = {n: t for n, t in batch.items() if not n.startswith("target")}
    many, few = (reactions(model, given, seed=1, num_samples=k) for k in (4, 2))
    assert many.shape == (3, 4, 12, 83)
    torch.testing.assert_close(many[:, :2], few, rtol=1e-4, atol=1e-5)
    assert (many[:, 1:] != many[:, :1]).flatten(2).any(-1).all()
    for missing in ("face", "speech"):
        gone = {n: t for n, t in given.items() if not n.startswith(missing)} | {missing: None}
        assert reactions(model, gone, seed=1, num_samples=2).isfinite().all()
        with torch.no_grad():
            with_it, without = (model(**inputs, seed=1).distribution[-1].logits for inputs in (given, gone))
        assert (with_it - without).abs().max() > 1e-3


@pytest.mark.parametrize(("emc", "speaker"), [(True, "patch"), (True, "past"), (False, "patch")])
def test_padding_and_batch_mates_change_nothing(emc, speaker):
    model = faceais(emc=emc, options=SMALL | {"speaker": speaker})
    batch = make_batch(3, 14)
    batch = holes(batch, length=14) if emc else batch
    seeds, lengths = torch.tensor([1, 2, 3]), torch.tensor([14, 10, 3])
    together = reactions(model, batch, lengths=lengths, seed=seeds, num_samples=2)
    for row, length in enumerate(lengths.tolist()):
        alone = reactions(model, frames(rows(batch, [row]), length), seed=seeds[row : row + 1], num_samples=2)
        torch.testing.assert_close(together[row : row + 1, :, :length], alone, rtol=1e-4, atol=1e-5)
        assert (together[row, :, length:] == 0).all()


def test_what_stands_in_missing_frames_changes_no_bit():
    model = faceais()
    batch = holes(make_batch(3, 12))
    assert torch.equal(reactions(model, batch, seed=3), reactions(model, poisoned(batch), seed=3))
    model.train()
    targets = {f"target_{n}": t for n, t in (("3dmm", torch.randn(3, 12, 58)), ("emotion", torch.randn(3, 12, 25)))}
    for known in (batch, poisoned(batch)):
        model.zero_grad()
        model(**known, **targets, seed=3).losses["total"].backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if known is batch:
            expected = grads
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_a_patch_sees_the_speaker_to_its_end_or_to_its_beginning():
    batch, changed = (make_batch(1, 16) for _ in range(2))
    changed["face"][:, 8:] += 5
    changed["speech"][:, 8:] += 5
    for speaker, same in (("patch", 2), ("past", 3)):
        model = faceais(emc=False, options=SMALL | {"speaker": speaker, "top_k": 1})
        results = [model(b["face"], b["speech"], seed=1).distribution for b in (batch, changed)]
        equal = [torch.equal(a.logits, b.logits) for a, b in zip(*results, strict=True)]
        assert equal == [True] * same + [False] * (4 - same)


def test_the_loss_is_the_likelihood_of_the_listeners_own_tokens():
    """In evaluation too the past is the target, and each frame of the target counts once under what came before it."""
    model = faceais(emc=False)
    batch = make_batch(2, 10, targets=True)
    output = model(**batch, seed=1)
    tokenizer = model.backbone.tokenizer
    tokens = tokenizer.tokens(batch["target_3dmm"])
    logits = torch.cat([z.logits[:, 0] for z in output.distribution], 1)
    torch.testing.assert_close(output.losses["cross_entropy"], torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    assert torch.equal(output.losses["backbone"], output.losses["cross_entropy"])
    other = batch | {"target_3dmm": batch["target_3dmm"].clone()}
    other["target_3dmm"][:, 4:8] += 5
    changed = torch.cat([z.logits[:, 0] for z in model(**other, seed=1).distribution], 1)
    assert torch.equal(logits[:, :8], changed[:, :8])
    assert (logits[:, 8:] != changed[:, 8:]).any()


def test_a_part_of_the_past_is_hidden_in_training_only_and_alike_for_every_fusion():
    model = faceais(options=SMALL | {"past_mask_p": 0.5})
    backbone = model.backbone
    past = Past(torch.zeros(64, 12, 58), torch.zeros(64, 12, 25), torch.zeros(64, 12, 3))
    seeds = torch.arange(64)
    assert backbone.limit_past(past, seed=seeds) is past
    model.train()
    mask = backbone.limit_past(past, seed=seeds).mask
    shown = mask.sum(1)
    assert torch.equal(mask, torch.arange(12) >= 12 - shown[:, None])  # always the last ones
    whole = (shown == 12).sum()
    assert 20 < whole < 44
    assert set(shown[shown < 12].tolist()) == set(range(1, CONTEXT + 1))
    # with masks of their own the three fusions would differ even where their streams do not
    model = faceais(train=True, dropout=0.0, options=SMALL | {"past_mask_p": 1.0})
    with torch.no_grad():
        for module in (model.emc.cma_face, model.emc.cma_speech):
            for parameter in module.parameters():
                parameter.zero_()
        for name in ("encode_face", "encode_speech"):
            setattr(model.backbone.speaker, name, lambda x, mask, seed: torch.zeros(*x.shape[:2], 16))
    batch = make_batch(3, 12, targets=True)
    batch["speech_emotion"] = torch.zeros_like(batch["speech_emotion"])
    model.emc.emotion_mlp.requires_grad_(False).apply(lambda m: [p.zero_() for p in m.parameters(recurse=False)])
    assert model(**batch, seed=1).losses["fusion"].abs() < 1e-9


def test_s_ea_reaches_the_decoders_and_begins_as_the_original():
    model = faceais()
    batch, seeds = make_batch(2, 8), torch.tensor([5, 6])
    model.backbone.refine.weight.data.zero_()
    model.backbone.refine.bias.data.zero_()
    before = reactions(model, batch, seed=seeds)
    tokens = [
        z.draw(1, top_k=512, temperature=1.0, seed=seeds, frame_offset=BLOCK * i)[0][:, 0]
        for i, z in enumerate(model(**batch, seed=seeds).distribution)
    ]
    tokenizer = model.backbone.tokenizer
    plain = tokenizer.decode(tokenizer.embed(tokenizer.quantizer.from_indices(torch.cat(tokens, 1))))
    torch.testing.assert_close(before[:, 0], torch.cat(plain, -1))
    # Not one constant: it would read the sum of a LayerNorm's output, which is nothing but rounding.
    torch.nn.init.normal_(model.backbone.refine.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(reactions(model, batch, seed=seeds), before)
    fresh = EMCModel(model.config).backbone.refine
    assert not fresh.weight.any()
    assert not fresh.bias.any()


@pytest.mark.parametrize(
    ("fields", "options", "fault"),
    [
        ({"face_dim": 128}, {}, "own tokenizer"),
        ({"input": "image"}, {}, "own tokenizer"),
        ({"speech_dim": 77}, {"speech_factor": 2}, "speech_factor must divide"),
        ({}, {"context": 10}, "multiple of block"),
        ({}, {"levels": [8, 8]}, "64 codes"),
        ({}, {"levels": [1]}, "levels"),
        ({}, {"temperature": 0}, "top_k=1"),
        ({}, {"past_mask_p": 2}, "past_mask_p"),
        ({}, {"cross_reads": "some"}, "cross_reads"),
        ({}, {"speaker": "future"}, "speaker"),
        ({}, {"gate_start": -1}, "gate_start"),
        ({}, {"layers": 0}, "layers"),
        ({}, {"tokenizer_heads": 5}, "tokenizer_heads"),
    ],
)
def test_bad_options_are_named(fields, options, fault):
    with pytest.raises(ValueError, match=fault):
        faceais(options=SMALL | options, **fields)


def test_gates_begin_closed_as_published_or_where_they_are_told():
    """Closed, the predictor hears no speech and sees nobody, whatever else it learns."""
    batch = make_batch(2, 8)
    other = batch | {"speech": batch["speech"] + 1}
    for start in (0.0, 1.0):
        torch.manual_seed(0)
        model = EMCModel(
            EMCConfig(backbone="faceais", emc=False, d_model=16, num_heads=2, backbone_options=SMALL | {"gate_start": start})
        ).eval()
        gates = [p for n, p in model.named_parameters() if n.endswith("gate")]
        assert [g.item() for g in gates] == [start] * 2
        before, after = (model(**given, seed=1).distribution[0].logits for given in (batch, other))
        assert torch.equal(before, after) is (start == 0)


def test_a_configuration_comes_back_from_json_as_it_was():
    model = faceais()
    again = EMCConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert again == model.config
    assert again.digest() == model.config.digest()


def test_the_tokenizer_learns_and_then_its_decoder_of_emotion_alone():
    model = faceais(emc=False, options=SMALL | {"tokenizer_width": 24}).train()
    backbone = model.backbone
    assert not backbone.tokenizer.training
    target = Reaction(torch.randn(4, 10, 58), torch.rand(4, 10, 25))
    mask = torch.arange(10) < torch.tensor([10, 8, 4, 3])[:, None]
    model.requires_grad_(False)
    for parameter in backbone.stage_parameters("tokenizer"):
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    totals = []
    for step in range(30):
        optimizer.zero_grad()
        losses = backbone.stage_loss("tokenizer", target, mask=mask, progress=0.0, seed=torch.arange(4) + 100 * step)
        losses["total"].backward()
        assert all(p.grad is not None for p in backbone.tokenizer.parameters())
        optimizer.step()
        totals.append(float(losses["total"].detach()))
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])
    torch.testing.assert_close(losses["total"], losses["face"] + losses["emotion"])
    optimizer.zero_grad()
    late = backbone.stage_loss("tokenizer", target, mask=mask, progress=0.8, seed=torch.arange(4))
    late["total"].backward()
    assert torch.equal(late["total"], late["emotion"])
    learned = {id(p) for p in backbone.tokenizer.emotion_parameters()}
    assert all((p.grad is not None) is (id(p) in learned) for p in backbone.tokenizer.parameters())
    with pytest.raises(ValueError, match="no stage 'other'"):
        backbone.stage_loss("other", target, mask=mask, progress=0.0, seed=None)
