"""REGNN's windows: what they cover, what they see, and that they are the same taken at once."""

import copy

import pytest
import torch
from model_helpers import frames, holes, make_batch, poisoned, rows
from regnn_helpers import SMALL, STRIDE, W, regnn, with_listeners

from emc_fast import EMCConfig, EMCModel, ops, pipeline
from emc_fast.backbones.regnn import hold


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
