"""The EA module (U-EA, M-EA, S-EA) against itself on plain PyTorch: attention as one writes it, and the fused one, each compiled too.

All gradients are taken: of features, emotion and every parameter. One case has dropout, for which each takes its own noise.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emc_fast.nn import EmotionAwareAttention

from .costs import block_work
from .race import Case, module_gate
from .rivals import PLAIN

# (B, T, d, heads, dropout): a whole clip, a window of the online form, training clips, a FaceAIS clip, REGNN's windows
SIZES = (
    [(1, 8, 128, 4, 0.0), (4, 256, 128, 4, 0.0), (1, 750, 128, 4, 0.0)],
    [
        (1, 8, 128, 4, 0.0),
        (64, 50, 64, 4, 0.0),
        (4, 256, 128, 4, 0.0),
        (4, 256, 128, 4, 0.1),
        (1, 750, 128, 4, 0.0),
        (2, 736, 360, 12, 0.0),
    ],
)


def case_of(batch: int, frames: int, width: int, heads: int, dropout: float, direction: str) -> Case:
    module = EmotionAwareAttention(width, heads, dropout=dropout).train(direction != "forward")
    inputs = {name: torch.randn(batch, frames, width) for name in ("features", "emotion")}
    seed = torch.tensor([7])

    def outcome(net: EmotionAwareAttention, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
        out = net(**leaves, seed=seed)
        found = {"out": out.detach()}
        if direction != "forward":
            weights = (
                torch.arange(out.numel(), dtype=torch.float64).cos().to(out.dtype).view_as(out)
            )  # a plain sum has no gradient after LayerNorm
            grads = torch.autograd.grad((out * weights).sum(), [*leaves.values(), *net.parameters()])
            found |= dict(zip(leaves, grads, strict=False))
            found["parameters"] = torch.cat([g.flatten() for g in grads[len(leaves) :]])
        return found

    def ours(features: Tensor, emotion: Tensor) -> Tensor:
        return module(features, emotion, seed=seed)

    flops, exponentials = block_work(batch, frames, width, heads, blocks=3)
    return Case(
        "EmotionAwareAttention",
        f"{batch} x {frames} x {width} x {heads}" + (f", dropout {dropout:g}" if dropout else ""),
        ours,
        inputs,
        {"eager": ours, "sdpa": ours},
        contexts=PLAIN,
        differentiate=tuple(inputs),
        parameters=tuple(module.parameters()),
        flops=flops,
        exponentials=exponentials,
        gate=lambda: module_gate(outcome, module, inputs),
        shape={"B": batch, "T": frames, "d": width, "H": heads},
    )


def test_emotion_attention(race, request, size, direction) -> None:
    _, frames, _, _, dropout = size
    if dropout and direction == "forward":
        pytest.skip("inference has no dropout")
    case = case_of(*size, direction)
    both = request.config.getoption("--full") or frames == 750  # the fused one compiled is the better rival, and compiling takes time
    case.compiled = ("eager", "sdpa") if both else ("sdpa",)
    race(case, direction)
