"""REGNN's cognitive processor (a graph of what the listener does, and its edges) and motor processor (an invertible graph network)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TINY = 1e-16


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        return self.contract(F.gelu(self.expand(x)))


def kept_edges(strength: Tensor, neighbours: int, rule: str) -> Tensor:
    """Which edges stay.

    Args:
        strength: (N, V, V), row i is what node i gives each node; the largest `neighbours` of a row are its own strongest.
        neighbours: how many.
        rule: `row`: row i keeps its own strongest; `union`: every row keeps the strongest of all rows. Either keeps the diagonal.

    Returns:
        (N, V, V) bool.
    """
    strongest = strength.topk(neighbours, dim=-1).indices
    kept = torch.zeros_like(strength, dtype=torch.bool).scatter(-1, strongest, True)
    if rule == "union":
        kept = kept.any(-2, keepdim=True)
    return kept | torch.eye(strength.shape[-1], dtype=torch.bool, device=strength.device)


class CognitiveProcessor(nn.Module):
    """Frame by frame from the fused sequence to one value per node, and from the nodes' courses to the edges between them.

    Args:
        fused_dim: width of the fused sequence.
        nodes: V, channels of emotion.
        window: frames W of a node.
        channels: P kinds of edges.
        neighbours, mask: see `kept_edges`.
    """

    def __init__(self, fused_dim: int, *, nodes: int, window: int, channels: int, neighbours: int, mask: str) -> None:
        super().__init__()
        self.channels, self.neighbours, self.mask = channels, neighbours, mask
        self.convert = MLP(fused_dim, fused_dim // 2, nodes)
        self.edge_input = MLP(window, window, window)
        self.edge_weight = nn.Linear(window, window * 2 * channels, bias=False)

    def graph(self, fused: Tensor) -> Tensor:
        """The graph F frame by frame: (N, T, fused_dim) to (N, T, V)."""
        return self.convert(fused)

    def edges(self, graph: Tensor) -> Tensor:
        """Edges (N, P, V, V) of the graph (N, W, V): sparse attention E_r, normalised by columns as E_c, as E_r E_c^T; float32 at least."""
        nodes = graph.transpose(-1, -2)
        batch, count, width = nodes.shape
        query, key = self.edge_weight(self.edge_input(nodes)).reshape(batch, count, 2, self.channels, width).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-1, -2) * width**-0.5).to(torch.promote_types(query.dtype, torch.float32))
        with torch.autocast(scores.device.type, enabled=False):
            attention = torch.softmax(scores, dim=-1)
            kept = kept_edges(attention.detach().sum(1), self.neighbours, self.mask)
            attention = torch.where(kept[:, None], attention, 0)
            rows = attention / (attention.sum(-1, keepdim=True) + _TINY)
            columns = rows / (rows.sum(-2, keepdim=True) + _TINY)
            return rows @ columns.transpose(-1, -2)


def spectral_norm(matrices: Tensor) -> Tensor:
    """Largest singular values of square matrices (..., W, W), float32 or float64, as (...).

    By squaring M^T M until only the largest eigenvalue is left in its trace, k times for W^(1/2^k) - 1 below rounding: a singular value
    decomposition would wait for a GPU, and cannot be captured in a CUDA graph. What it gives is at least the norm, rounding apart.
    """
    info = torch.finfo(matrices.dtype)
    power = matrices.mT @ matrices
    trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=info.tiny)
    logarithm = trace.log()
    for step in range(1, 2 - round(math.log2(info.eps / math.log(max(matrices.shape[-1], 2))))):
        power = power / trace[..., None, None]
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=info.tiny)
        logarithm = logarithm + trace.log() / 2**step
    return (logarithm / 2).exp()


class ActNorm(nn.Module):
    """Scale and shift per node, begun so that the first batch comes out with mean 0 and variance 1.

    That it has begun is saved with the weights.

    Args:
        nodes: V.
    """

    initialised: Tensor

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(nodes))
        self.shift = nn.Parameter(torch.zeros(nodes))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._ready = False  # what is known of the flag without asking the device

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = False

    @torch.no_grad()
    def begin(self, x: Tensor, counted: Tensor) -> None:
        """Take scale and shift from `x` (..., V, W) where `counted` (..., 1, W) or broadcastable; only the first time with a value.

        With several processes the statistics are those of the whole batch.
        """
        if self._ready:
            return
        if not bool(self.initialised):
            x = x.double()
            counted = counted.expand(x.shape)
            x = torch.where(counted, x, 0).transpose(-1, -2).flatten(0, -2)
            sums = torch.stack((counted.transpose(-1, -2).flatten(0, -2).sum(0).double(), x.sum(0), x.square().sum(0)))
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(sums)
            if not bool((sums[0] > 0).all()):
                return
            mean = sums[1] / sums[0]
            scale = (sums[2] / sums[0] - mean.square()).clamp(min=0).add(1e-5).rsqrt()
            self.log_scale.copy_(scale.log())
            self.shift.copy_(-mean * scale)
            self.initialised.fill_(True)
        self._ready = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., V, W) to the same."""
        return x * self.log_scale.exp()[:, None] + self.shift[:, None]

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` gave `y` for."""
        return (y - self.shift[:, None]) * (-self.log_scale).exp()[:, None]


class GraphFlow(nn.Module):
    """y = x + f(x) with f a graph attention that contracts, so that x is the fixed point of x = y - f(x).

    f(x) = E(s) s / c with s = sigmoid(ELU(x)), where row i of E is the softmax over j of
    (W_q s_i + b_q)(W_k s_j + b_k) / sqrt(W) + log edge_ij, averaged over the kinds of edges.

    Args:
        window: frames W.
        channels: P.
    """

    CONTRACTION = 0.9
    """Lipschitz constant that f does not exceed, whatever its weights."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.query_key = nn.Linear(window, 2 * window)
        self.channel_weight = nn.Parameter(torch.ones(1, channels))

    @torch.no_grad()
    def divisor(self) -> Tensor:
        """c, a scalar: the released ||I + 2 W_q W_k^T / sqrt(W)||_2 + 5, or more where the weights are so large that this is too little.

        The released divisor is no bound. This is one, in the norm max_i ||x_i||_2 over nodes: s lies in a box [a, 1]^W with
        a = sigmoid(-1), centre m and radius r = sqrt(W) (1 - a) / 2; sigmoid and ELU together contract by 4. By the product rule
        |d(E s)_i| <= |ds| + |Cov_i W_k^T W_q ds_i| / sqrt(W) + sum_j E_ij |s_j - (E s)_i| |(W_k^T (W_q s_i + b_q)) . ds_j| / sqrt(W), and a
        covariance in the box has at most the norm r^2 and the trace r^2. So with M = W_k^T W_q and v = W_k^T (W_q m + b_q)

            Lip(f) <= (1 + r (2 r ||M|| + ||v||) / sqrt(W)) / (4 c)  times  sum|w| / |sum w| of the channel weights.
        """
        weight, bias = self.query_key.weight, self.query_key.bias
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        width = weight.shape[1]
        query, key = weight.chunk(2)
        identity = torch.eye(width, device=weight.device, dtype=weight.dtype)
        product = key.T @ query
        released, size = spectral_norm(torch.stack((identity + 2 * width**-0.5 * query @ key.T, product))).unbind()
        least = 1 / (1 + math.e)
        radius = width**0.5 * (1 - least) / 2
        at_centre = key.T @ (query.sum(1) * (1 + least) / 2 + bias[:width].to(weight.dtype))
        slope = 1 + radius * (2 * radius * size + at_centre.square().sum().sqrt()) * width**-0.5
        mixing = self.channel_weight.abs().sum() / self.channel_weight.sum().abs()
        return torch.maximum(released + 5, slope * mixing.to(slope.dtype) / (4 * self.CONTRACTION))

    def update(self, x: Tensor, log_edges: Tensor, divisor: Tensor) -> Tensor:
        """f(x) of `x` (..., V, W); `log_edges` (..., P, V, V), leading dimensions broadcast."""
        signal = torch.sigmoid(F.elu(x))
        query, key = self.query_key(signal).chunk(2, dim=-1)
        scores = query @ key.transpose(-1, -2) * x.shape[-1] ** -0.5
        mixture = torch.softmax(scores.unsqueeze(-3) + log_edges, dim=-1)
        weight = (self.channel_weight / self.channel_weight.sum()).view(-1, 1, 1)
        return (mixture * weight).sum(-3) @ signal / divisor


class Inverse(NamedTuple):
    """`values` (..., V, W), and the largest change that any layer's last iteration made, a scalar."""

    values: Tensor
    residual: Tensor


class MotorProcessor(nn.Module):
    """Layers of ActNorm and `GraphFlow`: from a reaction to its graph, and back.

    Args:
        nodes, window, channels: V, W, P.
        layers: how many.
    """

    def __init__(self, *, nodes: int, window: int, channels: int, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ActNorm(nodes) for _ in range(layers))
        self.flows = nn.ModuleList(GraphFlow(window, channels) for _ in range(layers))

    @staticmethod
    def log_edges(edges: Tensor) -> Tensor:
        """Logarithm of edges (..., V, V), -inf where there is none; an edge of a node to itself is always there."""
        edges = edges + _TINY * torch.eye(edges.shape[-1], dtype=edges.dtype, device=edges.device)
        none = edges == 0
        return edges.masked_fill(none, 1).log().masked_fill(none, -torch.inf)

    def divisors(self) -> list[Tensor]:
        """One `GraphFlow.divisor` per layer. They depend on the weights alone, so once per step is enough."""
        with torch.autocast(self.flows[0].query_key.weight.device.type, enabled=False):  # type: ignore[union-attr, arg-type]
            return [flow.divisor() for flow in self.flows]  # type: ignore[operator]

    def forward(self, x: Tensor, log_edges: Tensor, divisors: list[Tensor], *, counted: Tensor | None = None) -> Tensor:
        """A reaction (..., V, W) to its graph.

        Args:
            x: (..., V, W).
            log_edges: (..., P, V, V) from `log_edges`.
            divisors: from `divisors`.
            counted: bool, broadcastable to x: what ActNorm may take its beginning from; None = nothing, it begins at 1 and 0.
        """
        with torch.autocast(x.device.type, enabled=False):
            for norm, flow, divisor in zip(self.norms, self.flows, divisors, strict=True):
                if counted is not None:
                    norm.begin(x, counted)  # type: ignore[operator]
                x = norm(x)
                x = x + flow.update(x, log_edges, divisor)  # type: ignore[operator]
        return x

    def inverse(self, y: Tensor, log_edges: Tensor, divisors: list[Tensor], *, iterations: int) -> Inverse:
        """A graph (..., V, W) to its reaction, by `iterations` of x <- y - f(x) in each layer.

        A fixed number: an end that depended on the batch would let clips depend on their batch mates, and wait for the device. The
        change of the last iteration is what the one before had left of y - (x + f(x)).
        """
        residual = y.new_zeros(())
        with torch.autocast(y.device.type, enabled=False):
            for norm, flow, divisor in zip(reversed(self.norms), reversed(self.flows), reversed(divisors), strict=True):
                x = before = y
                for _ in range(iterations):
                    before, x = x, y - flow.update(x, log_edges, divisor)  # type: ignore[operator]
                residual = torch.maximum(residual, (x - before).detach().abs().amax() if x.numel() else residual)
                y = norm.inverse(x)  # type: ignore[operator]
        return Inverse(y, residual)
