"""REGNN's motor processor: invertible, whatever its weights."""

import pytest
import torch
from model_helpers import make_batch
from regnn_helpers import W, regnn

from emc_fast.backbones.regnn_graph import ActNorm, GraphFlow, MotorProcessor, spectral_norm
from emc_fast.errors import ConvergenceError


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
    for wanted in (graph, torch.randn(4, 25, 50, generator=torch.Generator().manual_seed(5))):  # of a reaction, and any
        back, residual = motor.inverse(wanted, edges, divisors, iterations=5)
        torch.testing.assert_close(motor(back, edges, divisors), wanted, rtol=0, atol=1e-4)
        assert residual < 1e-4
    torch.testing.assert_close(motor.inverse(graph, edges, divisors, iterations=5).values, x, rtol=0, atol=1e-4)
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
