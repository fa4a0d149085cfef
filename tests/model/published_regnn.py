"""REGNN as released, plainly and under the published names; what the model is compared with. Windows of W frames, V = 25 nodes."""

import math

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.randn(3 * d))
        self.out_proj = nn.Linear(d, d)

    def forward(self, query, memory):
        d = query.shape[-1]
        weight, bias = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (nn.functional.linear(x, w, b) for x, w, b in zip((query, memory, memory), weight, bias, strict=True))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = torch.softmax(q @ k.mT / math.sqrt(d // self.heads), -1) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.self_attn = Attention(d, heads)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.layer_norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        x = x + self.self_attn(self.layer_norms[0](x), self.layer_norms[0](memory))
        return x + self.fc2(self.fc1(self.layer_norms[1](x)).relu())


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, x):
        half = x.shape[-1] // 2
        angle = [[t * math.exp(-math.log(10000) / (half - 1) * i) for i in range(half)] for t in range(1, x.shape[1] + 1)]
        angle = torch.tensor(angle, dtype=x.dtype)
        return math.sqrt(x.shape[-1]) * x + torch.cat((angle.sin(), angle.cos()), -1)


class Encoder(nn.Module):
    def __init__(self, d, heads, layers):
        super().__init__()
        self.register_buffer("version", torch.tensor([2.0]))
        self.embed_positions = Positions()
        self.layers = nn.ModuleList([Layer(d, heads) for _ in range(layers)])
        self.layer_norm = nn.LayerNorm(d)

    def forward(self, x, memory=None):
        x = self.embed_positions(x)
        memory = None if memory is None else self.embed_positions(memory)
        for layer in self.layers:
            x = layer(x, memory)
        return self.layer_norm(x)


class Fuse(nn.Module):
    def __init__(self, face, d, heads, layers):
        super().__init__()
        self.proj_a, self.proj_v = nn.Conv1d(d, d, 1, bias=False), nn.Conv1d(face, d, 1, bias=False)
        self.trans_v_with_a, self.trans_v_mem = Encoder(d, heads, layers), Encoder(d, heads, layers)
        self.proj1, self.proj2, self.out_layer = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d // 2)

    def forward(self, face, speech):
        h = self.trans_v_mem(self.trans_v_with_a(self.proj_v(face.mT).mT, speech))
        return self.out_layer(h + self.proj2(self.proj1(h).relu()))


class Mlp(nn.Module):
    def __init__(self, a, b, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(a, b), nn.Linear(b, c)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Mixture(nn.Module):
    def __init__(self, width):
        super().__init__()
        for k in range(6):
            self.add_module(f"mean_{k}", Mlp(width, width, width))


class EdgeLayer(nn.Module):
    def __init__(self, width, channels, neighbours, rule):
        super().__init__()
        self.channels, self.neighbours, self.rule = channels, neighbours, rule
        self.qk = nn.Sequential(Mlp(width, width, width), nn.Linear(width, width * 2 * channels, bias=False))

    def mask(self, edge):
        """The loops of the release, one clip and one entry at a time; `row` is what they seem to have meant."""
        masks = []
        for strength in edge.detach().sum(1):
            strongest = strength.topk(self.neighbours, -1).indices.tolist()
            mask = torch.eye(len(strength))
            for i, own in enumerate(strongest):
                for row in strongest if self.rule == "union" else [own]:
                    for j in row:
                        mask[i, j] = 1
            masks.append(mask)
        return torch.stack(masks)[:, None].to(edge)

    def forward(self, nodes):
        batch, count, width = nodes.shape
        q, k = self.qk(nodes).reshape(batch, count, 2, self.channels, width).permute(2, 0, 3, 1, 4)
        edge = torch.softmax(q @ k.mT / math.sqrt(width), -1)
        edge = edge * self.mask(edge)
        rows = edge / edge.sum(-1, keepdim=True)
        return rows @ (rows / rows.sum(-2, keepdim=True)).mT


class Cognitive(nn.Module):
    def __init__(self, d, width, channels, neighbours, rule):
        super().__init__()
        self.convert_layer = Mlp(d, d // 2, 25)
        self.dll = Mixture(width)
        self.EdgeLayer = EdgeLayer(width, channels, neighbours, rule)

    def forward(self, fused):
        graph = self.convert_layer(fused).mT
        return graph, self.EdgeLayer(graph)


class ActNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self._log_scale, self._shift = nn.Parameter(torch.randn(25)), nn.Parameter(torch.randn(25))

    def forward(self, x):
        return x * self._log_scale.exp()[:, None] + self._shift[:, None]

    def inverse(self, y):
        return (y - self._shift[:, None]) / self._log_scale.exp()[:, None]


class GraphAttention(nn.Module):
    def __init__(self, width, channels):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, channels))
        self.qk = nn.Linear(width, 2 * width)

    def forward(self, x, edge):
        width = x.shape[-1]
        x = torch.sigmoid(nn.functional.elu(x))
        wq, wk = self.qk.weight.detach().chunk(2)
        norm = torch.linalg.svdvals(torch.eye(width).to(x) + 2 * wq @ wk.T / math.sqrt(width))[0] + 5
        q, k = self.qk(x).chunk(2, -1)
        edge = torch.softmax(q @ k.mT / math.sqrt(width), -1)[:, None] * edge
        edge = edge / edge.sum(-1, keepdim=True)
        edge = torch.einsum("bpij,p->bij", edge, self.w[0] / self.w.sum())
        return edge @ x / norm


class GraphLayer(nn.Module):
    def __init__(self, width, channels):
        super().__init__()
        self.norm_layer = ActNorm()
        self.attn_1 = GraphAttention(width, channels)


class Motor(nn.Module):
    def __init__(self, width, channels, layers):
        super().__init__()
        self.Layers = nn.Sequential(*[GraphLayer(width, channels) for _ in range(layers)])
        self.register_buffer("p", torch.eye(width))
        self.register_buffer("sign_s", torch.ones(width))
        self.l, self.u = nn.Parameter(torch.eye(width)), nn.Parameter(torch.zeros(width, width))
        self.log_s = nn.Parameter(torch.zeros(width))

    def forward(self, x, edge):
        for layer in self.Layers:
            x = layer.norm_layer(x)
            x = x + layer.attn_1(x, edge)
        return x

    def inverse(self, y, edge, iterations=60):
        for layer in reversed(self.Layers):
            x = y
            for _ in range(iterations):
                x = y - layer.attn_1(x, edge)
            y = layer.norm_layer.inverse(x)
        return y


class Perceptual(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.fuse_model = Fuse(*sizes)


class PublishedREGNN(nn.Module):
    def __init__(self, *, face=768, d=128, heads=4, depth=5, width=50, channels=8, neighbours=5, layers=2, rule="union"):
        super().__init__()
        self.perceptual_processor = Perceptual(face, d, heads, depth)
        self.cognitive_processor = Cognitive(d // 2, width, channels, neighbours, rule)
        self.motor_processor = Motor(width, channels, layers)

    def forward(self, face, speech):
        return self.cognitive_processor(self.perceptual_processor.fuse_model(face, speech))


def published_loss(model, graph, edge, listeners, threshold):
    """Per clip a list of reactions (V, W); the two terms of the release, clip by clip."""
    nearest, theirs, centres = [], [], []
    for b, reactions in enumerate(listeners):
        out = torch.stack([model.motor_processor(g[None], edge[b : b + 1])[0] for g in reactions])
        distance = torch.stack([(graph[b] - y).square().mean() for y in out]).min()
        nearest.append(distance if distance > threshold else distance * 0)
        theirs.append(out)
        centres.append(out.mean(0, keepdim=True).expand_as(out))
    return torch.stack(nearest).mean(), nn.functional.mse_loss(torch.cat(centres), torch.cat(theirs))
