"""REGNN against the released network, its training, and what it owes to EMC."""

import pytest
import torch
from model_helpers import holes, make_batch, poisoned, rows
from published_regnn import PublishedREGNN, published_loss
from regnn_helpers import FACE, D, W, regnn, with_listeners

from emc_fast import EMCConfig, EMCModel, ops
from emc_fast.backbones.regnn_graph import kept_edges
from emc_fast.errors import CheckpointError, DataError
from emc_fast.ops import streams

# Against the release


def test_parameter_count_is_the_released_one():
    published = sum(p.numel() for p in PublishedREGNN().parameters())
    assert published == 2_233_171
    unused = 128 * 128 + 6 * 2 * (50 * 50 + 50) + 2 * 50 * 50 + 50  # an unused projection, the mixture head, an unused linear flow
    model = EMCModel(EMCConfig(backbone="regnn", emc=False, face_dim=768, speech_dim=128))
    head = sum(p.numel() for p in model.backbone.coefficient_head.parameters())
    assert sum(p.numel() for p in model.parameters()) - head == published - unused


def pair(rule="union"):
    """The model and the released one with the same random weights, loaded through the released names."""
    sizes = {"face": FACE, "d": D, "heads": 2, "depth": 2, "width": W, "channels": 3, "rule": rule}
    published = PublishedREGNN(**sizes).double().eval()
    for name, parameter in published.named_parameters():
        if name.endswith("attn_1.w"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    options = {"mask": rule, "inverse_iterations": 30, "perceptual_layers": 2}
    model = regnn(emc=False, face_dim=FACE, speech_dim=D, dropout=0.0, options=options).double()
    model.load_official_regnn({"module." + name: tensor for name, tensor in published.state_dict().items()})
    return model, published


def streams_of(clips, length=W):
    generator = torch.Generator().manual_seed(6)
    return (torch.randn(clips, length, n, generator=generator, dtype=torch.float64) for n in (FACE, D))


@pytest.mark.parametrize("rule", ["union", "row"])
def test_graph_edges_and_reaction_are_the_released_ones(rule):
    model, published = pair(rule)
    face, speech = streams_of(3)
    seed = torch.tensor([4, 5, 6])
    noise = ops.philox_normal((3, 2, W, 25), seed, stream=streams.LATENT, dtype=torch.float64)
    with torch.no_grad():
        graph, edges = published(face, speech)
        output = model(face, speech, seed=seed, num_samples=2)
        drawn = graph[:, None].mT + noise * 0.06**0.5 / noise.abs().amax((-2, -1), keepdim=True)
        reaction = [published.motor_processor.inverse(drawn[:, k].mT, edges).mT for k in range(2)]
    torch.testing.assert_close(output.distribution[0].mu[:, 0], graph.mT, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(output.distribution[0].edges[:, 0], edges, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(output.reaction_emotion, torch.stack(reaction, 1), rtol=1e-7, atol=1e-8)


def test_loss_and_gradients_are_the_released_ones():
    model, published = pair()
    face, speech = streams_of(4)
    batch = with_listeners(make_batch(4, W, targets=True, double=True))
    batch["face"], batch["speech"] = face, speech
    counts = [3, 1, 2, 3]
    there = torch.arange(3) < torch.tensor(counts)[:, None, None]
    listeners = [list(g[:, :n].permute(1, 2, 0)) for g, n in zip(batch["appropriate_emotion"], counts, strict=True)]
    graph, edges = published(face, speech)
    nearest = published_loss(published, graph, edges, listeners, 0)[0]
    model.train()
    for threshold in (0.0, nearest.item()):  # of the four clips some are below their mean
        model.backbone.threshold.fill_(threshold)
        loss = model(**batch, appropriate_available=there.expand(-1, W, -1), seed=1).losses
        graph, edges = published(face, speech)
        nearest, mid = published_loss(published, graph, edges, listeners, threshold)
        torch.testing.assert_close(torch.stack([loss["nearest"], loss["mid"]]), torch.stack([nearest, mid]), rtol=1e-7, atol=1e-9)
        published.zero_grad()
        model.zero_grad()
        (nearest + mid).backward()
        (loss["nearest"] + loss["mid"]).backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in published.named_parameters()}
        buffers = dict(published.named_buffers())
        expected = model.backbone.map_official(gradients | buffers)
        for name, parameter in model.backbone.named_parameters():
            if not name.startswith("coefficient_head"):
                torch.testing.assert_close(
                    parameter.grad, expected[name], rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
                )


def test_released_weights_of_another_shape_are_refused_by_name():
    released = PublishedREGNN(face=FACE, d=D, heads=2, depth=1, width=W, channels=3).state_dict()
    fields = {"emc": False, "face_dim": FACE, "speech_dim": D}
    with pytest.raises(CheckpointError, match=r"lacks .*trans_v_mem.layers.1.*'perceptual_layers'"):
        regnn(options={"perceptual_layers": 2}, **fields).load_official_regnn(released)
    with pytest.raises(CheckpointError, match=r"face_projection.weight is \(16, 12\) and should be \(16, 58\)"):
        regnn(emc=False, speech_dim=D).load_official_regnn(released)
    with pytest.raises(CheckpointError, match="set speech_dim=16"):
        regnn(emc=False, face_dim=FACE).load_official_regnn(released)
    with pytest.raises(CheckpointError, match=r"has unknown something.new"):
        regnn(**fields).load_official_regnn(released | {"something.new": torch.zeros(1)})
    model = regnn(**fields)
    model.load_official_regnn(released)
    assert all(norm.initialised for norm in model.backbone.motor.norms)  # what was trained does not begin anew


def test_masks():
    strength = torch.rand(2, 25, 25, generator=torch.Generator().manual_seed(1))
    strength[0, :, :6] += torch.arange(6.0)  # all rows agree on 1 to 5
    union, row = kept_edges(strength, 5, "union"), kept_edges(strength, 5, "row")
    eye = torch.eye(25, dtype=torch.bool)
    expected = torch.zeros(25, dtype=torch.bool)
    expected[1:6] = True
    assert torch.equal(union[0], expected.expand(25, 25) | eye)
    assert torch.equal(row[0], union[0])
    assert (row.sum(-1) <= 6).all()
    assert (row.sum(-1) >= 5).all()
    assert torch.equal(union[1], row[1].masked_fill(eye, False).any(0).expand(25, 25) | eye | union[1])
    assert (union | row).equal(union)


# Training


@pytest.mark.parametrize(
    "fields",
    [
        {"emc": False},
        {},
        {"ea": "none"},
        {"ea": "add_norm"},
        {"causal": True, "window": 4, "norm": "pre"},
        {"emotion_source": "per_modality", "cma_prior": "learned"},
        {"reduction": "paper_sum", "fusion_pick": "batch", "emotion_source": "mean"},
    ],
    ids=str,
)
def test_it_trains_and_reacts_with_every_option(fields):
    model = regnn(train=True, **fields)
    batch = poisoned(holes(make_batch(3, 17, targets=True), length=17)) | {"lengths": torch.tensor([17, 12, 6])}
    batch = with_listeners(batch)
    there = torch.rand(3, 17, 3, generator=torch.Generator().manual_seed(8)) < 0.95
    there[:, :, 0] = True
    batch |= {"appropriate_available": there, "appropriate_emotion": batch["appropriate_emotion"].masked_fill(~there[..., None], torch.nan)}
    output = model(**batch, seed=1)
    own = {"total", "backbone", "nearest", "mid", "coefficients"}
    assert set(output.losses) == own | ({"align", "cma_kl", "fusion"} if model.config.emc else set())
    output.losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not output.reaction_emotion.requires_grad
    model.eval()
    for missing in ({"face": None}, {"speech": None}, {}):
        given = {n: t for n, t in batch.items() if n.split("_")[0] not in missing} | missing
        output = model(**given, seed=1, num_samples=3)
        assert set(output.losses) == {"total", "backbone", "emotion", "coefficients"}
        assert output.reaction_emotion.shape == (3, 3, 17, 25)
        assert output.reaction_3dmm.isfinite().all()
        assert (output.reaction_emotion[:, 1:] - output.reaction_emotion[:, :1]).abs().amax((1, 2, 3)).min() > 1e-3


def test_with_a_modality_missing_the_draws_differ_by_its_compensation_too():
    model = regnn(options={"noise": 0.0})
    batch = make_batch(2, W) | {"face": None}
    assert (model(**batch, seed=1, num_samples=2).reaction_emotion.diff(dim=1).abs() > 1e-4).any()
    assert model(**make_batch(2, W), seed=1, num_samples=2).reaction_emotion.diff(dim=1).abs().max() < 1e-6


def test_emotion_reaches_the_fused_sequence_and_the_sample():
    model = regnn()
    batch = make_batch(2, W)
    before = model(**batch, seed=1)
    assert (model.emc.sample_out.weight == 0).all()  # an untrained S-EA leaves the draw as it is
    torch.nn.init.normal_(model.emc.sample_out.weight)
    after = model(**batch, seed=1)
    torch.testing.assert_close(after.distribution[0].mu, before.distribution[0].mu)
    assert (after.reaction_emotion - before.reaction_emotion).abs().max() > 0.1
    other = model(**batch | {"face_emotion": batch["face_emotion"] + 1}, seed=1)
    assert (other.distribution[0].mu - after.distribution[0].mu).abs().max() > 1e-4
    assert model.emc.ea_fused.features.query.in_features == D // 2


def test_training_reduces_the_loss():
    for emc in (False, True):
        model = regnn(train=True, emc=emc, dropout=0.0)
        batch = with_listeners(make_batch(4, W, targets=True))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        losses = []
        for step in range(16):
            optimizer.zero_grad()
            loss = model(**batch, seed=step, validate=False).losses
            loss["total"].backward()
            optimizer.step()
            losses.append({name: float(value.detach()) for name, value in loss.items()})
        assert losses[-1]["nearest"] < 0.5 * losses[0]["nearest"]
        assert losses[-1]["coefficients"] < losses[0]["coefficients"]
        model.eval()(**batch, seed=1)  # and the inverse still comes to its end


def test_without_listeners_the_target_is_the_only_one():
    model = regnn(train=True, dropout=0.0)
    batch = make_batch(3, 17, targets=True)
    batch["target_available"] = torch.ones(3, 17, dtype=torch.bool)
    batch["target_available"][0, 3] = False  # so that the first windows of clip 0 have no listener
    batch["target_emotion"] = batch["target_emotion"].masked_fill(~batch["target_available"][..., None], torch.nan)
    with_own = {"appropriate_emotion": batch["target_emotion"][:, :, None], "appropriate_available": batch["target_available"][..., None]}
    first = model(**batch, seed=1).losses
    second = model(**batch, **with_own, seed=1).losses
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["nearest"] > 0


def test_windows_without_any_listener_do_not_count():
    model = regnn(train=True, dropout=0.0)
    batch = make_batch(2, W, targets=True)
    there = torch.ones(2, W, dtype=torch.bool)
    model(**batch, seed=1)  # ActNorm has begun
    both = model(**batch, target_available=there, seed=torch.tensor([1, 2])).losses["nearest"]
    ones = [model(**rows(batch, [b]), seed=torch.tensor([b + 1])).losses["nearest"] for b in range(2)]
    torch.testing.assert_close(both, torch.stack(ones).mean())
    there[1, 4] = False
    torch.testing.assert_close(model(**batch, target_available=there, seed=torch.tensor([1, 2])).losses["nearest"], ones[0])
    none = model(**batch, target_available=there & False, seed=1).losses
    assert none["nearest"] == none["mid"] == none["coefficients"] == 0


def test_the_threshold_follows_the_epochs_and_is_saved(tmp_path):
    model = regnn(train=True, dropout=0.0)
    batch = make_batch(2, W, targets=True)
    before = model(**batch, seed=1).losses["nearest"].detach()
    model.backbone.end_epoch({"nearest": 6 * float(before)})
    assert model.backbone.threshold == pytest.approx(2 * float(before))
    assert model(**batch, seed=1).losses["nearest"] < before
    model.save_pretrained(tmp_path)
    again = EMCModel.from_pretrained(tmp_path)
    assert again.backbone.threshold == model.backbone.threshold
    assert again.backbone.motor.norms[1].initialised


def test_mixed_precision_leaves_the_motor_in_float32():
    model = regnn(train=True)
    batch = with_listeners(make_batch(2, 12, targets=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch, seed=1)
    output.losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = model(**batch, seed=1)
    assert model.backbone.residual < 1e-4


def test_bad_settings_are_named():
    for options, text in (
        ({"mask": "all"}, "'mask'.*'union' or 'row'; got 'all'"),
        ({"stride": 60}, "'stride'.*at most the window of 50 frames; got 60"),
        ({"neighbours": 26}, "'neighbours'.*at most the 25 nodes"),
        ({"noise": -1}, "'noise'.*not negative; got -1"),
        ({"window": 2.5}, "'window'.*positive integer; got 2.5"),
        ({"embedding_dropout": 1}, "'embedding_dropout'.*below 1"),
    ):
        with pytest.raises(ValueError, match=text):
            EMCConfig(backbone="regnn", backbone_options=options)
    with pytest.raises(ValueError, match="divisible by 4 and by twice num_heads; got 16 with 16 heads"):
        EMCModel(EMCConfig(backbone="regnn", d_model=16, num_heads=16))
    with pytest.raises(ValueError, match="reads features"):
        EMCModel(EMCConfig(backbone="regnn", input="image"))
    model, batch = regnn(train=True), with_listeners(make_batch(2, 6, targets=True))
    for change, text in (
        ({"appropriate_emotion": batch["appropriate_emotion"][..., :10]}, r"appropriate_emotion takes a shape \(B, T, size, 25\)"),
        ({"appropriate_available": torch.ones(2, 6, 2).bool()}, r"appropriate_available \(2, 6, 2\) goes with .*\(2, 6, 3, 25\)"),
        ({"appropriate_emotion": batch["appropriate_emotion"].log() * torch.inf}, "appropriate_emotion has NaN or Inf.*sample 0, frame 0"),
    ):
        with pytest.raises(DataError, match=text):
            model(**batch | change, seed=1)
