"""Trans-VAE, the transformer VAE baseline of the REACT challenges, offline and online."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import ops
from ..config import REACTION_3DMM_DIM, REACTION_EMOTION_DIM
from ..losses import diversity_loss, squared_error
from ..nn.noise import BACKBONE, Dropout
from ..nn.positions import SinusoidalPositions
from ..nn.transformer import DecoderLayer, EncoderLayer
from ..ops import streams
from .base import Backbone, Past, Reaction, Sample, Segment
from .distribution import Distribution, Gaussian
from .options import TransVAEOptions
from .video_encoder import VideoEncoder

if TYPE_CHECKING:
    from ..config import EMCConfig

EXPRESSION_COEFFICIENTS = 52
"""The first 3DMM coefficients are expressions, the others rotation and translation."""


class TransVAE(Backbone):
    """One Gaussian vector z per clip (offline) or per window (online), decoded by two transformer layers.

    The decoder's queries are the positions of the frames; its first layer is causal over them and reads z (in EMC: the S-EA
    sequence) as memory; its second layer is causal over its input and, as published, reads that input again as an unmasked
    memory, so the decoder as a whole is not causal. Online, a further layer takes in the reaction so far and an LSTM follows.

    Args:
        config: widths and dropout.
        options: see `TransVAEOptions`.
    """

    options_type = TransVAEOptions

    def __init__(self, config: EMCConfig, options: TransVAEOptions) -> None:
        super().__init__()
        d, heads, p = config.d_model, config.num_heads, config.dropout
        self.options = options
        self.d_model = d
        self.online = options.online
        self.window = options.window
        self.autoregressive = self.whole_segments = options.online
        self.images = config.input == "image"
        self.prefix_stable = not self.images

        self.face_encoder = VideoEncoder(d) if self.images else nn.Linear(config.face_dim, d)
        self.speech_encoder = nn.Linear(config.speech_dim, d)
        self.fusion = nn.Linear(2 * d, d)
        self.past_fusion = nn.Linear(d + REACTION_3DMM_DIM + REACTION_EMOTION_DIM, d)
        if not self.online:
            # Published, saved, and never used offline: frozen, so that distributed training does not wait for its gradient.
            self.past_fusion.requires_grad_(False)

        self.vae_input = nn.Linear(d, d)
        self.mu_token = nn.Parameter(torch.randn(d))
        self.logvar_token = nn.Parameter(torch.randn(d))
        self.vae_encoder = EncoderLayer(d, heads, 2 * d, dropout=p, stream=BACKBONE[0])

        self.positions = SinusoidalPositions(d)
        self.position_dropout = Dropout(p, stream=BACKBONE[0] + 4)
        self.decoder_1 = DecoderLayer(d, heads, 2 * d, dropout=p, stream=BACKBONE[1])
        self.decoder_2 = DecoderLayer(d, heads, 2 * d, dropout=p, stream=BACKBONE[2])
        if self.online:
            self.past_input = nn.Linear(REACTION_3DMM_DIM, d)
            self.hidden_input = nn.Linear(d, d)
            self.past_decoder = DecoderLayer(d, heads, 2 * d, dropout=p, stream=BACKBONE[0] + 48)
            self.lstm = nn.LSTM(d, d, batch_first=True)
        self.coefficient_head = nn.Linear(d, REACTION_3DMM_DIM)
        if options.zero_start:
            nn.init.zeros_(self.coefficient_head.weight)
            nn.init.zeros_(self.coefficient_head.bias)
        self.emotion_head = nn.Sequential(nn.Linear(d + REACTION_3DMM_DIM, d), nn.Linear(d, REACTION_EMOTION_DIM))

    @property
    def alternative_weight(self) -> float:
        """Weight of the diversity term."""
        return self.options.div_p

    def segments(self, frames: int) -> list[Segment]:
        """Offline the whole clip; online the whole windows, each seen with all frames before it (a shorter rest gives zeros)."""
        if not self.online:
            return super().segments(frames)
        w = self.window
        return [Segment(i, 0, i * w, (i + 1) * w) for i in range(frames // w)]

    def encode(
        self,
        face: Tensor | None,
        speech: Tensor | None,
        *,
        face_mask: Tensor | None,
        speech_mask: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Image encoder or linear layer for the face, linear layer for speech; see `Backbone.encode`."""
        u_face = None
        if face is not None:
            u_face = self.face_encoder(face, face_mask) if self.images else self.face_encoder(face)
        return u_face, None if speech is None else self.speech_encoder(speech)

    def fuse(self, face: Tensor, speech: Tensor, *, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """A linear layer on both streams side by side; see `Backbone.fuse`."""
        return self.fusion(torch.cat((face, speech), dim=-1))

    def distribution(
        self, fused: Tensor, *, segment: Segment, draws: int, key_mask: Tensor | None, past: Past | None, seed: Tensor | None
    ) -> Gaussian:
        """(mu, logvar) (B, J, d): the first two rows of one encoder layer over [mu token, logvar token, sequence].

        Nothing else of that layer's output is used, so only those two rows are computed.
        """
        rows, frames, d = fused.shape
        if self.online:
            reaction = fused.new_zeros(rows, frames, REACTION_3DMM_DIM + REACTION_EMOTION_DIM)
            if past is not None:
                so_far = torch.cat((past.coefficients, past.emotion), dim=-1).to(fused.dtype)
                reaction = torch.cat((so_far, reaction[:, so_far.shape[1] :]), dim=1)
            fused = self.past_fusion(torch.cat((fused, reaction), dim=-1))
        x = self.vae_input(fused)
        tokens = torch.stack((self.mu_token, self.logvar_token)).to(x.dtype).expand(rows, 2, d)
        if key_mask is not None:
            key_mask = torch.cat((key_mask.new_ones(rows, 2), key_mask), dim=1)
        x = self.vae_encoder(torch.cat((tokens, x), dim=1), rows=2, key_mask=key_mask, seed=seed)
        mu, logvar = x.view(-1, draws, 2, d).unbind(2)
        return Gaussian(mu, logvar + self.options.logvar_offset if self.options.logvar_offset else logvar)

    def sample(self, distribution: Distribution, num_samples: int, *, segment: Segment, seed: Tensor | None) -> Sample:
        """z (B, K, 1, d) by reparameterisation; window i is frame i of the noise. KL is the mean over z's elements and draws."""
        assert isinstance(distribution, Gaussian)
        mu, logvar = distribution.mu, distribution.logvar
        assert logvar is not None
        shape = (mu.shape[0], num_samples, 1, mu.shape[-1])
        z, kl = ops.reparameterize(
            mu[:, :, None].expand(shape), logvar[:, :, None].expand(shape), seed=seed, stream=streams.LATENT, frame_offset=segment.index
        )
        return Sample(z, kl.mean((1, 2)) / mu.shape[-1])

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
        """Positions through both decoder layers and the heads; see `Backbone.decode`."""
        queries = self.positions(segment.frames).to(memory.dtype)[None]
        if self.training:  # dropout tells rows apart; without it one stands for all
            queries = self.position_dropout(queries.expand(memory.shape[0], -1, -1), seed=seed)
        token = memory.shape[1] == 1
        aligned = not token and self.options.memory == "frame"
        hidden = self.decoder_1(queries, memory, memory_mask=None if token else frame_mask, causal=True, aligned=aligned, seed=seed)
        hidden = self.decoder_2(hidden, hidden, memory_mask=frame_mask, causal=True, seed=seed)
        state = hidden
        if self.online and past is not None:
            before = self.past_input(past.coefficients)
            state = torch.cat((before, self.hidden_input(hidden)), dim=1)
            state = self.past_decoder(state, state, causal=True, seed=seed)[:, -segment.frames :]
            start = before[None, :, -1].to(state.dtype).contiguous()
            state = self.lstm(state, (start, start))[0]
        coefficients = self.coefficient_head(state)
        return Reaction(coefficients, self.emotion_head(torch.cat((coefficients, hidden.to(coefficients.dtype)), dim=-1)))

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
        """The published loss: three mean squared errors, `kl_p` times the KL, `div_p` times the diversity term."""
        cut = EXPRESSION_COEFFICIENTS
        assert kl is not None
        terms = {
            "emotion": squared_error(prediction.emotion, target.emotion, mask),
            "expression": squared_error(prediction.coefficients[..., :cut], target.coefficients[..., :cut], mask),
            "pose": squared_error(prediction.coefficients[..., cut:], target.coefficients[..., cut:], mask),
            "latent_kl": kl,
        }
        total = terms["emotion"] + terms["expression"] + self.options.pose_weight * terms["pose"] + self.options.kl_p * kl
        if alternative is not None:
            terms["diversity"] = diversity_loss(prediction.coefficients, alternative.coefficients, mask) + diversity_loss(
                prediction.emotion, alternative.emotion, mask
            )
            total = total + self.options.div_p * terms["diversity"]
        return {"backbone": total, **terms}

    def map_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the published `TransformerVAE` under this module's names."""
        from .official import map_trans_vae

        return map_trans_vae(self, state_dict)
