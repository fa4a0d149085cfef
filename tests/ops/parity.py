"""What every operator is held to, in reusable form; each operator's test file says with which shapes and arguments.

Truth is the float64 definition. A kernel passes when its error against truth is at most twice that of the definition run in PyTorch at the
kernel's own precision, plus a floor of one rounding of the largest value: so no tolerance is chosen by hand, and none can be loosened.

A `function` below takes the tensors of `inputs` by name and returns a tensor or a tuple of tensors. It is run under `use_backend`, so it is
simply the public operator with its other arguments bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from emc_fast import kernels
from emc_fast.errors import BackendError
from emc_fast.ops import use_backend
from emc_fast.ops._library import has_kernel, native

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Function = Callable[..., Any]
Inputs = Mapping[str, Tensor | None]


def needs_for_isa(isa: str) -> str:
    """What a processor would need to run the kernels of an instruction set, or the empty string; the one in use stays in use."""
    library, before = native(), native().isa
    try:
        library.set_isa(isa)
    except BackendError:
        needed = {"v3": "AVX2", "v4": "AVX-512", "bf16": "AVX-512 products of bfloat16", "amx": "matrix tiles (AMX) for bfloat16"}
        return f"needs a processor with {needed[isa]}"
    library.set_isa(before)
    return ""


@dataclass(frozen=True)
class Target:
    """One set of kernels: the back end, the device of its tensors, for the CPU the instruction set.

    `emulated` names an order of threads: the CUDA kernels, run on the CPU by the emulator (tests/cuda_emulator) in the place of the CPU's.
    """

    backend: str
    device: str
    isa: str = ""
    emulated: str = ""

    def __str__(self) -> str:
        return f"emulated-{self.emulated}" if self.emulated else "-".join(part for part in (self.backend, self.isa) if part)

    def missing(self) -> str:
        """What a machine would need to run it, or the empty string."""
        if self.device == "cuda":
            if not torch.cuda.is_available():
                return "needs a CUDA device: `pytest -m gpu` on a machine with one"
            if self.backend == "cuda" and not has_kernel("philox_normal", "CUDA"):
                return "needs a build with CUDA kernels (an nvcc at build time)"
        if self.backend == "triton" and (reason := kernels.device_reason()):
            return reason
        return needs_for_isa(self.isa) if self.isa else ""


def targets(operator: str, *, every_order: bool) -> list[Any]:
    """Everything that could run the operator of this file stem, whether or not this machine can.

    Emulated threads run in an order that is drawn anew all the time, or in each of the three orders where `every_order` is set.
    """
    isas = native().stamp.get("isas", "base").split(",")
    kernels_of = operator.removeprefix("emotion_").removesuffix("_block").removesuffix("_sublayer")
    if not any((ROOT / "csrc" / "cpu" / "amx").glob(f"{kernels_of}_*.cpp")):
        isas = [isa for isa in isas if isa != "amx"]  # it runs the kernels of v4
    isas = [isa for isa in isas if isa != "bf16"]  # it runs what v4 runs unless a lower precision is set: test_precision.py
    found: list[Any] = [Target("cpu", "cpu", isa) for isa in isas]
    if (ROOT / "csrc" / "cuda" / f"{operator}.cu").exists():
        found += [Target("cpu", "cpu", emulated=order) for order in (("forward", "reverse", "shuffled") if every_order else ("shuffled",))]
        found.append(pytest.param(Target("cuda", "cuda"), marks=pytest.mark.gpu))
    if (ROOT / "kernels" / f"{operator}.py").exists():
        interpreted = kernels.interpreting()
        found.append(
            pytest.param(Target("triton", "cpu"), marks=pytest.mark.interpreter)
            if interpreted
            else pytest.param(Target("triton", "cuda"), marks=pytest.mark.gpu)
        )
    return found


def seeds(count: int, first: int = 0) -> Any:
    """Parametrise a test over seeds; the seed is in the test's id, and `random.Random(seed)` draws its shapes."""
    return pytest.mark.parametrize("seed", range(first, first + count), ids=lambda s: f"seed{s}")


def dtypes() -> Any:
    """Parametrise a test over the dtypes that kernels take."""
    return pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def pick(rng: random.Random, *choices: Any) -> Any:
    """One of the choices; a range counts as a choice of one of its numbers."""
    chosen = rng.choice(choices)
    return rng.choice(chosen) if isinstance(chosen, range) else chosen


def normal(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal values that `dtype` holds exactly, so that truth and kernel start from the same numbers; the same ones on every device."""
    generator = torch.Generator("cpu").manual_seed(rng.getrandbits(40))
    return (torch.randn(shape, generator=generator, device="cpu") * scale).to(dtype).to(torch.get_default_device())


def mask(seed: int, *shape: int, share: float) -> Tensor:
    """True with the probability `share`; the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return (torch.rand(shape, generator=generator, device="cpu") < share).to(torch.get_default_device())


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def cast(inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Floating tensors in `dtype`, detached; the others as they are."""
    return {n: x.detach().to(dtype) if x is not None and x.is_floating_point() else x for n, x in inputs.items()}


def run(function: Function, inputs: Inputs, differentiate: Sequence[str] = (), grads: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Outputs (`out0`, ...) and gradients (`d_<name>`) of a weighted sum of the floating outputs."""
    leaves = {n: x.detach().requires_grad_(n in differentiate) if x is not None else None for n, x in inputs.items()}
    outs = outputs_of(function(**leaves))
    found = {f"out{i}": out.detach() for i, out in enumerate(outs)}
    if differentiate:
        assert grads is not None
        wanted = [leaves[n] for n in differentiate]
        pairs = [(out, g.to(out.dtype)) for out, g in zip(outs, grads, strict=True) if out.requires_grad]
        got = torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)  # type: ignore[arg-type]
        for name, grad in zip(differentiate, got, strict=True):
            assert grad is not None, f"no gradient for {name}"
            found[f"d_{name}"] = grad
    return found


def weights_for(outs: Sequence[Tensor], rng: random.Random) -> list[Tensor]:
    """Gradients to send into the outputs: a normal value per element, exact in every dtype that is tested."""
    return [normal(rng, *out.shape, dtype=torch.bfloat16).to(out) for out in outs]


def assert_close(name: str, got: Tensor, eager: Tensor, truth: Tensor, *, factor: float = 2.0) -> None:
    """The error rule, for the largest error, the relative L2 error and the signed bias."""
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == eager.dtype, f"{name}: dtype {got.dtype}, PyTorch gives {eager.dtype}"
    if truth.numel() == 0:
        return
    assert torch.equal(got.isnan().cpu(), truth.isnan().cpu()), (
        f"{name}: NaN in the wrong places ({int(got.isnan().sum())} of {got.numel()})"
    )
    unit = torch.finfo(got.dtype).eps
    g, e, t = (x.detach().cpu().double().nan_to_num() for x in (got, eager, truth))
    error, reference = (g - t).abs().max().item(), (e - t).abs().max().item()
    floor = unit * t.abs().max().item()
    assert error <= factor * reference + floor, f"{name}: error {error:.3g}, PyTorch's {reference:.3g} (+ floor {floor:.3g})"
    l2, l2_reference = (g - t).norm().item(), (e - t).norm().item()
    floor = unit * t.norm().item()
    assert l2 <= factor * l2_reference + floor, f"{name}: L2 error {l2:.3g}, PyTorch's {l2_reference:.3g} (+ floor {floor:.3g})"
    bias, bias_reference = (g - t).mean().abs().item(), (e - t).mean().abs().item()
    # A mean of n errors that are independent is itself off by their size over sqrt(n).
    floor = unit * t.abs().mean().item() + 4.0 * max(l2, l2_reference) / t.numel()
    assert bias <= factor * bias_reference + floor, f"{name}: bias {bias:.3g}, PyTorch's {bias_reference:.3g} (+ floor {floor:.3g})"


def assert_parity(
    function: Function, inputs: Inputs, dtype: torch.dtype, target: Target, *, differentiate: Sequence[str] = (), seed: int = 0
) -> None:
    """Values and gradients of the target's kernels against truth, by the error rule."""
    exact = {n: x.to(dtype).double() if x is not None and x.is_floating_point() else x for n, x in inputs.items()}
    rng = random.Random(seed)
    with use_backend("reference"):
        with torch.no_grad():
            grads = weights_for(outputs_of(function(**exact)), rng)
        truth = run(function, exact, differentiate, grads)
        eager = run(function, cast(exact, dtype), differentiate, grads)
    here = {n: x.to(target.device) if x is not None else None for n, x in cast(exact, dtype).items()}
    with use_backend(target.backend):  # type: ignore[arg-type]
        got = run(function, here, differentiate, [g.to(target.device) for g in grads])
    for name in truth:
        assert_close(name, got[name], eager[name], truth[name])


def assert_same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor], what: str) -> None:
    for name in first:
        assert torch.equal(first[name].cpu().nan_to_num(), second[name].cpu().nan_to_num()), f"{name} differs: {what}"


def assert_deterministic(function: Function, inputs: Inputs, *, differentiate: Sequence[str] = (), seed: int = 0) -> None:
    """The same bits again (on a GPU, where blocks run in another order each time, a hundred times), and with two threads as with one."""
    with torch.no_grad():
        grads = weights_for(outputs_of(function(**inputs)), random.Random(seed))
    first = run(function, inputs, differentiate, grads)
    on_a_gpu = any(x is not None and x.is_cuda for x in inputs.values())
    for number in range(2, 101 if on_a_gpu else 3):
        assert_same_bits(first, run(function, inputs, differentiate, grads), f"run {number} against the first")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert_same_bits(first, run(function, inputs, differentiate, grads), "two threads against one")
    finally:
        torch.set_num_threads(threads)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory: reversed order of dimensions, every second element, an odd offset."""
    reversed_dims = tuple(reversed(range(x.dim())))
    spread = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    spread[..., ::2] = x
    shifted = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    shifted.copy_(x)
    return {"permuted": x.permute(reversed_dims).contiguous().permute(reversed_dims), "spread": spread[..., ::2], "shifted": shifted}


def assert_any_layout(function: Function, inputs: Inputs, *, differentiate: Sequence[str] = (), seed: int = 0) -> None:
    """Same bits whatever the strides and the alignment of inputs and incoming gradients; expanded gradients too."""
    with torch.no_grad():
        grads = weights_for(outputs_of(function(**inputs)), random.Random(seed))
    dense = run(function, inputs, differentiate, grads)
    for kind in ("permuted", "spread", "shifted"):
        other = {n: layouts(x)[kind] if x is not None and x.dim() else x for n, x in inputs.items()}
        assert_same_bits(dense, run(function, other, differentiate, [layouts(g)[kind] if g.dim() else g for g in grads]), f"{kind} memory")
    if differentiate:
        ones = [torch.ones((), dtype=g.dtype, device=g.device) for g in grads]
        whole = run(function, inputs, differentiate, [o.expand(g.shape).contiguous() for o, g in zip(ones, grads, strict=True)])
        flat = run(function, inputs, differentiate, [o.expand(g.shape) for o, g in zip(ones, grads, strict=True)])
        assert_same_bits(whole, flat, "expanded gradients")


def assert_gradcheck(function: Function, inputs: Inputs, differentiate: Sequence[str]) -> None:
    """The definition's derivatives in float64, first and second order."""
    exact = {n: x.double().detach() if x is not None and x.is_floating_point() else x for n, x in inputs.items()}

    def of(*tensors: Tensor) -> tuple[Tensor, ...]:
        return outputs_of(function(**{**exact, **dict(zip(differentiate, tensors, strict=True))}))

    leaves = tuple(exact[n].requires_grad_() for n in differentiate)  # type: ignore[union-attr]
    with use_backend("reference"):
        assert torch.autograd.gradcheck(of, leaves)
        assert torch.autograd.gradgradcheck(of, leaves)


def assert_second_derivative(function: Function, inputs: Inputs, differentiate: Sequence[str], target: Target, *, seed: int = 0) -> None:
    """Gradients of gradients through the kernels against truth, by the error rule."""

    def second(back_end: str, tensors: Inputs, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        leaves = {n: x.detach().requires_grad_(n in differentiate) if x is not None else None for n, x in tensors.items()}
        wanted = [leaves[n] for n in differentiate]
        with use_backend(back_end):  # type: ignore[arg-type]
            outs = outputs_of(function(**leaves))
            first = torch.autograd.grad(outs, wanted, [g.to(o) for g, o in zip(grads, outs, strict=True)], create_graph=True)  # type: ignore[arg-type]
            total = sum((g.double() ** 2).sum() for g in first)
            again = torch.autograd.grad(total, wanted, allow_unused=True)  # type: ignore[arg-type]
        return {f"dd_{n}": g for n, g in zip(differentiate, again, strict=True) if g is not None}

    exact = cast(inputs, torch.float64)
    with use_backend("reference"), torch.no_grad():
        grads = weights_for(outputs_of(function(**exact)), random.Random(seed))
    truth, eager = second("reference", exact, grads), second("reference", inputs, grads)
    got = second(target.backend, inputs, grads)
    assert truth.keys() == got.keys()
    for name in truth:
        assert_close(name, got[name], eager[name], truth[name])


def assert_compiles(function: Function, make: Callable[[int], Inputs], sizes: Sequence[int], differentiate: Sequence[str] = ()) -> None:
    """`torch.compile(fullgraph=True)`: same bits as eager over all sizes, with one graph for the first and one for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for size in sizes:
        inputs = make(size)
        with torch.no_grad():
            grads = weights_for(outputs_of(function(**inputs)), random.Random(size))
        assert_same_bits(run(function, inputs, differentiate, grads), run(compiled, inputs, differentiate, grads), f"compiled, size {size}")
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for {len(sizes)} sizes"


class _Module(torch.nn.Module):
    def __init__(self, function: Function, names: Sequence[str]) -> None:
        super().__init__()
        self.function, self.names = function, names

    def forward(self, *tensors: Tensor | None) -> Any:
        return self.function(**dict(zip(self.names, tensors, strict=True)))


def assert_exports(function: Function, make: Callable[[int], Inputs], dim: int | Mapping[str, int], operator: str) -> None:
    """`torch.export` with a dynamic size: the program holds the operator as one node and gives the same bits at another size.

    `dim` is the dynamic dimension of every floating input, or one per input name (inputs that are not named stay fixed).
    """
    names = list(make(4))
    dims = dim if isinstance(dim, Mapping) else {n: dim for n, x in make(4).items() if x is not None and x.is_floating_point()}
    size = torch.export.Dim("size", min=2, max=512)
    shapes = tuple({dims[n]: size} if n in dims else None for n in names)
    program = torch.export.export(_Module(function, names), tuple(make(6).values()), dynamic_shapes=(shapes,))
    assert any(operator in str(node.target) for node in program.graph.nodes), program.graph
    other = make(11)
    assert_same_bits(
        dict(enumerate_outputs(function(**other))), dict(enumerate_outputs(program.module()(*other.values()))), "the exported program"
    )


def enumerate_outputs(result: Any) -> list[tuple[str, Tensor]]:
    return [(f"out{i}", out) for i, out in enumerate(outputs_of(result))]


def assert_opcheck(operator: Any, *args: Any) -> None:
    """torch's own checks of a registered operator: schema, fake kernel, autograd registration, AOT tracing."""
    results = torch.library.opcheck(operator, args)
    assert set(results.values()) == {"SUCCESS"}, results
