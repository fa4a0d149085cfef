"""What a backbone has to offer: the protocol between EMC and the model that it is put into.

A clip passes through a backbone as

    encode -> [CMA, U-EA] -> fuse -> [M-EA] -> distribution -> sample -> [S-EA] -> decode

where the steps in brackets are EMC's and are left out in the original model. Everything a backbone sees is already checked and
clean: finite, masked, on one device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DataError
from .distribution import Distribution, Gaussian
from .options import NoOptions

__all__ = ["Backbone", "Distribution", "Gaussian", "Listeners", "Past", "Reaction", "Sample", "Segment", "Step"]


class Reaction(NamedTuple):
    """A listener's reaction: 3DMM coefficients (..., T, 58) and emotion (..., T, 25)."""

    coefficients: Tensor
    emotion: Tensor


@dataclass(frozen=True)
class Past:
    """What a listener did before a segment, for an autoregressive backbone.

    Attributes:
        coefficients: (N, begin, 58).
        emotion: (N, begin, 25).
        drawn: (N, begin, ...), the `Sample.drawn` of those frames, or what the target would have needed (`Backbone.true_draw`);
            None for a backbone that has no such thing.
        mask: (N, begin) bool, frames that may be seen; None = all.
    """

    coefficients: Tensor
    emotion: Tensor
    drawn: Tensor | None = None
    mask: Tensor | None = None

    def repeat(self, copies: int) -> Past:
        """Copies of the whole batch, one after the other."""
        return self.map(lambda t: t.repeat(copies, *(1,) * (t.ndim - 1)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Past:
        """The same change made to each tensor."""
        return Past(
            change(self.coefficients),
            change(self.emotion),
            None if self.drawn is None else change(self.drawn),
            None if self.mask is None else change(self.mask),
        )


@dataclass(frozen=True)
class Segment:
    """One step through a clip: the model sees frames `first` to `stop` and gives those from `begin` to `stop`.

    `index` numbers the steps. Offline models have one segment, the whole clip; an online model has one per window, with all
    frames so far before it; a model of independent windows has `first == begin`.

    `seen` is where the speaker's frames end for Z, after `first`, if before `stop`; the emotion that S-EA takes still reaches to `stop`.

    `count` steps of a backbone with `stacks_segments` may be taken at once: this one and those that begin each `stride` frames later.
    """

    index: int
    first: int
    begin: int
    stop: int
    seen: int | None = None
    count: int = 1
    stride: int = 0

    def parts(self) -> list[Segment]:
        """The steps that are taken at once, each by itself."""
        if self.count == 1:
            return [self]
        starts = [(i, i * self.stride) for i in range(self.count)]
        return [Segment(self.index + i, self.first + d, self.begin + d, self.stop + d) for i, d in starts]

    @property
    def heard(self) -> int:
        """One past the last frame of the speaker that Z may depend on."""
        return self.stop if self.seen is None else self.seen

    @property
    def frames(self) -> int:
        """Frames that this step gives."""
        return self.stop - self.begin


class Sample(NamedTuple):
    """What was drawn, `values` (B, K, N, d), and the loss of the latent. N is the frames, or 1 where Z is not `per_frame`.

    `kl` is (B,) float32: the mean KL of the clip's distribution to N(0, I), per element; None where a backbone has no such term.
    `drawn` (B, K, N, ...) is what `decode` takes as its `sample` in place of `values`, and what later segments find in `Past.drawn`:
    for a backbone whose draw is not the sequence that S-EA takes (a token is drawn, and S-EA takes its embedding).
    """

    values: Tensor
    kl: Tensor | None
    drawn: Tensor | None = None


class Listeners(NamedTuple):
    """The reactions that are appropriate for a speaker, in his frames: `emotion` (B, T, J, 25), `available` (B, T, J) bool."""

    emotion: Tensor
    available: Tensor


class Step(NamedTuple):
    """What a segment came to in training.

    `memory` (B, K, M, ...) is the sample as it left S-EA, with its graph, or as it was drawn where there is none (M = 1 for one vector
    that nothing has spread over the frames); `within` (B, segment.frames) bool are the frames that belong to a clip, None = all.
    """

    segment: Segment
    distribution: Distribution
    memory: Tensor
    within: Tensor | None


class Backbone(nn.Module, ABC):
    """Base class of backbones; see docs/own-backbone.md.

    Attributes:
        d_model: width of both encoded streams.
        fused_dim: width of the fused sequence; None = `d_model`.
        sample_dim: width of the sample and of what S-EA gives; None = `d_model`. S-EA itself is as wide as `d_model`.
        prefix_stable: `encode` and `fuse` of a clip's first frames are the first frames of the whole clip's, so that a model that
            walks through a clip may compute them once. Not so where a statistic runs over the clip.
        framewise: `encode` looks at one frame at a time, so that it may be computed once whatever the segments.
        autoregressive: later segments see the reaction so far.
        teacher_forcing: in training they see the target instead of it.
        likelihood: the loss is the likelihood of the target under its own past, so that a taught backbone sees the target
            wherever there is one, in evaluation too. (To generate, give no target.)
        shares_fused: where the draws of an autoregressive backbone have one fused sequence, `distribution` takes it once: fewer rows than
            draws, of which each stands for the draws of its clip, side by side.
        stacks_segments: its segments are windows by themselves with a Z per frame, and several of the same length may be given at once,
            stacked along the batch (`Segment.count`, row s * B + b is segment s of clip b). `sample` alone has to look: its seed is
            (B,), and the noise of each must be that which it has by itself. Needs `framewise`.
        whole_segments: a clip that ends inside a segment gets nothing from it (else it gets the frames that it has).
        alternative_weight: weight of the loss term that compares with a second, independent pass; 0 saves that pass.
        options_type: the dataclass of its `EMCConfig.backbone_options`, of JSON values.
        stages: names of the stages of training that come before the model's own, in their order; see `stage_loss`.
    """

    d_model: int
    fused_dim: int | None = None
    sample_dim: int | None = None
    prefix_stable: bool = True
    framewise: bool = False
    autoregressive: bool = False
    teacher_forcing: bool = False
    likelihood: bool = False
    shares_fused: bool = False
    stacks_segments: bool = False
    whole_segments: bool = False
    stages: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type] = NoOptions

    def __init__(self, *config_and_options: Any) -> None:
        """Take an `EMCConfig` and the options of `options_type`."""
        super().__init__()

    @property
    def alternative_weight(self) -> float:
        """Weight of the term that needs a second reaction; 0 = no second pass."""
        return 0.0

    def segments(self, frames: int) -> list[Segment]:
        """The steps through a clip; one over everything unless the backbone says otherwise."""
        return [Segment(0, 0, 0, frames)]

    def needed_frame(self, segment: Segment) -> int:
        """The frame that a clip must have to take part in a segment."""
        return segment.stop - 1 if self.whole_segments else segment.begin

    def begin(self) -> None:
        """Called once before the segments of a batch: the place for what depends on the weights alone."""

    def check_result(self) -> None:
        """Called after a batch where contents are checked (`validate`); raise if a computation did not come to its end."""

    def check_frames(self, frames: int) -> None:
        """Refuse a clip that is too short for a single segment."""
        if not self.segments(frames):
            raise DataError(f"a clip of {frames} frames is shorter than one window of the backbone; give longer clips")

    @abstractmethod
    def encode(
        self,
        face: Tensor | None,
        speech: Tensor | None,
        *,
        face_mask: Tensor | None,
        speech_mask: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Unimodal encoding (eq. 1).

        Args:
            face: (B, T, face_dim) or images (B, T, 3, H, W), zero where unavailable; None = missing throughout.
            speech: (B, T, speech_dim), likewise.
            face_mask, speech_mask: (B, T) bool, frames that attention or a statistic over the clip may count; None = all.
            seed: int64 (B,), for dropout; None outside training.

        Returns:
            u_face and u_speech (B, T, d_model); None for a stream that is None.
        """

    @abstractmethod
    def fuse(self, face: Tensor, speech: Tensor, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """Fuse two streams (N, T, d_model) into one (N, T, fused_dim); `key_mask` (N, T) are the frames that count."""

    def limit_past(self, past: Past, *, seed: Tensor) -> Past:
        """What of the past (N, begin, ...) is shown in training, the same to all three fusions; `seed` int64 (N,)."""
        return past

    @abstractmethod
    def distribution(
        self, fused: Tensor, *, segment: Segment, draws: int, key_mask: Tensor | None, past: Past | None, seed: Tensor | None
    ) -> Distribution:
        """Z of the fused sequence.

        Args:
            fused: (B * draws, T, fused_dim), frames `segment.first` to `segment.heard`; see `shares_fused`.
            segment: a distribution per frame is over its frames from `begin` on.
            draws: J, the draws folded into the batch, side by side.
            key_mask: (B * draws, T) bool or None, as many rows as `fused`.
            past: the reaction so far, (B * draws, begin, ...), for an autoregressive backbone; None at the first segment.
            seed: int64 (B * draws,), for dropout.

        Returns:
            A distribution over (B, J, ...).
        """

    @abstractmethod
    def sample(self, distribution: Distribution, num_samples: int, *, segment: Segment, seed: Tensor | None) -> Sample:
        """Draw `num_samples` (J is 1 or that number); `seed` int64 (B,); noise is addressed by (draw, segment)."""

    @abstractmethod
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
        """The segment's reaction.

        Args:
            memory: (N, M, sample_dim): the sample as it left S-EA (M = segment.frames), or as it was drawn (original, "w/o EA").
            sample: (N, ..., sample_dim) as it was drawn, N = B * K: `Sample.drawn` where there is one, else `Sample.values`.
            distribution: what it was drawn from, (B, J, ...) with J = 1 or K.
            segment: which frames.
            frame_mask: (N, segment.frames) bool, frames within the clip; None = all.
            past: the reaction so far, (N, begin, ...), or None.
            seed: int64 (N,), for dropout.

        Returns:
            Reaction of (N, segment.frames, ...).
        """

    def true_draw(self, target: Reaction, *, mask: Tensor | None) -> Tensor | None:
        """What would have to be drawn for the target, (B, T, ...) as `Sample.drawn` without its draws; None = there is no such thing."""
        return None

    @abstractmethod
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
        """The backbone's own loss.

        Args:
            prediction: (B, K, T, ...).
            target: (B, T, ...).
            mask: (B, T) bool, frames of the target that count; None = all.
            kl: scalar, mean over clips and segments of `Sample.kl`.
            alternative: a second reaction (B, K, T, ...) without gradient, when `alternative_weight` is not 0.
            distributions: Z of each segment (in training of the fusion that went on).
            true_draw: what the method of that name gave for the target.

        Returns:
            Scalars by name; `backbone` is their weighted sum.
        """

    def training_loss(
        self, steps: list[Step], target: Reaction, *, mask: Tensor | None, listeners: Listeners | None
    ) -> dict[str, Tensor] | None:
        """The loss in training of a backbone that is not trained on its reaction; None, as here, stands for `loss`.

        Args:
            steps: what the segments came to.
            target: (B, T, ...).
            mask: (B, T) bool, frames of the target that count; None = all.
            listeners: the appropriate reactions, None where the batch has none.

        Returns:
            As `loss`.
        """
        return None

    def end_epoch(self, losses: dict[str, float]) -> None:
        """Called by the trainer with an epoch's mean losses; what a backbone makes of them it keeps in buffers, which are saved."""

    def join(self, pieces: list[Reaction], segments: list[Segment], frames: int, *, within: list[Tensor | None]) -> Reaction:
        """Put the segments' reactions (N, frames, ...) together to (N, T, ...); frames that no segment gives are 0.

        Segments that follow one another are concatenated; a backbone whose segments overlap overrides this. `within` has for each
        segment the frames (N, segment.frames) that it gives (None = all); in the others the piece is 0.
        """
        rest = frames - segments[-1].stop

        def cat(parts: list[Tensor]) -> Tensor:
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
            return whole if rest == 0 else nn.functional.pad(whole, (0, 0, 0, rest))

        return Reaction(cat([p.coefficients for p in pieces]), cat([p.emotion for p in pieces]))

    def stage_parameters(self, stage: str) -> Iterable[nn.Parameter]:
        """The parameters that are trained in a stage of `stages`; everything else rests."""
        raise ValueError(f"{type(self).__name__} has no stage {stage!r}; it has {', '.join(self.stages) or 'none before its own'}")

    def stage_loss(self, stage: str, target: Reaction, *, mask: Tensor | None, progress: float, seed: Tensor | None) -> dict[str, Tensor]:
        """The loss of a stage of `stages`, which learns from the listener alone.

        Args:
            stage: its name.
            target: (B, T, ...).
            mask: (B, T) bool, frames of the target that count; None = all.
            progress: share of the stage's epochs that is done, 0 to below 1; 0 in evaluation.
            seed: int64 (B,), for dropout; None outside training.

        Returns:
            Scalars by name; `total` is minimised.
        """
        raise ValueError(f"{type(self).__name__} has no stage {stage!r}; it has {', '.join(self.stages) or 'none before its own'}")

    def map_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights under this module's names; a backbone without published weights refuses."""
        raise CheckpointError(f"{type(self).__name__} has no published state dict to load")
