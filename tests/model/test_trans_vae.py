"""Trans-VAE against the published architecture."""

import pytest
import torch
from model_helpers import build, make_batch
from published_trans_vae import PublishedTransVAE

from emc_fast import EMCConfig, EMCModel, ops
from emc_fast.backbones.video_encoder import VideoEncoder, clip_instance_norm
from emc_fast.errors import CheckpointError, DataError
from emc_fast.ops import streams

D, B, T, WINDOW = 16, 2, 11, 4


@pytest.mark.parametrize(("online", "count"), [(False, 1_315_891), (True, 1_670_835)])
def test_parameter_count_is_the_published_one(online, count):
    model = EMCModel(EMCConfig(emc=False, input="image", backbone_options={"online": online}))
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == (0 if online else 27_136)


def pair(online):
    """The model and the published one with the same random weights, loaded through the published names."""
    published = PublishedTransVAE(D, online=online, window=WINDOW).double().eval()
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    options = {"online": online, "window": WINDOW}
    model = build(emc=False, input="image", d_model=D, num_heads=4, backbone_options=options).double()
    model.load_official_trans_vae({"module." + name: tensor for name, tensor in published.state_dict().items()})
    return model, published


@pytest.mark.parametrize("online", [False, True])
def test_reaction_and_distribution_are_the_published_ones(online):
    model, published = pair(online)
    batch = make_batch(B, T, double=True, image=True)
    seed = torch.tensor([8, 9])
    noise = [
        ops.philox_normal((B, 1, 1, D), seed, stream=streams.LATENT, frame_offset=i, dtype=torch.float64).view(B, D)
        for i in range(T // WINDOW)
    ]
    with torch.no_grad():
        coefficients, emotion, distributions = published(batch["face"], batch["speech"], noise)
    output = model(batch["face"], batch["speech"], seed=seed)
    torch.testing.assert_close(output.reaction_3dmm[:, 0], coefficients, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(output.reaction_emotion[:, 0], emotion, rtol=1e-7, atol=1e-8)
    assert len(output.distribution) == len(distributions)
    for actual, (mu, logvar) in zip(output.distribution, distributions, strict=True):
        torch.testing.assert_close(actual.mu[:, 0], mu, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(actual.logvar[:, 0], logvar, rtol=1e-7, atol=1e-8)
    if online:
        assert (output.reaction_emotion[:, 0, T - T % WINDOW :] == 0).all()


@pytest.mark.parametrize("online", [False, True])
def test_loss_is_the_published_one(online):
    options = {"online": online, "window": WINDOW, "kl_p": 0.01, "div_p": 10.0}
    model = build(emc=False, dropout=0.0, train=True, backbone_options=options)
    batch = make_batch(B, T, targets=True)
    output = model(**batch, seed=torch.tensor([3, 4]))
    y, e = output.reaction_3dmm[:, 0], output.reaction_emotion[:, 0]
    c, t = batch["target_3dmm"], batch["target_emotion"]
    mse = torch.nn.functional.mse_loss
    expected = mse(e, t) + mse(y[..., :52], c[..., :52]) + 10 * mse(y[..., 52:], c[..., 52:])
    kl = []
    for gaussian in output.distribution:
        q = torch.distributions.Normal(gaussian.mu, (gaussian.logvar / 2).exp())
        kl.append(torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean())
    expected = expected + 0.01 * torch.stack(kl).mean()
    without = expected.item()
    assert output.losses["total"].item() == pytest.approx(without + 10 * output.losses["diversity"].item(), rel=1e-5)
    # The second pass has other noise; the published form of the term, from a pair of reactions
    model.eval()
    assert model(**batch, seed=torch.tensor([3, 4])).losses["total"].item() == pytest.approx(without, rel=1e-5)
    assert 0 < output.losses["diversity"].item() < 2


def test_the_window_of_a_built_model_may_be_changed():
    model = build(backbone_options={"online": True, "window": 3})
    model.backbone.window = 6
    output = model(**make_batch(1, 12), seed=1)
    assert len(output.distribution) == 2
    with pytest.raises(DataError, match="5 frames is shorter than one window"):
        model(**make_batch(1, 5), seed=1)


def test_normalisation_counts_the_clips_own_frames():
    x = torch.randn(2, 5, 3, 4, 4)
    whole = torch.nn.functional.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(clip_instance_norm(x, None), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip_instance_norm(x, torch.ones(2, 5, dtype=torch.bool)), whole, rtol=1e-4, atol=1e-5)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]]).bool()
    actual = clip_instance_norm(x, mask)
    for b in range(2):
        torch.testing.assert_close(actual[b, mask[b]], clip_instance_norm(x[b : b + 1, mask[b]], None)[0], rtol=1e-4, atol=1e-5)
    assert clip_instance_norm(torch.zeros_like(x), torch.zeros(2, 5, dtype=torch.bool)).isfinite().all()


def test_a_constant_image_gives_the_same_features_at_any_size():
    encoder = VideoEncoder(D)
    small, large = (encoder(torch.zeros(1, 2, 3, size, size)) for size in (32, 64))
    torch.testing.assert_close(small, large)


def test_an_image_model_trains_and_reacts_with_frames_missing():
    model = build(input="image", train=True)
    batch = make_batch(2, 5, image=True, targets=True)
    batch["face_available"] = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 0]]).bool()
    batch["lengths"] = torch.tensor([5, 4])
    output = model(**batch, seed=1)
    output.losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval()
    batch["face"] = torch.where(batch["face_available"][..., None, None, None], batch["face"], torch.nan)
    assert model(**batch, seed=1).reaction_emotion.isfinite().all()
    assert build(input="image", emc=False)(None, batch["speech"], seed=1).reaction_emotion.isfinite().all()


def test_official_weights_of_another_form_are_refused_by_name():
    offline, online = PublishedTransVAE(D).state_dict(), PublishedTransVAE(D, online=True).state_dict()
    model = build(emc=False, input="image", d_model=D)
    with pytest.raises(CheckpointError, match=r"unknown .*reaction_decoder.*set backbone_options=\{'online': True\}"):
        model.load_official_trans_vae(online)
    online_model = build(emc=False, input="image", d_model=D, backbone_options={"online": True})
    with pytest.raises(CheckpointError, match=r"lacks reaction_decoder.*set backbone_options=\{'online': False\}"):
        online_model.load_official_trans_vae(offline)
    del offline["reaction_decoder.vae_model.mu_token"]
    with pytest.raises(CheckpointError, match=r"lacks reaction_decoder\.vae_model\.mu_token"):
        model.load_official_trans_vae(offline)
    with pytest.raises(CheckpointError, match="reads images"):
        build().load_official_trans_vae(online)
    wider = PublishedTransVAE(2 * D).state_dict()
    with pytest.raises(CheckpointError, match="should be"):
        model.load_official_trans_vae(wider)
