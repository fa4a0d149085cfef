"""REGNN against the released network, and what it owes to EMC."""

import copy

import pytest
import torch
from model_helpers import build, frames, holes, make_batch, poisoned, rows
from published_regnn import PublishedREGNN, published_loss

from emc_fast import EMCConfig, EMCModel, ops, pipeline
from emc_fast.backbones.regnn import hold
from emc_fast.backbones.regnn_graph import ActNorm, GraphFlow, MotorProcessor, kept_edges, spectral_norm
from emc_fast.errors import CheckpointError, ConvergenceError, DataError
from emc_fast.ops import streams

D, W, STRIDE, FACE = 16, 10, 5, 12
SMALL = {"window": W, "stride": STRIDE, "perceptual_layers": 1, "channels": 3, "embedding_dropout": 0.0}


def regnn(*, options=None, **fields):
    return build(backbone="regnn", backbone_options=SMALL | (options or {}), **fields)


def with_listeners(batch, count=3, seed=3):
    shape = (*batch["target_emotion"].shape[:2], count, 25)
    other = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=batch["target_emotion"].dtype)
    return batch | {"appropriate_emotion": other}


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


# The motor processor


def motor_case(window=50, channels=8, *, scale=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        motor = MotorProcessor(nodes=25, window=window, channels=channels, layers=2)
        for flow in motor.flows:
            flow.query_key.weight.data *= scale
            flow.query_key.bias.data *= scale
            torch.nn.init.uniform_(flow.channel_weight, 0.5, 1.5)
        edges = torch.rand(4, channels, 25, 25)
        edges = motor.log_edges(edges * (edges > 0.6))
        x = torch.rand(4, 25, window)
        motor(x, edges, motor.divisors(), counted=torch.ones(4, 1, 1, dtype=torch.bool))  # ActNorm takes its beginning
    return motor.requires_grad_(False), edges, x


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_motor_is_invertible(scale):
    motor, edges, x = motor_case(scale=scale)
    divisors = motor.divisors()
    graph = motor(x, edges, divisors)
    back, residual = motor.inverse(graph, edges, divisors, iterations=5)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(motor(back, edges, divisors), graph, rtol=0, atol=1e-4)
    assert residual < 1e-4
    assert not torch.allclose(graph, motor.norms[1](motor.norms[0](x)), atol=1e-2)  # there is something to invert


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_spectral_norm(dtype):
    torch.manual_seed(4)
    cases = [
        torch.randn(7, 50, 50),
        torch.eye(50)[None],
        1e-6 * torch.randn(1, 50, 50),
        1e6 * torch.randn(1, 50, 1) @ torch.randn(1, 1, 50),
    ]
    cases.append(torch.linalg.qr(torch.randn(50, 50)).Q[None] * torch.linspace(0.999, 1, 50))  # singular values close together
    matrices = torch.cat(cases).to(dtype)
    truth = torch.linalg.matrix_norm(matrices.double(), 2)
    torch.testing.assert_close(spectral_norm(matrices).double(), truth, rtol=2e-6 if dtype == torch.float32 else 1e-13, atol=0)
    assert spectral_norm(torch.zeros(50, 50, dtype=dtype)) < 1e-12
    assert spectral_norm(torch.randn(1, 1, dtype=dtype)).isfinite()


V1, V2 = (torch.tensor(pattern, dtype=torch.float64) / 8**0.5 for pattern in ([1, -1] * 4, [1, 1, -1, -1] * 2))


def crossed(flow, size):
    """Weights W_q = size u v1^T and W_k = size u v2^T with v1 and v2 at right angles: W_q W_k^T is 0, W_k^T W_q is not."""
    u = torch.ones(8, dtype=torch.float64) / 8**0.5
    flow.query_key.weight.data = size * torch.cat((torch.outer(u, V1), torch.outer(u, V2)))
    flow.query_key.bias.data.zero_()


def poles():
    """Nodes at two corners of the box of signals, as seen by the keys; the queries are all 0 there, so attention is even."""
    signal = 0.634 + 0.3 * 8**0.5 * V2 * torch.tensor([1.0, -1.0] * 12 + [1.0], dtype=torch.float64)[:, None]
    logit = signal.logit()
    return torch.where(logit > 0, logit, torch.log1p(logit.clamp(max=0)))


def slope(flow, x, edges, divisor):
    """Of f at x, in the norm max_i |x_i|: at most the largest sum of a row of blocks."""
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.update(x, edges, divisor), x, vectorize=True)
    return torch.linalg.matrix_norm(jacobian.transpose(1, 2), 2).sum(-1).max()


@pytest.mark.parametrize("size", [1.0, 6.0, 40.0, 1000.0])
def test_it_contracts_whatever_the_weights(size):
    torch.manual_seed(2)
    for weights in ("crossed", "random"):
        flow = GraphFlow(8, 3).double().requires_grad_(False)
        if weights == "crossed":
            crossed(flow, size)
        else:
            torch.nn.init.normal_(flow.query_key.weight, std=size)
            torch.nn.init.normal_(flow.query_key.bias, std=size)
            flow.channel_weight.data = torch.tensor([[2.0, -0.5, 1.0]], dtype=torch.float64)
        divisor = flow.divisor()
        edges = MotorProcessor.log_edges(torch.rand(3, 25, 25, dtype=torch.float64))
        for x in (poles(), poles() + 0.3 * torch.randn(25, 8), 2 * torch.randn(25, 8, dtype=torch.float64)):
            assert slope(flow, x, edges, divisor) <= GraphFlow.CONTRACTION
        y = x = torch.randn(2, 25, 8, dtype=torch.float64)
        for _ in range(300):
            x = y - flow.update(x, edges, divisor)
        torch.testing.assert_close(x + flow.update(x, edges, divisor), y, rtol=0, atol=1e-9)


def test_the_released_divisor_alone_is_no_bound():
    flow = GraphFlow(8, 1).double().requires_grad_(False)
    edges = MotorProcessor.log_edges(torch.ones(1, 25, 25, dtype=torch.float64))
    crossed(flow, 40.0)
    assert slope(flow, poles(), edges, torch.tensor(6.0)) > 1  # 6 = |I| + 5
    assert flow.divisor() > 6
    crossed(flow, 0.1)
    torch.testing.assert_close(flow.divisor(), torch.tensor(6.0, dtype=torch.float64))  # where that is enough, it is the released one


def test_an_inverse_that_does_not_end_is_an_error_that_says_what_to_do():
    model = regnn(options={"inverse_iterations": 1, "inverse_tolerance": 1e-6})
    batch = make_batch(2, W)
    with pytest.raises(ConvergenceError, match=r"changed by .* in iteration 1, 1e-06 is taken.*inverse_iterations"):
        model(**batch, seed=1)
    model.backbone.inverse_iterations = 12
    assert model(**batch, seed=1).reaction_emotion.isfinite().all()
    assert model.backbone.residual <= 1e-6


def test_actnorm_begins_with_the_first_batch_and_remembers_that_it_has():
    norm = ActNorm(25)
    x = 3 + 2 * torch.rand(4, 5, 25, W)
    counted = torch.rand(4, 5, 1, W) < 0.7
    norm.begin(x, torch.zeros_like(counted))  # nothing to begin with
    assert not norm.initialised
    norm.begin(torch.where(counted, x, torch.nan), counted)
    y = norm(x).transpose(-1, -2)[counted[:, :, 0]].detach()
    torch.testing.assert_close(y.mean(0), torch.zeros(25), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(25), rtol=0, atol=1e-3)
    torch.testing.assert_close(norm.inverse(norm(x)), x)
    later = ActNorm(25)
    later.begin(5 * x, counted)
    later.load_state_dict(norm.state_dict())
    scale = later.log_scale.clone()
    later.begin(5 * x, counted)
    assert torch.equal(later.log_scale, scale)
    assert not ActNorm(25).initialised


# Windows


def test_windows_cover_a_clip_as_released_and_any_other_length_too():
    backbone = EMCModel(EMCConfig(backbone="regnn", emc=False)).backbone
    assert [(s.begin, s.stop) for s in backbone.segments(750)] == [(i, i + 50) for i in range(0, 701, 25)]
    assert [(s.begin, s.stop) for s in backbone.segments(751)][-2:] == [(700, 750), (725, 751)]
    assert [(s.begin, s.stop) for s in backbone.segments(7)] == [(0, 7)]
    for length in range(1, 130):
        segments = backbone.segments(length)
        assert {t for s in segments for t in range(s.begin, s.stop)} == set(range(length))
        assert all(s.begin <= backbone.needed_frame(s) < length for s in segments)


def test_held_frames():
    x = torch.arange(5.0).view(1, 5, 1).expand(3, -1, -1)
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert hold(x, mask, 7)[..., 0].tolist() == [[1, 1, 1, 3, 3, 3, 3], [0, 1, 1, 1, 1, 1, 1], [0] * 7]
    assert hold(x, None, 7)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert hold(x, None, 5) is x


@pytest.mark.parametrize("fields", [{"emc": False}, {}, {"causal": True, "window": 3}, {"ea": "none"}, {"cma_prior": "mean"}], ids=str)
def test_a_clip_does_not_depend_on_its_batch_or_its_padding(fields):
    model = regnn(**fields)
    batch = holes(make_batch(5, 27), clips=5, length=27)
    lengths = torch.tensor([27, 21, 20, 16, 4])
    seeds = torch.tensor([3, 1, 4, 1, 5])
    together = model(**poisoned(batch), lengths=lengths, seed=seeds, num_samples=3)
    for b in range(5):
        alone = model(**frames(rows(batch, [b]), int(lengths[b])), seed=seeds[b : b + 1], num_samples=2)
        for name in ("reaction_emotion", "reaction_3dmm"):
            got = getattr(together, name)[b : b + 1, :2]
            torch.testing.assert_close(got[:, :, : lengths[b]], getattr(alone, name), rtol=1e-4, atol=2e-5)
            assert (got[:, :, lengths[b] :] == 0).all()


def test_windows_are_joined_by_their_mean_and_see_only_themselves():
    model = regnn()
    batch = make_batch(1, 20)
    whole = model(**batch, seed=1).reaction_emotion[0, 0]
    first = model(**frames(batch, W), seed=1).reaction_emotion[0, 0]
    torch.testing.assert_close(whole[:STRIDE], first[:STRIDE])
    assert (whole[STRIDE:W] != first[STRIDE:]).any(-1).all()
    model.backbone.options = type(model.backbone.options)(**SMALL, noise=0.0)
    whole = model(**batch, seed=1).reaction_emotion[0, 0]
    parts = [model(**{n: t[:, s : s + W] for n, t in batch.items()}, seed=1).reaction_emotion[0, 0] for s in (0, 5, 10)]
    torch.testing.assert_close(whole[5:10], (parts[0][5:] + parts[1][:5]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole[15:], parts[2][5:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (512, {"emc": False}),
        (512, {}),
        (512, {"ea": "none"}),
        (14, {"causal": True, "window": 3, "emotion_source": "per_modality"}),
    ],
    ids=str,
)
def test_windows_taken_at_once_are_the_windows_one_by_one(monkeypatch, rows, fields):
    """With all that may differ by window: dropout, the picked fusion, holes, lengths, the noise of draw and compensation."""
    monkeypatch.setattr(pipeline, "_STACKED_ROWS", rows)
    monkeypatch.setattr(ops, "philox_normal", counted(calls := [], ops.philox_normal))
    batch = with_listeners(holes(make_batch(3, 38, targets=True), length=38)) | {"lengths": torch.tensor([38, 31, 6])}
    missing = {name: tensor for name, tensor in batch.items() if not name.startswith(("face", "target", "appropriate"))} | {"face": None}
    model = regnn(train=True, options={"embedding_dropout": 0.2}, dropout=0.2, **fields)
    if model.config.emc and model.emc.sample_out is not None:
        torch.nn.init.normal_(model.emc.sample_out.weight)
    given = {"seed": torch.tensor([1, 2, 3]), "num_samples": 2}
    found = {}
    for stacks in (True, False):
        calls.clear()
        net = copy.deepcopy(model)
        net.backbone.stacks_segments = stacks
        learned = net(**batch, **given)
        learned.losses["total"].backward()
        net.eval()
        with torch.no_grad():
            seen, gone = net(**batch, **given), net(**missing, **given)
        found[stacks] = [learned.losses, [p.grad for p in net.parameters()], seen.losses, *seen.reaction_emotion, *gone.reaction_3dmm]
        found[stacks] += [z.mu for z in gone.distribution]
        assert len(gone.distribution) == 7
        # Six whole windows and a short one; 14 rows are two windows of three clips and two draws. The original learns without noise.
        drawn = sum(call[-1] == 25 for call in calls)
        assert drawn == (3 if model.config.emc else 2) * ({512: 2, 14: 4}[rows] if stacks else 7)
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)


def counted(calls, function):
    def call(shape, *args, **kwargs):
        calls.append(tuple(shape))
        return function(shape, *args, **kwargs)

    return call


def test_noise_is_scaled_by_itself_alone():
    model = regnn(emc=False)
    batch = make_batch(3, 17)

    def drawn(batch, seeds, k):
        output = model(**batch, seed=seeds, num_samples=k)
        backbone = model.backbone
        pairs = zip(output.distribution, backbone.segments(batch["face"].shape[1]), strict=True)
        return [backbone.sample(z, k, segment=s, seed=seeds).values - z.mu for z, s in pairs]

    seeds = torch.tensor([7, 8, 9])
    noise = drawn(batch, seeds, 4)
    assert [n.shape[2] for n in noise] == [10, 10, 7]
    torch.testing.assert_close(noise[0].abs().amax((-2, -1)), torch.full((3, 4), 0.06**0.5))
    alone = drawn(frames(rows(batch, [2]), 13), seeds[2:], 2)
    for here, there in zip(noise, alone, strict=False):
        torch.testing.assert_close(here[2:, :2, : there.shape[2]], there, rtol=0, atol=1e-6)
    assert (noise[0][:, :, 5:] - noise[1][:, :, :5]).abs().max() > 0.05  # windows draw their own


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
