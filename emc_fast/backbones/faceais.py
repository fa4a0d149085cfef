"""FaceAIS ("FaceVIS" in print): the listener's face as discrete tokens, predicted patch by patch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..config import REACTION_3DMM_DIM
from ..nn.noise import layer_stream
from .base import Backbone, Past, Reaction, Sample, Segment
from .categorical import Categorical
from .distribution import Distribution
from .faceais_predictor import SPECIAL, PredictorListener, PredictorSpeaker
from .faceais_tokenizer import FaceTokenizer, emotion_error, face_error
from .options import FaceAISOptions

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..config import EMCConfig

EMOTION_STAGE = 0.8
"""From this share of the tokenizer's epochs on, only its decoder of emotion is trained."""


class FaceAIS(Backbone):
    """A frozen tokenizer, and a predictor of its tokens; see docs/model.md, "FaceAIS".

    Z is one categorical over the tokenizer's codes per frame of a patch, given the speaker up to the patch's end (or its beginning:
    `FaceAISOptions.speaker`) and the listener's tokens before it, both at most `context` frames back. S-EA takes the embedded tokens,
    and what it gives is added to what the tokenizer's decoders read of the drawn codes, through a linear layer that starts at zero.

    Args:
        config: widths and dropout; the face is 58 coefficients.
        options: see `FaceAISOptions`.
    """

    options_type = FaceAISOptions
    prefix_stable = False
    autoregressive = teacher_forcing = likelihood = shares_fused = True
    stages: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, config: EMCConfig, options: FaceAISOptions) -> None:
        super().__init__()
        if config.input != "features" or config.face_dim != REACTION_3DMM_DIM:
            raise ValueError(
                f"FaceAIS reads the speaker's face by its own tokenizer: it takes input='features' with face_dim={REACTION_3DMM_DIM}; "
                f"got input={config.input!r} with face_dim={config.face_dim}"
            )
        self.options = options
        self.d_model = config.d_model
        d, heads, p = config.d_model, config.num_heads, config.dropout
        self.tokenizer = FaceTokenizer(options, dropout=p)
        self.speaker = PredictorSpeaker(d, heads, config.speech_dim, options, dropout=p)
        self.listener = PredictorListener(d, heads, options, dropout=p)
        for layer in (*self.speaker.cross.layers, *self.listener.cross.layers):
            nn.init.constant_(layer.gate, options.gate_start)
        self.refine: nn.Linear | None = None
        if config.emc and config.ea != "none":
            self.refine = nn.Linear(d, options.tokenizer_width)
            nn.init.zeros_(self.refine.weight)
            nn.init.zeros_(self.refine.bias)
        self.tokenizer.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module; the tokenizer stays in evaluation mode outside its own stage."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    @property
    def codes(self) -> int:
        """How many codes the tokenizer has."""
        return self.tokenizer.quantizer.codes

    def segments(self, frames: int) -> list[Segment]:
        """Patches, each with the `context` frames of the speaker that end with it, or (`speaker="past"`) before it.

        A clip's last patch has the frames that are left. Nothing stands before the first patch, which sees its own frames in either case.
        """
        block, context = self.options.block, self.options.context
        found = []
        for i, begin in enumerate(range(0, frames, block)):
            stop = min(begin + block, frames)
            if begin == 0 or self.options.speaker == "patch":
                found.append(Segment(i, max(0, begin + block - context), begin, stop))
            else:
                found.append(Segment(i, max(0, begin - context), begin, stop, seen=begin))
        return found

    def encode(
        self,
        face: Tensor | None,
        speech: Tensor | None,
        *,
        face_mask: Tensor | None,
        speech_mask: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the face, and speech, each through its stack; see `Backbone.encode`. Windows begin with a block."""
        u_face = None
        if face is not None:
            u_face = self.speaker.encode_face(self.tokenizer.tokens(face, face_mask), face_mask, seed)
        return u_face, None if speech is None else self.speaker.encode_speech(speech, speech_mask, seed)

    def fuse(self, face: Tensor, speech: Tensor, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """The cross-modal stack; see `Backbone.fuse`."""
        return self.speaker.fuse(face, speech, key_mask, seed)

    def true_draw(self, target: Reaction, *, mask: Tensor | None) -> Tensor:
        """Codes (B, T, n) of the target."""
        with torch.no_grad():
            return self.tokenizer.encode(target.coefficients, mask)

    def limit_past(self, past: Past, *, seed: Tensor) -> Past:
        """With probability `past_mask_p` only the last n frames, n drawn from 1 to all that the context holds."""
        p, frames = self.options.past_mask_p, past.coefficients.shape[1]
        if not self.training or p == 0:
            return past
        held = min(frames, self.options.context)
        stream = layer_stream(6 * self.options.layers) + 3
        u = ops.philox_uniform((seed.shape[0], 1, 2), seed, stream=stream, frame_offset=frames, device=seed.device)[:, 0]
        shown = torch.where(u[:, 0] < p, 1 + (u[:, 1] * held).long(), frames)
        mask = torch.arange(frames, device=seed.device) >= frames - shown[:, None]
        return Past(past.coefficients, past.emotion, past.drawn, mask if past.mask is None else mask & past.mask)

    def distribution(
        self, fused: Tensor, *, segment: Segment, draws: int, key_mask: Tensor | None, past: Past | None, seed: Tensor | None
    ) -> Categorical:
        """Logits (B, J, frames, codes) of the patch; see `Backbone.distribution`."""
        tokens, mask = None, None
        if past is not None:
            assert past.drawn is not None
            tokens, mask = self.tokenizer.quantizer.indices(past.drawn), past.mask
        logits = self.listener(fused, tokens, frames=segment.frames, codes=self.codes, key_mask=key_mask, past_mask=mask, seed=seed)
        return Categorical(logits.view(-1, draws, *logits.shape[1:]))

    def sample(self, distribution: Distribution, num_samples: int, *, segment: Segment, seed: Tensor | None) -> Sample:
        """Tokens by the Gumbel-max rule; S-EA gets their embeddings, the decoders their codes, both with straight-through gradients."""
        assert isinstance(distribution, Categorical)
        tokens, one_hot = distribution.draw(
            num_samples, top_k=self.options.top_k, temperature=self.options.temperature, seed=seed, frame_offset=segment.begin
        )
        quantizer = self.tokenizer.quantizer
        if one_hot is None:
            return Sample(self.listener.embedding(tokens + SPECIAL), None, quantizer.from_indices(tokens))
        table = self.listener.embedding.weight[SPECIAL : SPECIAL + self.codes]
        return Sample(one_hot.to(table.dtype) @ table, None, one_hot @ quantizer.table(one_hot.dtype))

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
        """The tokenizer's decoders on the drawn codes, with S-EA's part added; see `Backbone.decode`."""
        embedded = self.tokenizer.embed(sample)
        if self.refine is not None:
            embedded = embedded + self.refine(memory)
        return self.tokenizer.decode(embedded, frame_mask)

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
        """Cross-entropy of the target's tokens, and with S-EA `reconstruction` times the tokenizer's own error of the reaction."""
        assert true_draw is not None
        tokens = self.tokenizer.quantizer.indices(true_draw)
        parts = [d for d in distributions if isinstance(d, Categorical)]
        terms = {
            "cross_entropy": Categorical.join(parts).cross_entropy(tokens, mask),
            "face": face_error(prediction.coefficients, target.coefficients, mask),
            "emotion": emotion_error(prediction.emotion, target.emotion, mask),
        }
        total = terms["cross_entropy"]
        if self.refine is not None:
            total = total + self.options.reconstruction * (terms["face"] + terms["emotion"])
        return {"backbone": total, **terms}

    # The tokenizer's own stage

    def stage_parameters(self, stage: str) -> Iterable[nn.Parameter]:
        """Everything that the tokenizer has."""
        return self.tokenizer.parameters() if stage == "tokenizer" else super().stage_parameters(stage)

    def stage_loss(self, stage: str, target: Reaction, *, mask: Tensor | None, progress: float, seed: Tensor | None) -> dict[str, Tensor]:
        """Errors of what the target's codes give back; of emotion alone in the last fifth of the epochs."""
        if stage != "tokenizer":
            return super().stage_loss(stage, target, mask=mask, progress=progress, seed=seed)
        self.tokenizer.train(self.training)
        try:
            return self.tokenizer.loss(target, mask=mask, emotion_only=progress >= EMOTION_STAGE, seed=seed)
        finally:
            self.tokenizer.eval()

    def map_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights of predictor and tokenizer under this module's names."""
        from .official_faceais import map_faceais

        return map_faceais(self, state_dict)
