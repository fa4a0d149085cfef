"""What must hold for each backbone of the package alike."""

import copy

import pytest
import torch
from faceais_helpers import SMALL as FACEAIS
from faceais_helpers import faceais
from model_helpers import build, frames, holes, make_batch, poisoned, reactions, rows

from emc_fast.nn.emotion_attention import AttentionBlock

REGNN = {"window": 10, "stride": 5, "perceptual_layers": 1, "channels": 2}


def built(backbone, **fields):
    if backbone == "faceais":
        return faceais(options=FACEAIS, **fields)
    return build(backbone=backbone, backbone_options=REGNN if backbone == "regnn" else {}, **fields)


each = pytest.mark.parametrize("backbone", ["trans_vae", "regnn", "faceais"])


@each
@pytest.mark.parametrize("span", [{}, {"causal": True}, {"causal": True, "window": 3}], ids=str)
def test_every_attention_of_emc_sees_as_far_as_it_is_told(backbone, span):
    model = built(backbone, train=True, **span)
    seen = {}
    for name, block in model.emc.named_modules():
        if isinstance(block, AttentionBlock):
            block.register_forward_pre_hook(
                lambda _, __, given, name=name: seen.setdefault(name, set()).add((given["causal"], given["window"])), with_kwargs=True
            )
    batch = make_batch(2, 23, targets=True)
    model(**batch, seed=1)
    model.eval()
    model(**batch, seed=1)
    model(None, batch["speech"], speech_emotion=batch["speech_emotion"], seed=1)
    assert len(seen) == 4 * 3  # U-EA of face and speech, M-EA, S-EA: three blocks each
    assert set.union(*seen.values()) == {(span.get("causal", False), span.get("window"))}


@each
def test_a_window_of_emotion_is_all_that_a_draw_sees_of_it(backbone):
    """With S-EA alone between the emotion and the reaction a causal window keeps what is later, and what is long past, from a frame."""
    model = built(backbone, causal=True, window=2)
    if model.emc.sample_out is not None:
        torch.nn.init.normal_(model.emc.sample_out.weight)
    emotions = []
    sample = model.emc.enhance_sample

    def changed(values, segment, emotion, *rest, **more):
        where = torch.zeros(emotion.values.shape[1], dtype=torch.bool)
        where[1] = True
        other = emotion._replace(values=torch.where(where[:, None], emotion.values + 1, emotion.values))
        before, after = (sample(values, segment, e, *rest, **more) for e in (emotion, other))
        emotions.append((before != after).any(-1).any(0))
        return before

    model.emc.enhance_sample = changed
    reactions(model, make_batch(2, 8), seed=1)
    # One block over the emotion and one from the draw to it, each two frames wide: three frames see the one, of a segment of four or more.
    assert emotions[0].nonzero().flatten().tolist() == [1, 2, 3]


@each
@pytest.mark.parametrize("missing", ["face", "speech", "frames"])
def test_a_modality_may_be_missing_for_clips_and_for_frames(backbone, missing):
    """Alone, beside others, and whatever stands where nothing is; nothing of it is NaN."""
    model = built(backbone)
    batch = make_batch(3, 23)
    if missing == "frames":
        batch = holes(batch, length=23)
    else:
        there = torch.tensor([False, True, True])[:, None].expand(3, 23)  # one clip lacks it altogether
        batch |= {
            f"{missing}_available": there,
            f"{'speech' if missing == 'face' else 'face'}_available": torch.ones(3, 23, dtype=torch.bool),
        }
    seeds, lengths = torch.tensor([1, 2, 3]), torch.tensor([23, 17, 9])
    together = reactions(model, batch, lengths=lengths, seed=seeds, num_samples=2)
    assert together.isfinite().all()
    assert torch.equal(reactions(model, poisoned(batch), lengths=lengths, seed=seeds, num_samples=2), together)
    for row, length in enumerate(lengths.tolist()):
        alone = reactions(model, frames(rows(batch, [row]), length), seed=seeds[row : row + 1], num_samples=2)
        torch.testing.assert_close(together[row : row + 1, :, :length], alone, rtol=1e-4, atol=1e-5)
    if missing == "frames":
        return
    other = "speech" if missing == "face" else "face"
    only = {name: value[:1] for name, value in batch.items() if name.startswith(other)} | {missing: None}
    torch.testing.assert_close(reactions(model, only, seed=seeds[:1], num_samples=2), together[:1], rtol=1e-4, atol=1e-5)


@each
@pytest.mark.parametrize("reduction", ["mean", "paper_sum"])
def test_losses_of_a_padded_batch_are_those_of_its_frames(backbone, reduction):
    """Also where the padding fills windows of its own, which no clip is a part of."""
    model = built(backbone, train=True, dropout=0.0, reduction=reduction)
    if backbone == "regnn":
        model.backbone.perception.eval()  # whose embedding dropout is an option of its own
    batch = holes(make_batch(3, 27, targets=True), length=27)
    found = []
    for given in (batch | {"lengths": torch.full((3,), 15)}, frames(batch, 15)):
        net = copy.deepcopy(model)
        losses = net(**given, seed=torch.tensor([1, 2, 3])).losses
        losses["total"].backward()
        found.append([losses, [p.grad for p in net.parameters() if p.requires_grad]])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_frame_that_several_windows_encode_counts_once_with_its_mean():
    model = faceais(train=True, dropout=0.0)
    seen = []
    compensate = model.emc.compensate_training

    def spy(*args, frame_offset, **kwargs):
        found = compensate(*args, frame_offset=frame_offset, **kwargs)
        seen.append((frame_offset, found[-1]))
        return found

    model.emc.compensate_training = spy
    batch = make_batch(2, 14, targets=True)
    lengths = [14, 6]
    losses = model(**batch, lengths=torch.tensor(lengths), seed=1).losses
    values = {name: [[[] for _ in range(14)] for _ in range(2)] for name in ("align", "kl")}
    for segment, (first, window) in zip(model.backbone.segments(14), seen, strict=True):
        for clip, length in enumerate(lengths):
            for t in range(first, min(segment.stop, length)):
                for name in values:
                    if segment.begin < length:  # a clip has no part in what begins after its end
                        values[name][clip][t].append(getattr(window, name)[clip, t - first].item())
    assert len(values["align"][0][5]) > 1
    for name, term in (("align", "align"), ("kl", "cma_kl")):
        means = [sum(v) / len(v) for clip in values[name] for v in clip if v]
        assert len(means) == sum(lengths)
        assert losses[term].item() == pytest.approx(sum(means) / len(means) / 16, rel=1e-5)
