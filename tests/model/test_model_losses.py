import pytest
import torch
from torch.distributions import Normal, kl_divergence

from emc_fast.backbones.base import Gaussian
from emc_fast.losses import alignment_loss, diversity_loss, gaussian_kl, masked_mean, reduce_rows, squared_error


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def distribution(gaussian):
    scale = torch.ones_like(gaussian.mu) if gaussian.logvar is None else torch.exp(gaussian.logvar / 2)
    return Normal(gaussian.mu, scale)


def test_gaussian_kl_is_torchs():
    q, p = (normal(4, 3, 5), normal(4, 3, 5)), (normal(4, 3, 5), normal(4, 3, 5))
    expected = kl_divergence(Normal(q[0], torch.exp(q[1] / 2)), Normal(p[0], torch.exp(p[1] / 2))).sum(-1)
    torch.testing.assert_close(gaussian_kl(q, p), expected)
    assert gaussian_kl([t.half() for t in q], [t.half() for t in p]).dtype == torch.float32


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "paper_sum"])
@pytest.mark.parametrize("masked", [False, True])
def test_fusion_loss_is_three_divergences_in_the_papers_order(unit, reduction, masked):
    options = [Gaussian(normal(4, 1, 6), None if unit else normal(4, 1, 6)) for _ in range(3)]
    real, face, speech = (distribution(o) for o in options)
    rows = sum(kl_divergence(a, b) for a, b in ((real, face), (real, speech), (face, speech))).sum(-1)[:, 0]
    mask = torch.tensor([True, False, True, True]) if masked else None
    kept = rows if mask is None else rows[mask]
    expected = kept.mean() / 6 if reduction == "mean" else kept.sum() / 4
    actual = options[0].fusion_loss(options[1], options[2], mask=mask, reduction=reduction)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_fusion_loss_of_a_sequence_counts_its_frames():
    options = [Gaussian(normal(2, 1, 5, 6), normal(2, 1, 5, 6)) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    real, face, speech = (distribution(o) for o in options)
    rows = sum(kl_divergence(a, b) for a, b in ((real, face), (real, speech), (face, speech))).sum(-1)[:, 0]
    actual = options[0].fusion_loss(options[1], options[2], mask=mask, reduction="mean")
    torch.testing.assert_close(actual.double(), rows[mask].mean() / 6, rtol=1e-5, atol=1e-6)


def test_gaussians_split_and_pick_per_clip():
    stacked = Gaussian(normal(6, 1, 3), normal(6, 1, 3))
    parts = stacked.split(3)
    picked = Gaussian.pick(parts, torch.tensor([2, 0]))
    assert torch.equal(picked.mu, stacked.mu[[4, 1]])
    assert torch.equal(picked.logvar, stacked.logvar[[4, 1]])
    assert Gaussian.pick(Gaussian(stacked.mu, None).split(3), torch.tensor([1, 1])).logvar is None


def test_alignment_detaches_its_target_unless_told():
    u, made = normal(2, 3, 4).requires_grad_(), normal(2, 3, 4).requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    loss = alignment_loss(u, made, mask=mask)
    torch.testing.assert_close(loss, (u - made)[mask].square().mean())
    loss.backward()
    assert u.grad is None
    assert made.grad is not None
    alignment_loss(u, made, mask=mask, detach=False).backward()
    assert u.grad is not None
    summed = alignment_loss(u, made, mask=mask, reduction="paper_sum")
    torch.testing.assert_close(summed, (u - made)[mask].square().sum() / 2)


def test_what_is_masked_reaches_neither_value_nor_gradient():
    values = normal(2, 3).requires_grad_()
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    reductions = [lambda v, how=how: reduce_rows(v, 2, mask, how) for how in ("mean", "paper_sum")]
    for reduce in (lambda v: masked_mean(v, mask), *reductions):
        values.grad = None
        loss = reduce(torch.where(mask, values, torch.nan))
        loss.backward()
        assert loss.isfinite()
        assert values.grad.isfinite().all()
        assert (values.grad[~mask] == 0).all()
    assert masked_mean(values, torch.zeros_like(mask)) == 0


def test_squared_error_and_diversity_over_valid_frames():
    prediction, target = normal(2, 3, 4, 5), normal(2, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    expected = torch.cat([(prediction[0] - target[0]).square().flatten(), (prediction[1, :, :2] - target[1, :2]).square().flatten()]).mean()
    torch.testing.assert_close(squared_error(prediction, target, mask), expected)
    other = prediction + normal(2, 3, 4, 5)
    distance = (prediction - other).square()
    expected = torch.stack([distance[0].sum((1, 2)), distance[1, :, :2].sum((1, 2))])
    torch.testing.assert_close(diversity_loss(prediction, other, mask), torch.exp(-expected / 100).mean())
    torch.testing.assert_close(diversity_loss(prediction, prediction, None), torch.ones((), dtype=torch.float64))


def test_a_loss_is_one_graph():
    u, made, mask = normal(2, 3, 4), normal(2, 3, 4), torch.rand(2, 3) < 0.5
    compiled = torch.compile(alignment_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(u, made, mask=mask), alignment_loss(u, made, mask=mask))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("frames", [(), (5,)])
def test_the_kl_to_the_prior_is_torchs_over_what_counts(unit, frames):
    z = Gaussian(normal(3, 2, *frames, 6), None if unit else normal(3, 2, *frames, 6))
    expected = kl_divergence(distribution(z), Normal(0.0, 1.0)).mean(-1)
    torch.testing.assert_close(z.prior_kl(None), expected.mean())
    mask = torch.rand(3, *frames) < 0.5
    torch.testing.assert_close(z.prior_kl(mask), expected.transpose(0, 1)[:, mask].mean() if mask.any() else expected.new_zeros(()))
    assert Gaussian(z.mu.half(), None).prior_kl(mask).dtype == torch.float32
