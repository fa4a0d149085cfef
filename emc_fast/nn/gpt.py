"""Pre-norm transformer layers as language models have them, attention through the package's operator.

A layer is x + Dropout(Attn(LN(x))) followed by x + Dropout(W_2 GELU(W_1 LN(x))); `bias=False` leaves every bias out, those of the
LayerNorms too. `GatedCrossLayer` adds a second stream through a gate that starts at zero.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .noise import Dropout, layer_stream


class MultiHeadAttention(nn.Module):
    """Dropout(W_o Attn(W_q x, W_k m, W_v m)), the projections of one input in one product.

    Args:
        d_model: width d; num_heads divides it.
        num_heads: number of heads.
        cross: the keys and values come from a memory, else from x itself.
        bias: on all projections.
        dropout: on the attention weights and on the output, in training.
        stream: first of two noise streams.
    """

    def __init__(
        self, d_model: int, num_heads: int, *, cross: bool = False, bias: bool = True, dropout: float = 0.1, stream: int = 0
    ) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model; got {num_heads} heads for a width of {d_model}")
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model, bias=bias) if cross else None
        self.inputs = nn.Linear(d_model, (2 if cross else 3) * d_model, bias=bias)
        self.output = nn.Linear(d_model, d_model, bias=bias)
        self.p = dropout
        self.stream = stream

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        norm: nn.LayerNorm | None = None,
        residual: bool = False,
        key_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Attend from `norm(x)`, or x (B, T, d), to a memory (B, S, d), of which `key_mask` (B, S) may be seen; `residual` adds x.

        Without a memory it attends to what it asks from. For a row that sees nothing attention is zero.
        """
        p = self.p if self.training else 0.0
        return ops.attention_sublayer(
            x, memory, self.weights(norm), num_heads=self.num_heads, key_mask=key_mask, attention_dropout_p=p, dropout_p=p,
            seed=seed, stream=self.stream, residual=residual,
        )  # fmt: skip

    def weights(self, norm: nn.LayerNorm | None) -> ops.AttentionBlockWeights:
        """The tensors of the layer in the order of the operator: views of the joint projections."""
        parts = 3 if self.query is None else 2
        matrices: list[Tensor | None] = [*self.inputs.weight.chunk(parts)]
        vectors: list[Tensor | None] = [None] * parts if self.inputs.bias is None else [*self.inputs.bias.chunk(parts)]
        if self.query is not None:
            matrices, vectors = [self.query.weight, *matrices], [self.query.bias, *vectors]
        matrices, vectors = [*matrices, self.output.weight], [*vectors, self.output.bias]
        last = (None, None, 1e-5) if norm is None else (norm.weight, norm.bias, norm.eps)
        return ops.AttentionBlockWeights._make([*(x for pair in zip(matrices, vectors, strict=True) for x in pair), *last])


class GeluMLP(nn.Module):
    """Dropout(W_2 GELU(W_1 x)), hidden width 4d.

    Args:
        d_model: width d.
        bias, dropout, stream: as in `MultiHeadAttention`; one noise stream.
    """

    def __init__(self, d_model: int, *, bias: bool = True, dropout: float = 0.1, stream: int = 0) -> None:
        super().__init__()
        self.expand = nn.Linear(d_model, 4 * d_model, bias=bias)
        self.contract = nn.Linear(4 * d_model, d_model, bias=bias)
        self.dropout = Dropout(dropout, stream=stream)

    def forward(self, x: Tensor, *, seed: Tensor | None = None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        return self.dropout(self.contract(F.gelu(self.expand(x))), seed=seed)


class GPTLayer(nn.Module):
    """Self-attention that sees both sides, and an MLP, each behind a LayerNorm and with a residual.

    Args:
        d_model, num_heads, bias, dropout: as in `MultiHeadAttention`.
        stream: first of three noise streams.
    """

    def __init__(self, d_model: int, num_heads: int, *, bias: bool = True, dropout: float = 0.1, stream: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, bias=bias)
        self.attention = MultiHeadAttention(d_model, num_heads, bias=bias, dropout=dropout, stream=stream)
        self.mlp_norm = nn.LayerNorm(d_model, bias=bias)
        self.mlp = GeluMLP(d_model, bias=bias, dropout=dropout, stream=stream + 2)

    def forward(self, x: Tensor, *, key_mask: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        """(B, T, d) to (B, T, d); `key_mask` (B, T) are the frames that may be attended."""
        x = self.attention(x, norm=self.attention_norm, residual=True, key_mask=key_mask, seed=seed)
        return x + self.mlp(self.mlp_norm(x), seed=seed)


class GatedCrossLayer(nn.Module):
    """A `GPTLayer` that takes in a second stream: x + a + g CrossAttn(LN(a), LN_m(m)) with a = SelfAttn(LN(x)), then the MLP.

    g is one learned number, zero at first; LN is the same before both attentions.

    Args:
        d_model, num_heads, bias, dropout: as in `MultiHeadAttention`.
        stream: first of five noise streams.
    """

    def __init__(self, d_model: int, num_heads: int, *, bias: bool = True, dropout: float = 0.1, stream: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, bias=bias)
        self.attention = MultiHeadAttention(d_model, num_heads, bias=bias, dropout=dropout, stream=stream)
        self.memory_norm = nn.LayerNorm(d_model, bias=bias)
        self.cross = MultiHeadAttention(d_model, num_heads, cross=True, bias=bias, dropout=dropout, stream=stream + 2)
        self.gate = nn.Parameter(torch.zeros(()))
        self.mlp_norm = nn.LayerNorm(d_model, bias=bias)
        self.mlp = GeluMLP(d_model, bias=bias, dropout=dropout, stream=stream + 4)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        key_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """(B, T, d) and a memory (B, S, d) to (B, T, d); `key_mask` (B, T) and `memory_mask` (B, S) are what may be attended."""
        attended = self.attention(x, norm=self.attention_norm, key_mask=key_mask, seed=seed)
        crossed = self.cross(attended, self.memory_norm(memory), norm=self.attention_norm, key_mask=memory_mask, seed=seed)
        x = x + attended + self.gate * crossed
        return x + self.mlp(self.mlp_norm(x), seed=seed)


class GPTStack(nn.Module):
    """`GPTLayer`s one after the other, with a last LayerNorm if wanted.

    Args:
        d_model, num_heads, bias, dropout: as in `GPTLayer`.
        layers: how many.
        first: number of the first layer in its backbone, for its noise (`layer_stream`).
        final_norm: LayerNorm at the end.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        layers: int,
        *,
        first: int,
        bias: bool = True,
        dropout: float = 0.1,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GPTLayer(d_model, num_heads, bias=bias, dropout=dropout, stream=layer_stream(first + i)) for i in range(layers)
        )
        self.norm = nn.LayerNorm(d_model, bias=bias) if final_norm else None

    def forward(self, x: Tensor, *, key_mask: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        """(B, T, d) to (B, T, d); `key_mask` (B, T) are the frames that may be attended."""
        for layer in self.layers:
            x = layer(x, key_mask=key_mask, seed=seed)
        return x if self.norm is None else self.norm(x)


class GatedCrossStack(nn.Module):
    """`GatedCrossLayer`s one after the other.

    Args:
        d_model, num_heads, dropout: as in `GatedCrossLayer`.
        layers, first: as in `GPTStack`.
        reads: `first`: the first layer reads the memory and each later one its own input, as the published code does; `all`: every
            layer reads the memory.
    """

    def __init__(self, d_model: int, num_heads: int, layers: int, *, first: int, dropout: float = 0.1, reads: str = "first") -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GatedCrossLayer(d_model, num_heads, dropout=dropout, stream=layer_stream(first + i)) for i in range(layers)
        )
        self.reads = reads

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        key_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """(B, T, d) and a memory (B, S, d) to (B, T, d); masks as in `GatedCrossLayer`."""
        for layer in self.layers:
            x = layer(x, memory, key_mask=key_mask, memory_mask=memory_mask, seed=seed)
            if self.reads == "first":
                memory, memory_mask = x, key_mask
        return x


def init_like_gpt(root: nn.Module, layers: int) -> None:
    """GPT-2's initialisation: N(0, .02) for matrices and embeddings, zero biases; what ends in a residual sum .02 / sqrt(2 layers)."""
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in root.modules():
        if isinstance(module, MultiHeadAttention | GeluMLP):
            last = module.output if isinstance(module, MultiHeadAttention) else module.contract
            nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * layers))
