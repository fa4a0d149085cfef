"""EMC itself: everything that stands between a backbone's steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..losses import alignment_rows
from ..ops import streams as noise_streams
from .compensation import CompensationRows, CompensatoryModalityAlignment
from .emotion import Emotion, EmotionMLP, EmotionSources, EmotionView, pick_emotion
from .emotion_attention import EmotionAddNorm, EmotionAwareAttention
from .frames import Spans, cut_frames
from .noise import EA_FACE, EA_FUSED, EA_SAMPLE, EA_SPEECH, fold_seeds, stack_seeds
from .positions import SinusoidalPositions
from .shapes import check_shape

if TYPE_CHECKING:
    from ..backbones.base import Backbone, Segment
    from ..config import EMCConfig

REAL, COMP_FACE, COMP_SPEECH = 0, 1, 2
"""Numbers of the three fusions, named by content: both real, compensated face + speech, face + compensated speech."""


@dataclass(frozen=True)
class Streams:
    """Both modalities over T frames, ready to be enhanced and fused.

    Attributes:
        face, speech: (B * J, T, d) with the missing frames compensated; each has its own J, 1 or the number of draws.
        comp_face, comp_speech: (B, T, d) the streams of the simulated losses, in training.
        views: the emotions of the three fusions; only the first outside training; None where emotion is not used.
        frame_mask: (B, T) bool, frames of the clip for which any modality is there; None = all.
    """

    face: Tensor
    speech: Tensor
    comp_face: Tensor | None
    comp_speech: Tensor | None
    views: tuple[EmotionView, ...] | None
    frame_mask: Tensor | None

    def cut(self, spans: Spans) -> Streams:
        """The frames of `spans`, as `cut_frames`."""

        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else cut_frames(x, spans)

        return Streams(
            cut_frames(self.face, spans),
            cut_frames(self.speech, spans),
            part(self.comp_face),
            part(self.comp_speech),
            cut_views(self.views, spans),
            part(self.frame_mask),
        )


def cut_views(views: tuple[EmotionView, ...] | None, spans: Spans) -> tuple[EmotionView, ...] | None:
    """The frames of `spans` of every view, as `cut_frames`; emotions that were one object, in one view or several, stay one."""
    if views is None:
        return None
    done = {id(emotion): emotion.cut(spans) for view in views for emotion in view}
    return tuple(EmotionView(*(done[id(emotion)] for emotion in view)) for view in views)


def fuse(backbone: Backbone, face: Tensor, speech: Tensor, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
    """The backbone's fusion of two streams (N, T, d), looked at by shape."""
    fused = backbone.fuse(face, speech, key_mask=key_mask, seed=seed)
    check_shape(backbone, "fuse", fused, "rows, T, fused_dim", *face.shape[:2], backbone.fused_dim or face.shape[2])
    return fused


class EMC(nn.Module):
    """CMA in both directions, the e-MLP, U-EA per modality, M-EA over the fusions and S-EA over the sample.

    U-EA's weights are shared by a modality's real and compensated stream, M-EA's by the three fusions; the streams of a module are
    stacked along the batch and go through it in one call, and its emotion branch is computed once per distinct emotion.

    A fused sequence of another width has an M-EA of its own width, which takes the emotion through a linear layer. A sample of
    another width enters S-EA through one linear layer, and what a second one reads from its output is added to the sample; that
    one begins at zero, so that an untrained S-EA leaves the sample as it was drawn.

    Args:
        config: the model's configuration (`config.emc` is True).
        backbone: the model's backbone, for its widths.
    """

    def __init__(self, config: EMCConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        fused_dim = backbone.fused_dim or d
        sample_dim = backbone.sample_dim or d

        def cma(stream: int) -> CompensatoryModalityAlignment:
            return CompensatoryModalityAlignment(
                d, latent_dim=config.cma_latent_dim, hidden_dim=config.cma_hidden_dim, prior=config.cma_prior, stream=stream
            )

        def ea(stream: int, width: int = d) -> EmotionAwareAttention | EmotionAddNorm | None:
            if config.ea == "none":
                return None
            if config.ea == "add_norm":
                return EmotionAddNorm(width)
            return EmotionAwareAttention(width, config.num_heads, dropout=config.dropout, norm=config.norm, stream=stream)

        self.cma_face = cma(noise_streams.CMA_FACE)
        self.cma_speech = cma(noise_streams.CMA_SPEECH)
        self.emotion_mlp = None if config.ea == "none" else EmotionMLP(d)
        self.ea_face = ea(EA_FACE)
        self.ea_speech = ea(EA_SPEECH)
        self.ea_fused = ea(EA_FUSED, fused_dim)
        self.ea_sample = ea(EA_SAMPLE)
        self.fused_emotion = nn.Linear(d, fused_dim) if fused_dim != d and self.uses_emotion else None
        self.sample_in: nn.Linear | None = None
        self.sample_out: nn.Linear | None = None
        if sample_dim != d and self.uses_emotion:
            self.sample_in, self.sample_out = nn.Linear(sample_dim, d), nn.Linear(d, sample_dim)
            nn.init.zeros_(self.sample_out.weight)
            nn.init.zeros_(self.sample_out.bias)
        self.positions = SinusoidalPositions(d)

    @property
    def uses_emotion(self) -> bool:
        """False for the "w/o EA" ablation."""
        return self.emotion_mlp is not None

    def emotion_views(
        self,
        face_emotion: Tensor | None,
        speech_emotion: Tensor | None,
        has_face: Tensor,
        has_speech: Tensor,
        *,
        everywhere: bool,
        training: bool,
    ) -> tuple[EmotionView, ...] | None:
        """Embed the emotions and say who gets which.

        Args:
            face_emotion: (B, T, 25) or None. speech_emotion: (B, T, 10) or None. Zero where they are not there.
            has_face, has_speech: (B, T) bool, where they are there.
            everywhere: every frame is known to have an emotion, so that no mask is needed.
            training: also for the two fusions that simulate a loss.
        """
        if self.emotion_mlp is None:
            return None
        face, speech = self.emotion_mlp(face_emotion, speech_emotion)
        sources = EmotionSources(face, speech, has_face, has_speech, everywhere)
        source = self.config.emotion_source
        real = sources.view(source)
        if not training:
            return (real,)
        comp_speech = real if source == "auto" else sources.without_speech(source)
        return real, sources.without_face(source), comp_speech

    def compensate(
        self,
        u_face: Tensor | None,
        u_speech: Tensor | None,
        has_face: Tensor | None,
        has_speech: Tensor | None,
        draws: int,
        *,
        seed: Tensor,
        frame_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Both streams with the missing frames made from the other modality, outside training.

        Args:
            u_face, u_speech: (B, T, d); None = missing throughout.
            has_face, has_speech: (B, T) bool; None = the stream is there throughout, and nothing is computed.
            draws: draws K of what is stochastic.
            seed: int64 (B,).
            frame_offset: number of the first frame in the clip.

        Returns:
            (B * J, T, d) each: J is 1 where nothing stochastic went in, else K.
        """

        def complete(u: Tensor | None, other: Tensor | None, has: Tensor | None, cma: CompensatoryModalityAlignment) -> Tensor:
            if u is not None and (has is None or other is None):
                return u  # nothing is missing, or nothing is there to make it from: such frames are not attended
            assert other is not None, "inputs are checked: one stream is there"
            made = cma.compensate(other, draws, seed=seed, frame_offset=frame_offset)
            if u is not None and has is not None:
                made = torch.where(has[:, None, :, None], u[:, None].to(made.dtype), made)
            return made.flatten(0, 1)

        return complete(u_face, u_speech, has_face, self.cma_face), complete(u_speech, u_face, has_speech, self.cma_speech)

    def compensate_training(
        self,
        u_face: Tensor,
        u_speech: Tensor,
        has_face: Tensor | None,
        has_speech: Tensor | None,
        valid: Tensor | None,
        *,
        seed: Tensor,
        frame_offset: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, CompensationRows]:
        """Both streams, their reproductions, and frame by frame what the losses `align` and `cma_kl` are made of.

        Args:
            u_face, u_speech: (B, T, d).
            has_face, has_speech: (B, T) bool, frames of the clip where they are there; None = everywhere.
            valid: (B, T) bool, frames of the clip; None = all.
            seed: int64 (B,).
            frame_offset: number of the first frame in the clip.

        Returns:
            face and speech with holes compensated, comp_face and comp_speech, all (B, T, d), and the rows. A reproduction stands
            only where the other modality is there to make it from; elsewhere it is the stream itself.
        """
        both = None
        if has_face is not None and has_speech is not None:
            both = has_face & has_speech
        elif has_face is not None or has_speech is not None:
            both = has_face if has_speech is None else has_speech
        made_face = self.cma_face(u_face, u_speech, both=both, seed=seed, frame_offset=frame_offset)
        made_speech = self.cma_speech(u_speech, u_face, both=both, seed=seed, frame_offset=frame_offset)
        counted = valid if both is None else both  # the masks lie within the clip already
        detach = self.config.detach_target
        align = alignment_rows(u_face, made_face.features, detach=detach) + alignment_rows(u_speech, made_speech.features, detach=detach)
        rows = CompensationRows(align, made_face.kl + made_speech.kl, counted)
        face, comp_face = self._fill(u_face, made_face.features, has_face, has_speech)
        speech, comp_speech = self._fill(u_speech, made_speech.features, has_speech, has_face)
        return face, speech, comp_face, comp_speech, rows

    @staticmethod
    def _fill(u: Tensor, made: Tensor, has: Tensor | None, has_other: Tensor | None) -> tuple[Tensor, Tensor]:
        """A stream with its holes filled by the reproduction, and the reproduction where there was something to make it from."""
        u = u.to(made.dtype)
        filled = u if has is None else torch.where(has[..., None], u, made)
        return filled, made if has_other is None else torch.where(has_other[..., None], made, filled)

    def apply_ea(
        self,
        ea: EmotionAwareAttention | EmotionAddNorm | None,
        features: list[Tensor],
        emotions: list[Emotion],
        mask: Tensor | None,
        seed: Tensor | None,
        *,
        draws: int = 1,
    ) -> Tensor:
        """One EA over a stack.

        Args:
            ea: the module; None hands the features through.
            features: streams (B * draws, T, d) to be stacked along the batch.
            emotions: one (B, S, d) for each; the branch of one that is shared is computed once.
            mask: (B, T) bool, frames of the features that may be attended; None = all.
            seed: int64 (B,), for dropout; None outside training.
            draws: draws folded into the features' batch.

        Returns:
            (len(features) * B * draws, T, d).
        """
        stacked = features[0] if len(features) == 1 else torch.cat(features)
        if ea is None:
            return stacked
        causal, window = self.config.causal, self.config.window
        distinct: list[Emotion] = []
        for emotion in emotions:
            if not any(emotion is other for other in distinct):
                distinct.append(emotion)
        values = torch.cat([e.values for e in distinct]) if len(distinct) > 1 else distinct[0].values
        masks = [e.mask for e in distinct]
        known = None if any(m is None for m in masks) else torch.cat([m for m in masks if m is not None])
        encoded = ea.encode_emotion(values, key_mask=known, seed=stack_seeds(seed, len(distinct)), causal=causal, window=window)

        # Back from one row for each distinct emotion to one for each of the features.
        parts = encoded.chunk(len(distinct))
        places = [next(i for i, other in enumerate(distinct) if other is emotion) for emotion in emotions]
        if len(places) > 1:
            encoded = torch.cat([parts[place] for place in places])
            known = None if known is None else torch.cat([known.chunk(len(distinct))[place] for place in places])
        if mask is not None:
            mask = mask.repeat_interleave(draws, 0).repeat(len(features), 1)
        seeds = fold_seeds(stack_seeds(seed, len(features)), draws)
        return ea(stacked, None, encoded=encoded, key_mask=mask, emotion_mask=known, seed=seeds, causal=causal, window=window)

    def enhance(self, streams: Streams, backbone: Backbone, batch: int, seed: Tensor | None) -> tuple[Tensor, int]:
        """U-EA on both real streams, the backbone's fusion, M-EA.

        Returns:
            The fused sequence (B * J, T, d), and J.
        """
        mask = streams.frame_mask
        views = streams.views
        real = views[0] if views is not None else EmotionView(_NONE, _NONE, _NONE)
        draws_face, draws_speech = streams.face.shape[0] // batch, streams.speech.shape[0] // batch
        face = self.apply_ea(self.ea_face, [streams.face], [real.face], mask, seed, draws=draws_face)
        speech = self.apply_ea(self.ea_speech, [streams.speech], [real.speech], mask, seed, draws=draws_speech)
        draws = max(draws_face, draws_speech)
        if draws > 1:
            face = face if draws_face == draws else face.repeat_interleave(draws, 0)
            speech = speech if draws_speech == draws else speech.repeat_interleave(draws, 0)
        folded = None if mask is None else mask.repeat_interleave(draws, 0)
        fused = fuse(backbone, face, speech, key_mask=folded, seed=fold_seeds(seed, draws))
        return self.apply_ea(self.ea_fused, [fused], self._as_wide_as_fused([real.fused]), mask, seed, draws=draws), draws

    def enhance_training(self, streams: Streams, backbone: Backbone, seed: Tensor | None) -> Tensor:
        """U-EA on the four streams, the three fusions, M-EA on them.

        Returns:
            (3B, T, d): `real`, `comp_face`, `comp_speech`.
        """
        assert streams.comp_face is not None
        assert streams.comp_speech is not None
        views = streams.views or (EmotionView(_NONE, _NONE, _NONE),) * 3
        mask = streams.frame_mask
        face = self.apply_ea(self.ea_face, [streams.face, streams.comp_face], [views[REAL].face, views[COMP_FACE].face], mask, seed)
        speech = self.apply_ea(
            self.ea_speech, [streams.speech, streams.comp_speech], [views[REAL].speech, views[COMP_SPEECH].speech], mask, seed
        )
        real_face, comp_face = face.chunk(2)
        real_speech, comp_speech = speech.chunk(2)
        fused = fuse(
            backbone,
            torch.cat((real_face, comp_face, real_face)),
            torch.cat((real_speech, real_speech, comp_speech)),
            key_mask=None if mask is None else mask.repeat(3, 1),
            seed=stack_seeds(seed, 3),
        )
        emotions = self._as_wide_as_fused([view.fused for view in views])
        return self.apply_ea(self.ea_fused, list(fused.chunk(3)), emotions, mask, seed)

    def _as_wide_as_fused(self, emotions: list[Emotion]) -> list[Emotion]:
        """Emotions in the width of the fused sequence; those that were one object stay one."""
        layer = self.fused_emotion
        if layer is None:
            return emotions
        done = {id(emotion): emotion._replace(values=layer(emotion.values)) for emotion in emotions}
        return [done[id(emotion)] for emotion in emotions]

    def select(self, streams: Streams, pick: Tensor) -> Streams:
        """Per clip the streams and emotions of one fusion only, for a pass that needs no other."""
        assert streams.comp_face is not None
        assert streams.comp_speech is not None
        face = torch.where((pick == COMP_FACE)[:, None, None], streams.comp_face, streams.face)
        speech = torch.where((pick == COMP_SPEECH)[:, None, None], streams.comp_speech, streams.speech)
        views = streams.views
        if views is not None:
            # The stream that a fusion keeps real also keeps its emotion, as in `enhance_training`.
            real, comp_face, comp_speech = views
            view = EmotionView(
                pick_emotion([real.face, comp_face.face, real.face], pick),
                pick_emotion([real.speech, real.speech, comp_speech.speech], pick),
                pick_emotion([view.fused for view in views], pick),
            )
            views = (view,)
        return replace(streams, face=face, speech=speech, views=views)

    def enhance_sample(
        self, sample: Tensor, segment: Segment, emotion: Emotion, mask: Tensor | None, seed: Tensor | None, *, per_frame: bool
    ) -> Tensor:
        """S-EA (eq. 15).

        Args:
            sample: (B, K, T, sample_dim), or one vector (B, K, 1, sample_dim), which is broadcast over the frames and takes positions.
            segment: the T frames to be produced.
            emotion: (B, S, d), S >= T, the last frames of both coincide.
            mask: (B, T) bool, frames within the clip.
            seed: int64 (B,), for dropout; None outside training.
            per_frame: which of the two it is; a segment may have a single frame.

        Returns:
            (B * K, T, sample_dim).
        """
        draws = sample.shape[1]
        sequence = sample if self.sample_in is None else self.sample_in(sample)
        if not per_frame:
            sequence = sequence + self.positions(segment.frames, offset=segment.begin).to(sample.dtype)
            wanted = self.config.emotion_positions
            if self.config.window is None if wanted is None else wanted:
                frames = emotion.values.shape[1]
                where = self.positions(frames, offset=segment.stop - frames).to(emotion.values.dtype)
                emotion = emotion._replace(values=emotion.values + where)
        enhanced = self.apply_ea(self.ea_sample, [sequence.flatten(0, 1)], [emotion], mask, seed, draws=draws)
        return enhanced if self.sample_out is None else sample.flatten(0, 1) + self.sample_out(enhanced)


_NONE = Emotion(torch.empty(0), None)
"""Stands for the emotion where none is used; never read."""
