"""Dynamic time warping: the definition against tslearn's independent one, the kernels against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from emc_fast.ops import _library, dtw, use_backend
from emc_fast.ops.dtw import estimate_error
from emc_fast.ops.reference import dtw as reference

from .parity import Target, assert_opcheck


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random shapes; every fifth problem has lengths of one frame, every third sequences that are nearly the same."""
    g = np.random.default_rng(seed)
    n, m, t, s, c = (int(v) for v in g.integers(1, (6, 6, 40, 40, 18)))
    x, y = (
        torch.from_numpy(g.standard_normal((n, t, c)).astype(np.float32)),
        torch.from_numpy(g.standard_normal((m, s, c)).astype(np.float32)),
    )
    if seed % 3 == 0:
        y[:, : min(t, s)] = x[:1, : min(t, s)] + 1e-3 * y[:, : min(t, s)]
    pairs = torch.from_numpy(np.stack([g.integers(0, n, 37), g.integers(0, m, 37)], axis=1))
    x_lengths, y_lengths = torch.from_numpy(g.integers(1, t + 1, n)), torch.from_numpy(g.integers(1, s + 1, m))
    if seed % 5 == 0:
        x_lengths[0] = y_lengths[0] = 1
    device = torch.get_default_device()
    return x.to(device), y.to(device), pairs.to(device), x_lengths.to(device), y_lengths.to(device)


def test_definition_is_tslearns() -> None:
    from tslearn.metrics import dtw as independent

    x, y, pairs, x_lengths, y_lengths = problem(4)
    ours = reference.dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths)
    theirs = [independent(x[n, : x_lengths[n]].numpy(), y[m, : y_lengths[m]].numpy()) for n, m in pairs.tolist()]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_definition_by_hand() -> None:
    """0 1 2 against 0 2: the 1 in the middle is one away from either end, everything else fits."""
    x, y = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[[0.0], [2.0]]])
    assert dtw(x, y, torch.tensor([[0, 0]])).item() == 1.0


@pytest.mark.parametrize("seed", range(12))
def test_kernel_is_the_definition(target: Target, seed: int) -> None:
    x, y, pairs, x_lengths, y_lengths = problem(seed)
    truth = reference.dtw(x.double(), y.double(), pairs, x_lengths=x_lengths, y_lengths=y_lengths)
    ours = dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths)
    estimate = dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths, exact=False)
    torch.testing.assert_close(ours, truth, rtol=3e-7, atol=1e-9)
    norm = max(float(v.square().sum(-1).max()) for v in (x, y))
    assert ((estimate - truth).abs() <= estimate_error(x.shape[1] + y.shape[1], x.shape[2], norm, estimate)).all()


def test_constant_steps_do_not_drift(target: Target) -> None:
    """The same distance added a thousand times: float32 sums would be off by 1e-5, and always to the same side."""
    x, y = torch.full((1, 1000, 1), 0.3), torch.zeros((1, 1000, 1))
    assert dtw(x, y, torch.tensor([[0, 0]])).item() == pytest.approx(math.sqrt(1000) * float(np.float32(0.3)), rel=1e-7)


def test_result_is_the_same_in_any_company_and_any_layout(target: Target) -> None:
    x, y, pairs, x_lengths, y_lengths = problem(8)
    together = dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths)
    alone = torch.cat([dtw(x, y, pairs[i : i + 1], x_lengths=x_lengths, y_lengths=y_lengths) for i in range(len(pairs))])
    assert torch.equal(together, alone)
    strided = torch.empty((x.shape[1], x.shape[2], x.shape[0])).permute(2, 0, 1).copy_(x)
    assert torch.equal(together, dtw(strided, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths))
    x[:, -1] = torch.where((x_lengths == x.shape[1])[:, None], x[:, -1], torch.nan)  # beyond a length anything may stand
    assert torch.equal(together, dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths))


def test_lengths_and_bounds_of_any_stride(target: Target) -> None:
    x, y, pairs, x_lengths, y_lengths = problem(8)
    bound = dtw(x, y, pairs) * 1.1
    expected = dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths, bound=bound)
    spread = [torch.stack([v, torch.ones_like(v)], dim=1)[:, 0] for v in (x_lengths, y_lengths, bound)]
    assert torch.equal(dtw(x, y, pairs, x_lengths=spread[0], y_lengths=spread[1], bound=spread[2]), expected)


def test_many_frames_and_channels(target: Target) -> None:
    """Several bands of 32 frames, and frames that are too long for a GPU's shared memory; constant gaps, whose roundings add up."""
    g = np.random.default_rng(3)
    device = torch.get_default_device()
    for frames, channels in ((130, 25), (3, 600), (70, 1)):
        x = torch.from_numpy(g.standard_normal((2, frames, channels)).astype(np.float32)).to(device)
        pairs = torch.tensor([[0, 1], [1, 0], [1, 1]])
        y = x[:, : 2 * frames // 3 + 1] + 0.1
        truth = reference.dtw(x.double(), y.double(), pairs)
        # The distance of two frames is a float32 sum of `channels` squares; half its relative error reaches the root.
        torch.testing.assert_close(dtw(x, y, pairs), truth, rtol=(channels + 2) * 2.0**-25, atol=1e-9)
        estimate = dtw(x, y, pairs, exact=False)
        norm = max(float(v.square().sum(-1).max()) for v in (x, y))
        assert ((estimate - truth).abs() <= estimate_error(x.shape[1] + y.shape[1], channels, norm, estimate)).all()


@pytest.mark.parametrize("exact", [True, False])
def test_bound_gives_infinity_only_beyond_it(target: Target, exact: bool) -> None:
    x, y, pairs, *_ = problem(2)
    free = dtw(x, y, pairs, exact=exact)
    bound = free * torch.where(torch.arange(len(pairs)) % 2 == 0, 1.01, 0.5)
    torch.testing.assert_close(dtw(x, y, pairs, bound=bound, exact=exact), torch.where(free > bound, torch.inf, free))
    assert dtw(x, y, pairs, bound=free * 0.01, exact=exact).isinf().all()


@pytest.mark.parametrize("exact", [True, False])
def test_numbers_out_of_range_give_nan_and_are_never_used(target: Target, exact: bool) -> None:
    """Past the checks of the public function, which looks at the CPU's tensors only."""
    far = 1 << 40
    x_lengths, y_lengths = torch.tensor([9, 0, 10, 5]), torch.tensor([7, -far, 3])
    x, y = torch.rand((4, 9, 3)), torch.rand((3, 7, 3))
    pairs = torch.cartesian_prod(torch.tensor([-far, -1, 0, 1, 2, 3, 4, far]), torch.tensor([-far, -1, 0, 1, 2, 3, far]))
    good = torch.isin(pairs[:, 0], torch.tensor([0, 3])) & torch.isin(pairs[:, 1], torch.tensor([0, 2]))
    truth = reference.dtw(x.double(), y.double(), pairs, x_lengths=x_lengths, y_lengths=y_lengths)
    assert torch.equal(truth.isnan(), ~good)
    run = _library.raw(target.backend).dtw
    for bound in (None, 2.0 * truth.nan_to_num(1.0)):
        ours = run(x, y, pairs, x_lengths, y_lengths, bound, exact)
        torch.testing.assert_close(ours, truth, rtol=3e-7 if exact else 1e-3, atol=1e-9, equal_nan=True)
    assert torch.equal(run(x, y, pairs, None, None, None, exact).isnan(), ((pairs < 0) | (pairs >= torch.tensor([4, 3]))).any(dim=1))
    assert run(x[:0], y, pairs, None, None, None, exact).isnan().all()


def test_values_of_a_device_are_not_waited_for() -> None:
    """Without a GPU: tensors that have a device and no values at all."""
    x = torch.empty((2, 5, 3), device="meta")
    numbers = torch.empty((2,), dtype=torch.int64, device="meta")
    out = dtw(x, x, numbers.expand(4, 2), x_lengths=numbers, y_lengths=numbers)
    assert out.shape == (4,)
    assert out.device.type == "meta"


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu() -> None:
    with torch.device("cuda"):
        x, y, pairs, x_lengths, y_lengths = problem(2)
    dtw(x, y, pairs)  # whatever is waited for once, at the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiles_to_one_node() -> None:
    x, y, pairs, x_lengths, y_lengths = problem(2)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return dtw(x, y, pairs, x_lengths=x_lengths, y_lengths=y_lengths)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), both(x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, y, pairs, *_ = problem(7)
    x, y = x.to(dtype), y.to(dtype)
    torch.testing.assert_close(dtw(x, y, pairs), reference.dtw(x.double(), y.double(), pairs), rtol=3e-7, atol=1e-9)


def test_nothing_to_do() -> None:
    x = torch.zeros((2, 5, 3))
    assert dtw(x, x, torch.zeros((0, 2), dtype=torch.int64)).shape == (0,)


def test_raw_operator_is_well_declared() -> None:
    x, y, pairs, x_lengths, y_lengths = problem(1)
    assert_opcheck(torch.ops.emc_fast.dtw.default, x, y, pairs, x_lengths, y_lengths, None, True)


def test_bad_arguments_are_named() -> None:
    x, pairs = torch.zeros((2, 5, 3)), torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"x must have shape \(sequences, frames, channels\)"):
        dtw(x[0], x, pairs)
    with pytest.raises(ValueError, match="3 channels of x, got 2"):
        dtw(x, x[..., :2], pairs)
    with pytest.raises(ValueError, match="second column of pairs must be in"):
        dtw(x, x[:1], pairs)
    with pytest.raises(TypeError, match=r"pairs must be an int64 tensor, got torch\.float32"):
        dtw(x, x, pairs.float())
    with pytest.raises(ValueError, match=r"x_lengths must be in \[1, 5\]"):
        dtw(x, x, pairs, x_lengths=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="x requires a gradient"):
        dtw(x.requires_grad_(), x, pairs)


def test_back_ends_agree() -> None:
    x, y, pairs, *_ = problem(9)
    with use_backend("reference"):
        truth = dtw(x, y, pairs)
    torch.testing.assert_close(dtw(x, y, pairs), truth, rtol=3e-7, atol=1e-9)
