"""One pass of a batch through backbone and EMC, segment by segment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import ops
from .backbones.base import Distribution, Past, Reaction, Segment, Step
from .config import REACTION_3DMM_DIM, REACTION_EMOTION_DIM
from .losses import masked_mean, reduce_rows
from .nn.compensation import CompensationRows, join_windows
from .nn.emc import COMP_FACE, COMP_SPEECH, REAL, Streams, cut_views, fuse
from .nn.emotion import Emotion, EmotionView, pick_emotion
from .nn.frames import cut_frames
from .nn.inputs import Inputs
from .nn.noise import fold_seeds, seed_variant, stack_seeds
from .nn.shapes import check_shape
from .ops import streams as noise_streams

if TYPE_CHECKING:
    from .model import EMCModel

_SEGMENT, _SECOND_PASS = 16, 1 << 20
"""Seed variants of the windows of a clip and of the second pass; EMC's own stacks use 0 to 2."""
_STACKED_ROWS = 512
"""Sequences (windows of all clips and draws) that are computed at once at most, where several windows are: a bound on memory."""


class Result(NamedTuple):
    """What a pass gives: the reaction (B, K, T, ...), the steps that it came from, loss terms by name, and the target's own draw."""

    reaction: Reaction
    steps: list[Step]
    terms: dict[str, Tensor]
    true_draw: Tensor | None


class Pass:
    """The state of one pass.

    Args:
        model: the model.
        inputs: the checked batch.
        draws: reactions K per clip.
        seeds: int64 (B,).
        learn: compute EMC's three fusions and its losses, and go on with one fusion per clip.
        first: an earlier pass over the same batch; this one then repeats it under its own seeds for the clips' same fusions,
            without computing the others or any loss. The encoding is taken over, with its dropout if it has any.
    """

    def __init__(
        self, model: EMCModel, inputs: Inputs, draws: int, seeds: Tensor, *, learn: bool = False, first: Pass | None = None
    ) -> None:
        self.model, self.inputs, self.draws, self.seeds = model, inputs, draws, seeds
        self.dropout_seeds = seeds if model.training else None  # only training has dropout
        self.emc, self.backbone = model.emc, model.backbone
        self.learn = learn and self.emc is not None
        self.repeats = first is not None
        self.segments = self.backbone.segments(inputs.frames)
        # Computed once for the whole clip, where a prefix of the result is the result of the prefix. Windows that do not see
        # what comes before them are computed by themselves.
        spans = [(s.first, s.heard) for s in self.segments]
        single = spans == [(0, inputs.frames)]
        stable = self.backbone.prefix_stable and all(first == 0 for first, _ in spans)
        self.encode_once = single or stable or self.backbone.framewise
        looks_ahead = self.emc is not None and model.config.ea == "attention" and not model.config.causal
        self.enhance_once = single or (stable and not looks_ahead)
        self.encoded: tuple[Tensor | None, Tensor | None] | None = None if first is None else first.encoded
        self.stacked = self._stack()
        self.pick: Tensor | None = None if not self.learn else self._draw_pick() if first is None else first.pick
        self.views = self._emotion_views()
        self.whole: Streams | None = None
        self.enhanced: tuple[Tensor, int] | None = None
        self.rows: list[tuple[int, CompensationRows]] = []
        self.terms: dict[str, Tensor] = {}

    def again(self) -> Pass:
        """An independent pass over the same batch."""
        seeds = seed_variant(self.seeds, _SECOND_PASS)
        return Pass(self.model, self.inputs, self.draws, seeds, learn=self.learn, first=self)

    def run(self, target: Reaction | None = None) -> Result:
        """Walk through the segments; `target` (B, T, ...) stands in for the past where the backbone is taught by it."""
        x, backbone, draws = self.inputs, self.backbone, self.draws
        backbone.begin()
        pieces: list[Reaction] = []
        steps: list[Step] = []
        present: list[Tensor | None] = []
        fusions: list[list[Distribution]] = []
        kls: list[Tensor] = []
        counts: list[Tensor | None] = []
        past: Past | None = None
        true_draw = None if target is None else backbone.true_draw(target, mask=x.target_mask)
        taught = None
        if target is not None and backbone.teacher_forcing and (self.model.training or backbone.likelihood):
            taught = Past(target.coefficients, target.emotion, true_draw).map(lambda t: t.repeat_interleave(draws, 0))
        so_far: list[Tensor] = []
        for segment in self.stacked:
            count, parts = segment.count, segment.parts()
            counted = self._counted(segment)
            streams, distribution = self._distribution(segment, past, fusions)
            sample = backbone.sample(distribution, draws, segment=segment, seed=self.seeds)
            width = backbone.sample_dim or self.model.config.d_model
            rows, frames = x.batch * count, segment.frames if distribution.per_frame else 1
            check_shape(backbone, "sample: values", sample.values, "B, K, frames or 1, sample_dim", rows, draws, frames, width)
            values = sample.values.flatten(0, 1)
            drawn = values if sample.drawn is None else sample.drawn.flatten(0, 1)
            within = self._within(segment)
            seed = self._segment_seed(segment)
            memory = values
            emotion = self._sample_emotion(streams, segment)
            if self.emc is not None and emotion is not None:
                memory = self.emc.enhance_sample(sample.values, segment, emotion, within, seed, per_frame=distribution.per_frame)
            folded = None if within is None else within.repeat_interleave(draws, 0)
            piece = backbone.decode(
                memory, drawn, distribution=distribution, segment=segment, frame_mask=folded, past=past, seed=fold_seeds(seed, draws)
            )
            for name, part, channels in zip(Reaction._fields, piece, (REACTION_3DMM_DIM, REACTION_EMOTION_DIM), strict=True):
                check_shape(backbone, f"decode: {name}", part, "B * K, frames, channels", rows * draws, segment.frames, channels)
            if folded is not None:
                # 0 beyond a clip's length, and in segments that the clip has no part in
                folded = folded if counted is None else folded & counted.repeat_interleave(draws, 0)[:, None]
                piece = Reaction(*(torch.where(folded[..., None], t, 0) for t in piece))
            pieces += [Reaction(*part) for part in zip(*(t.chunk(count) for t in piece), strict=True)]
            present += _apart(folded, count)
            within = within if within is None or counted is None else within & counted[:, None]
            each = distribution.split(count) if count > 1 else [distribution]
            memories = memory.unflatten(0, (-1, draws)).chunk(count)
            steps += [Step(*step) for step in zip(parts, each, memories, _apart(within, count), strict=True)]
            if sample.kl is not None:
                kls += sample.kl.chunk(count)
                counts += _apart(counted, count)
            if backbone.autoregressive:
                if taught is not None:
                    past = taught.map(lambda t, stop=segment.stop: t[:, :stop])  # type: ignore[misc]
                else:
                    if sample.drawn is not None:
                        so_far.append(drawn)
                    reaction = backbone.join(pieces, self.segments[: segment.index + 1], segment.stop, within=present)
                    past = Past(*reaction, torch.cat(so_far, dim=1) if so_far else None)
        joined = backbone.join(pieces, self.segments, x.frames, within=present)
        reaction = Reaction(*(t.view(x.batch, draws, *t.shape[1:]) for t in joined))
        if kls:
            mask = None if any(c is None for c in counts) else torch.stack([c for c in counts if c is not None])
            self.terms["segment_kl"] = masked_mean(torch.stack(kls), mask)
        if self.rows:
            self.terms.update(self._compensation_losses())
        if fusions:
            self.terms["fusion"] = self._fusion_loss(fusions)
        return Result(reaction, steps, self.terms, true_draw)

    # One segment

    def _distribution(self, segment: Segment, past: Past | None, fusions: list[list[Distribution]]) -> tuple[Streams, Distribution]:
        """Z of the segment, and the streams that it came from; in learning Z of the picked fusion, and `fusions` grows."""
        streams, fused, draws = self._fused(segment)
        batch = self.inputs.batch * segment.count
        groups = fused.shape[0] // (batch * draws)  # 3 fusions in learning, else 1
        rows = draws
        if past is not None and draws < self.draws:
            # From the second window on the draws differ by their past.
            draws = self.draws
            if not self.backbone.shares_fused:
                fused = fused.view(groups * batch, 1, *fused.shape[1:]).repeat_interleave(draws, 1).flatten(0, 1)
                rows = draws
        seed = self._segment_seed(segment)
        seeds = fold_seeds(stack_seeds(seed, groups), draws)
        mask = streams.frame_mask
        mask = None if mask is None else mask.repeat_interleave(rows, 0).repeat(groups, 1)
        before = past
        if before is not None and (folded := fold_seeds(seed, draws)) is not None:
            before = self.backbone.limit_past(before, seed=folded)
        if before is not None and groups > 1:
            before = before.repeat(groups)
        distribution = self.backbone.distribution(fused, segment=segment, draws=draws, key_mask=mask, past=before, seed=seeds)
        if groups == 1:
            return streams, distribution
        options = distribution.split(groups)
        each = [option.split(segment.count) if segment.count > 1 else [option] for option in options]
        fusions += [list(part) for part in zip(*each, strict=True)]
        assert self.pick is not None
        return streams, type(distribution).pick(options, self.pick.repeat(segment.count))

    def _fusion_loss(self, fusions: list[list[Distribution]]) -> Tensor:
        """The fusion loss over all segments of all clips together, so that a segment weighs by the clips that are in it."""
        options = [type(fusions[0][0]).join([segment[i] for segment in fusions]) for i in (REAL, COMP_FACE, COMP_SPEECH)]
        mask = None
        if self.inputs.valid is not None:
            counted = [self._counted(s) for s in self.segments]
            if fusions[0][0].per_frame:
                parts = [self._within(s) for s in self.segments]
                mask = torch.cat([p & c[:, None] for p, c in zip(parts, counted, strict=True) if p is not None and c is not None], dim=1)
            else:
                mask = torch.stack([c for c in counted if c is not None], dim=1)
        return options[REAL].fusion_loss(options[COMP_FACE], options[COMP_SPEECH], mask=mask, reduction=self.model.config.reduction)

    def _compensation_losses(self) -> dict[str, Tensor]:
        """`align` and `cma_kl` over all frames, each once."""
        emc, reduction = self.emc, self.model.config.reduction
        assert emc is not None
        align, kl, counted = join_windows(self.rows, self.inputs.frames)
        return {
            "align": reduce_rows(align, self.model.config.d_model, counted, reduction),
            "cma_kl": reduce_rows(kl, emc.cma_face.latent_dim, counted, reduction),
        }

    def _fused(self, segment: Segment) -> tuple[Streams, Tensor, int]:
        """Streams and fused sequence (groups * B * J, T, d) of the frames that a segment sees, and J; B counts stacked windows."""
        first, stop = segment.first, segment.heard
        spans = [(part.first, part.heard) for part in segment.parts()]
        if self.encode_once and self.whole is None:
            self.whole = self._streams(0, self.inputs.frames, self.dropout_seeds)
        if self.enhance_once:
            assert self.whole is not None
            if self.enhanced is None:
                self.enhanced = self._enhance(self.whole, self.dropout_seeds)
            fused, draws = self.enhanced
            return self.whole.cut(spans), fused[:, first:stop], draws
        seed = self._segment_seed(segment)
        part = self._streams(first, stop, seed, self._counted(segment)) if self.whole is None else self.whole.cut(spans)
        return part, *self._enhance(part, seed, segment.count)

    def _enhance(self, streams: Streams, seed: Tensor | None, windows: int = 1) -> tuple[Tensor, int]:
        if self.emc is None:
            return fuse(self.backbone, streams.face, streams.speech, key_mask=streams.frame_mask, seed=seed), 1
        if self.learn and not self.repeats:
            return self.emc.enhance_training(streams, self.backbone, seed), 1
        return self.emc.enhance(streams, self.backbone, self.inputs.batch * windows, seed)

    def _streams(self, first: int, stop: int, seed: Tensor | None, counted: Tensor | None = None) -> Streams:
        """Encoded and compensated streams of frames `first` to `stop`; `seed` (B,) is for the encoders' dropout.

        `counted` (B,) are the clips that these frames count for in the losses; None = all.
        """
        x, emc = self.inputs, self.emc

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[:, first:stop]

        face, speech = self._encode(first, stop, seed)
        views = cut_views(self.views, [(first, stop)])
        mask = cut(self._frame_mask())
        if emc is None:
            assert face is not None
            assert speech is not None
            return Streams(face, speech, None, None, views, mask)
        if not self.learn:
            face, speech = emc.compensate(face, speech, cut(x.has_face), cut(x.has_speech), self.draws, seed=self.seeds, frame_offset=first)
            return Streams(face, speech, None, None, views, mask)
        assert face is not None
        assert speech is not None
        face, speech, comp_face, comp_speech, rows = emc.compensate_training(
            face, speech, cut(x.has_face), cut(x.has_speech), cut(x.valid), seed=self.seeds, frame_offset=first
        )
        if not self.repeats:
            if counted is not None:
                there = torch.ones_like(rows.align, dtype=torch.bool) if rows.counted is None else rows.counted
                rows = rows._replace(counted=there & counted[:, None])
            self.rows.append((first, rows))
        streams = Streams(face, speech, comp_face, comp_speech, views, mask)
        if not self.repeats:
            return streams
        assert self.pick is not None
        return emc.select(streams, self.pick)

    # Small parts

    def _stack(self) -> list[Segment]:
        """The segments in their order, with those that may be computed at once as one."""
        if not (self.backbone.stacks_segments and self.encode_once):
            return self.segments
        most = max(_STACKED_ROWS // (self.inputs.batch * self.draws), 1)
        stacked = self.segments[:1]
        for segment in self.segments[1:]:
            last = stacked[-1]
            stride = segment.begin - last.begin - (last.count - 1) * last.stride
            if last.count < most and segment.frames == last.frames and last.stride in (0, stride):
                stacked[-1] = replace(last, count=last.count + 1, stride=stride)
            else:
                stacked.append(segment)
        return stacked

    def _encode(self, first: int, stop: int, seed: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.encode_once and self.encoded is not None:
            return self.encoded
        x = self.inputs

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[:, first:stop]

        face, speech = x.face, x.speech
        if self.emc is None:
            # The original model has no notion of a missing frame: zeros are a frame like any other, in its statistics too.
            face, speech = self._zeros("face"), self._zeros("speech")
            masks = x.valid, x.valid
        else:
            masks = (x.valid if x.has_face is None else x.has_face), (x.valid if x.has_speech is None else x.has_speech)
        encoded = self.backbone.encode(cut(face), cut(speech), face_mask=cut(masks[0]), speech_mask=cut(masks[1]), seed=seed)
        for name, stream, u in zip(("face", "speech"), (face, speech), encoded, strict=True):
            if stream is not None:
                check_shape(self.backbone, f"encode: {name}", u, "B, T, d_model", x.batch, stop - first, self.model.config.d_model)
        if self.encode_once:
            self.encoded = encoded
        return encoded

    def _zeros(self, name: str) -> Tensor:
        """The stream, or zeros for one that is missing throughout."""
        x, config = self.inputs, self.model.config
        given, other = (x.face, x.speech) if name == "face" else (x.speech, x.face)
        if given is not None:
            return given
        assert other is not None
        if name == "face" and config.input == "image":
            # A constant image is normalised to zero whatever its size, so a small one does.
            return other.new_zeros(x.batch, x.frames, 3, 32, 32)
        return other.new_zeros(x.batch, x.frames, config.face_dim if name == "face" else config.speech_dim)

    def _frame_mask(self) -> Tensor | None:
        """(B, T) frames of the clip, for EMC only those that have a modality; None = all."""
        x = self.inputs
        if self.emc is None or (x.face is not None and x.has_face is None) or (x.speech is not None and x.has_speech is None):
            return x.valid
        return x.presence("face") | x.presence("speech")

    def _emotion_views(self) -> tuple[EmotionView, ...] | None:
        x = self.inputs
        if self.emc is None or not self.emc.uses_emotion:
            return None
        nothing = torch.zeros(x.batch, x.frames, dtype=torch.bool, device=x.device)
        has_face = nothing if x.face_emotion is None else x.presence("face")
        has_speech = nothing if x.speech_emotion is None else x.presence("speech")
        everywhere = x.valid is None and (
            (x.face_emotion is not None and x.has_face is None) or (x.speech_emotion is not None and x.has_speech is None)
        )
        return self.emc.emotion_views(x.face_emotion, x.speech_emotion, has_face, has_speech, everywhere=everywhere, training=self.learn)

    def _sample_emotion(self, streams: Streams, segment: Segment) -> Emotion | None:
        """S-EA's emotion, to the segment's end: that of the fusion that goes on."""
        views = streams.views if segment.seen is None else cut_views(self.views, [(segment.first, segment.stop)])
        if views is None:
            return None
        if len(views) == 1:
            return views[0].fused
        assert self.pick is not None
        return pick_emotion([view.fused for view in views], self.pick.repeat(segment.count))

    def _draw_pick(self) -> Tensor:
        """(B,) int64 in {0, 1, 2}: the fusion that each clip goes on with."""
        x, how = self.inputs, self.model.config.fusion_pick
        if how == "real":
            return torch.zeros(x.batch, dtype=torch.int64, device=x.device)
        seed = self.seeds if how == "sample" else self.seeds[:1]
        u = ops.philox_uniform((seed.shape[0], 1, 1), seed, stream=noise_streams.FUSION_PICK, device=x.device)
        return (u.reshape(-1) * 3).long().expand(x.batch)

    def _segment_seed(self, segment: Segment) -> Tensor | None:
        """Seeds of the dropout in one segment."""
        if self.dropout_seeds is None:
            return None
        return torch.cat([seed_variant(self.dropout_seeds, _SEGMENT + p.index if p.index else 0) for p in segment.parts()])

    def _within(self, segment: Segment) -> Tensor | None:
        """(B, segment.frames) frames of the segment within the clips' lengths; None = all."""
        valid = self.inputs.valid
        return None if valid is None else cut_frames(valid, [(part.begin, part.stop) for part in segment.parts()])

    def _counted(self, segment: Segment) -> Tensor | None:
        """(B,) clips that this segment is a part of; None = all."""
        if self.inputs.valid is None:
            return None
        return torch.cat([self.inputs.valid[:, self.backbone.needed_frame(part)] for part in segment.parts()])


def _apart(x: Tensor | None, count: int) -> list[Tensor | None]:
    """What was stacked along the batch, one by one."""
    return [None] * count if x is None else list(x.chunk(count))
