"""REGNN, the reversible graph network baseline of the REACT challenges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import REACTION_3DMM_DIM, REACTION_EMOTION_DIM
from ..errors import ConvergenceError
from ..losses import masked_mean, squared_error
from ..nn.noise import BACKBONE
from ..ops import streams
from .base import Backbone, Listeners, Past, Reaction, Sample, Segment, Step
from .distribution import Distribution, Gaussian
from .options import REGNNOptions
from .regnn_graph import MLP, CognitiveProcessor, MotorProcessor
from .regnn_perception import PerceptualProcessor

if TYPE_CHECKING:
    from ..config import EMCConfig

NODES = REACTION_EMOTION_DIM


@dataclass(frozen=True)
class GraphGaussian(Gaussian):
    """A unit-variance Gaussian per frame around the graph, `mu` (B, J, T, 25), and the graph's edges (B, J, P, 25, 25)."""

    edges: Tensor

    def split(self, parts: int) -> list[GraphGaussian]:  # type: ignore[override]
        """Chunks along B."""
        mu, edges = self.mu.chunk(parts), self.edges.chunk(parts)
        return [GraphGaussian(m, None, e) for m, e in zip(mu, edges, strict=True)]

    @staticmethod
    def pick(options: list[GraphGaussian], index: Tensor) -> GraphGaussian:  # type: ignore[override]
        """Per clip the distribution that `index` (B,) names."""
        rows = torch.arange(index.shape[0], device=index.device)
        mu, edges = (torch.stack(parts)[index, rows] for parts in ([o.mu for o in options], [o.edges for o in options]))
        return GraphGaussian(mu, None, edges)


def hold(x: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """A sequence of `length` frames in which every frame that is not there repeats the one before it (at the beginning, the first).

    Args:
        x: (N, T, C), T <= `length`.
        mask: (N, T) bool, frames that are there; None = all.
        length: frames wanted.

    Returns:
        (N, length, C).
    """
    frames = x.shape[1]
    if mask is None:
        return x if frames == length else torch.cat((x, x[:, -1:].expand(-1, length - frames, -1)), dim=1)
    number = torch.arange(frames, device=x.device)
    last = torch.where(mask, number, -1).cummax(1).values
    place = torch.where(last < 0, mask.int().argmax(1)[:, None], last)
    place = torch.cat((place, place[:, -1:].expand(-1, length - frames)), dim=1)
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))


class REGNN(Backbone):
    """A window of 50 frames becomes a graph of 25 nodes, one per channel of emotion; an invertible network takes it to a reaction.

    Trained the other way round: the reactions of all appropriate listeners go through the inverse network, and the graph of the
    speaker is drawn to the nearest of theirs, and theirs to each other. 3DMM coefficients come from a small network that reads the
    emotion of a frame; it is an addition, trained beside on the real listener, and changes nothing else.

    Args:
        config: widths and dropout; `d_model` is the width of the transformer, its half that of the fused sequence.
        options: see `REGNNOptions`.
    """

    options_type = REGNNOptions
    framewise = stacks_segments = True
    sample_dim = NODES

    def __init__(self, config: EMCConfig, options: REGNNOptions) -> None:
        super().__init__()
        d = config.d_model
        if config.input == "image":
            raise ValueError("REGNN reads features (published: 768 numbers per frame from a Swin transformer); set input='features'")
        if d % 4 or (d // 2) % config.num_heads:
            raise ValueError(f"REGNN takes a d_model divisible by 4 and by twice num_heads; got {d} with {config.num_heads} heads")
        self.options = options
        self.d_model, self.fused_dim = d, d // 2
        self.window, self.stride = options.window, options.stride
        self.inverse_iterations = options.inverse_iterations
        # The original learns without noise; EMC's S-EA is given in training what it is given later, a draw.
        self.noise_in_training = config.emc
        self.face_projection = nn.Linear(config.face_dim, d, bias=False) if config.face_dim != d else nn.Identity()
        self.speech_projection = nn.Linear(config.speech_dim, d, bias=False) if config.speech_dim != d else nn.Identity()
        self.perception = PerceptualProcessor(
            d, d // 2, num_heads=config.num_heads, layers=options.perceptual_layers, window=options.window, dropout=config.dropout,
            embedding_dropout=options.embedding_dropout, stream=BACKBONE[0],
        )  # fmt: skip
        self.cognition = CognitiveProcessor(
            d // 2, nodes=NODES, window=options.window, channels=options.channels, neighbours=options.neighbours, mask=options.mask
        )
        self.motor = MotorProcessor(nodes=NODES, window=options.window, channels=options.channels, layers=options.layers)
        self.coefficient_head = MLP(NODES, d, REACTION_3DMM_DIM)
        self.register_buffer("threshold", torch.zeros(()))
        self.divisors: list[Tensor] = []
        self.residual: Tensor | None = None

    threshold: Tensor

    def segments(self, frames: int) -> list[Segment]:
        """Windows by themselves every `stride` frames, as many as it takes to have each frame; the last may be short."""
        starts = range(0, max(frames - (self.window - self.stride), 1), self.stride)
        return [Segment(i, start, start, min(start + self.window, frames)) for i, start in enumerate(starts)]

    def needed_frame(self, segment: Segment) -> int:
        """The first frame that no window before this one has."""
        return segment.begin + self.window - self.stride if segment.index else 0

    def begin(self) -> None:
        """Compute the motor's divisors, which do not depend on data."""
        self.divisors, self.residual = self.motor.divisors(), None

    def check_result(self) -> None:
        """Raise `ConvergenceError` if an inverse was still changing by more than `inverse_tolerance`."""
        tolerance = self.options.inverse_tolerance
        if self.residual is not None and not float(self.residual) <= tolerance:
            raise ConvergenceError(
                f"the inverse of REGNN's motor processor still changed by {float(self.residual):.3g} in iteration "
                f"{self.inverse_iterations}, {tolerance:g} is taken; allow more iterations: "
                "backbone_options={'inverse_iterations': ...}, or model.backbone.inverse_iterations = ... on a built model"
            )

    def encode(
        self,
        face: Tensor | None,
        speech: Tensor | None,
        *,
        face_mask: Tensor | None,
        speech_mask: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """A linear layer each; a stream that is as wide as the transformer goes in as it is, as published."""
        return None if face is None else self.face_projection(face), None if speech is None else self.speech_projection(speech)

    def fuse(self, face: Tensor, speech: Tensor, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """The perceptual processor; see `Backbone.fuse`."""
        return self.perception(face, speech, key_mask=key_mask, seed=seed)

    def distribution(
        self, fused: Tensor, *, segment: Segment, draws: int, key_mask: Tensor | None, past: Past | None, seed: Tensor | None
    ) -> GraphGaussian:
        """The cognitive processor. Frames that do not count, and those that a short window lacks, repeat the ones before them."""
        graph = hold(self.cognition.graph(fused), key_mask, self.window)
        edges = self.cognition.edges(graph)
        mu = graph[:, : segment.frames]
        return GraphGaussian(mu.unflatten(0, (-1, draws)), None, edges.unflatten(0, (-1, draws)))

    def sample(self, distribution: Distribution, num_samples: int, *, segment: Segment, seed: Tensor | None) -> Sample:
        """The graph and noise whose largest element, over a window of a clip and a draw, is the root of `noise`; (B, K, T, 25)."""
        assert isinstance(distribution, GraphGaussian)
        mu = distribution.mu.expand(-1, num_samples, -1, -1)
        if self.options.noise == 0 or (self.training and not self.noise_in_training):
            return Sample(mu, None)
        # Over the whole window, also where the clip ends within it: what is drawn does not depend on what follows.
        # Windows that are taken at once follow one another in the noise too.
        shape = (mu.shape[0] // segment.count, num_samples, segment.count * self.window, NODES)
        offset = segment.index * self.window
        dtype = torch.promote_types(mu.dtype, torch.float32)
        noise = ops.philox_normal(shape, seed, stream=streams.LATENT, frame_offset=offset, dtype=dtype, device=mu.device)
        noise = torch.cat(noise.split(self.window, dim=2))
        largest = noise.abs().amax((-2, -1), keepdim=True)
        noise = noise * (self.options.noise**0.5 / largest).clamp(max=1)
        return Sample(mu + noise[..., : segment.frames, :].to(mu.dtype), None)

    def decode(
        self,
        memory: Tensor,
        sample: Tensor,
        *,
        distribution: Distribution,
        segment: Segment,
        frame_mask: Tensor | None,
        past: Past | None,
        seed: Tensor | None,
    ) -> Reaction:
        """The motor processor's inverse, and the 3DMM head. In training without gradient: nothing is learned from the reaction."""
        assert isinstance(distribution, GraphGaussian)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            graph = self._window(memory, frame_mask).unflatten(0, (distribution.mu.shape[0], -1))
            edges = self.motor.log_edges(distribution.edges)
            emotion, residual = self.motor.inverse(graph, edges, self.divisors, iterations=self.inverse_iterations)
            self.residual = residual if self.residual is None else torch.maximum(self.residual, residual)
            emotion = emotion.flatten(0, 1).transpose(-1, -2)[:, : segment.frames].to(memory.dtype)
            return Reaction(self.coefficient_head(emotion), emotion)

    def _window(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A sequence (N, T, 25) as nodes (N, 25, W), held where it has no frames, in float32 at least."""
        return hold(x, mask, self.window).transpose(-1, -2).to(torch.promote_types(x.dtype, torch.float32))

    def training_loss(self, steps: list[Step], target: Reaction, *, mask: Tensor | None, listeners: Listeners | None) -> dict[str, Tensor]:
        """The released loss, window by window, and the error of the 3DMM head.

        `nearest`: mean squared distance of the speaker's graph (in EMC as it left S-EA) to the nearest of the listeners' graphs, which are
        their reactions through the motor processor over the speaker's edges; mean over windows, those below the threshold as 0.
        `mid`: of the listeners' graphs to their mean. `coefficients`: of the 3DMM head, given the real listener's emotion.
        A listener counts in windows where he is there in every frame of the clip.
        """
        if listeners is None:
            there = torch.ones_like(target.emotion[..., 0], dtype=torch.bool) if mask is None else mask
            listeners = Listeners(target.emotion[:, :, None], there[..., None])
        compared = [self._compared(step, listeners) for step in steps]
        graphs, edges, reactions, complete, counted = (torch.cat(parts) for parts in zip(*compared, strict=True))
        log_edges = self.motor.log_edges(edges)
        theirs = self.motor(reactions, log_edges, self.divisors, counted=complete[..., None, None] & counted[:, None, None, :])

        width = counted.sum(-1).clamp(min=1) * NODES  # elements of a window that count
        frames = counted[:, None, None, None, :]
        distance = torch.where(frames, (graphs[:, :, None] - theirs[:, None]).square(), 0).sum((-2, -1)) / width[:, None, None]
        nearest = torch.where(complete[:, None], distance, torch.inf).amin(-1)
        known = complete.any(-1)[:, None]
        nearest = torch.where(known & (nearest > self.threshold), nearest, 0)
        share = (complete / complete.sum(-1, keepdim=True).clamp(min=1)).to(theirs.dtype)
        centre = torch.where(complete[..., None, None], theirs, 0).mul(share[..., None, None]).sum(1, keepdim=True)
        terms = {
            "nearest": masked_mean(nearest, known),
            "mid": masked_mean((theirs - centre).square(), complete[..., None, None] & counted[:, None, None, :]),
            "coefficients": squared_error(self.coefficient_head(target.emotion)[:, None], target.coefficients, mask),
        }
        total = terms["nearest"] + self.options.mid_p * terms["mid"] + self.options.coefficient_p * terms["coefficients"]
        return {"backbone": total, **terms}

    def _compared(self, step: Step, listeners: Listeners) -> tuple[Tensor, ...]:
        """What is compared in a segment: graphs (B, K, V, W), edges (B, 1, P, V, V), the listeners' reactions (B, J, V, W), which of them
        are there throughout, (B, J), and which frames count, (B, W)."""
        assert isinstance(step.distribution, GraphGaussian)
        segment = step.segment
        part = slice(segment.begin, segment.stop)
        batch, draws = step.memory.shape[:2]
        emotion, there = listeners.emotion[:, part].transpose(1, 2), listeners.available[:, part].transpose(1, 2)
        within = there.new_ones(batch, segment.frames) if step.within is None else step.within
        complete = (there | ~within[:, None]).all(-1) & within.any(-1, keepdim=True)
        count = emotion.shape[1]

        def windows(x: Tensor, rows: int) -> Tensor:
            mask = None if step.within is None else step.within.repeat_interleave(rows, 0)
            return self._window(x.flatten(0, 1), mask).unflatten(0, (batch, rows))

        counted = F.pad(within, (0, self.window - segment.frames))
        return windows(step.memory, draws), step.distribution.edges[:, :1], windows(emotion, count), complete, counted

    def loss(
        self,
        prediction: Reaction,
        target: Reaction,
        *,
        mask: Tensor | None,
        kl: Tensor | None,
        alternative: Reaction | None,
        distributions: list[Distribution],
        true_draw: Tensor | None,
    ) -> dict[str, Tensor]:
        """In evaluation, where training's distances between graphs say little: squared errors of the reaction itself."""
        emotion = squared_error(prediction.emotion, target.emotion, mask)
        coefficients = squared_error(prediction.coefficients, target.coefficients, mask)
        return {"backbone": emotion + self.options.coefficient_p * coefficients, "emotion": emotion, "coefficients": coefficients}

    def end_epoch(self, losses: dict[str, float]) -> None:
        """The threshold of the next epoch, a share of this one's mean distance."""
        self.threshold.fill_(losses["nearest"] * self.options.threshold_share)

    def join(self, pieces: list[Reaction], segments: list[Segment], frames: int, *, within: list[Tensor | None]) -> Reaction:
        """The mean of the windows that have a frame of the clip."""
        total = pieces[0].emotion.new_zeros(pieces[0].emotion.shape[0], frames, REACTION_3DMM_DIM + NODES)
        count = total.new_zeros(total.shape[0], frames, 1)
        for piece, segment, mask in zip(pieces, segments, within, strict=True):
            there = count.new_ones(len(count), segment.frames) if mask is None else mask.to(count.dtype)
            around = (0, 0, segment.begin, frames - segment.stop)
            total = total + F.pad(torch.cat(piece, dim=-1), around)
            count = count + F.pad(there[..., None], around)
        mean = total / count.clamp(min=1)
        return Reaction(*mean.split((REACTION_3DMM_DIM, NODES), dim=-1))

    def map_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the released network under this module's names."""
        from .official_regnn import map_regnn

        return map_regnn(self, state_dict)
