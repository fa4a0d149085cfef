"""Two small backbones of the kinds that the protocol has to serve besides Trans-VAE.

`Windows`, as REGNN: independent, overlapping windows, a unit-variance Gaussian per frame, no latent KL.
`Patches`, as FaceAIS: patches predicted from what came before, taught by the target, a categorical per frame.
"""

from dataclasses import dataclass

import torch
from torch import nn

from emc_fast import ops
from emc_fast.backbones.base import Backbone, Distribution, Gaussian, Reaction, Sample, Segment
from emc_fast.losses import squared_error
from emc_fast.ops import streams

TOKENS = 6


@dataclass(frozen=True)
class ToyOptions:
    size: int = 4


@dataclass(frozen=True)
class Categorical(Distribution):
    """Logits (B, J, T, V)."""

    logits: torch.Tensor

    @property
    def per_frame(self):
        return True

    def split(self, parts):
        return [Categorical(x) for x in self.logits.chunk(parts)]

    @staticmethod
    def join(segments):
        draws = max(s.logits.shape[1] for s in segments)
        return Categorical(torch.cat([s.logits.expand(-1, draws, -1, -1) for s in segments], 2))

    @staticmethod
    def pick(options, index):
        rows = torch.arange(len(index))
        return Categorical(torch.stack([o.logits for o in options])[index, rows])

    def fusion_loss(self, comp_face, comp_speech, *, mask, reduction):
        if mask is not None:
            mask = mask[:, None].expand(self.logits.shape[:-1])
        logits = (self.logits, comp_face.logits, comp_speech.logits)
        if reduction == "mean":
            return ops.fusion_kl_categorical(*logits, mask=mask, reduction="mean")
        return ops.fusion_kl_categorical(*logits, mask=mask, reduction="sum") / len(self.logits)


class Toy(Backbone):
    def __init__(self, config, options):
        super().__init__()
        d = config.d_model
        self.size = options.size
        self.d_model = d
        self.face, self.speech = nn.Linear(config.face_dim, d), nn.Linear(config.speech_dim, d)
        self.heads = nn.Linear(d, 83)

    def encode(self, face, speech, *, face_mask, speech_mask, seed):
        return None if face is None else self.face(face), None if speech is None else self.speech(speech)

    def fuse(self, face, speech, *, key_mask, seed):
        return face + speech

    def loss(self, prediction, target, *, mask, kl, alternative, distributions, true_draw):
        assert kl is None
        assert alternative is None
        pairs = zip(prediction, target, strict=True)
        return {"backbone": sum(squared_error(p, t, mask) for p, t in pairs)}


class Windows(Toy):
    def segments(self, frames):
        starts = range(0, frames, self.size // 2)  # the last may be short: then padding changes nothing
        return [Segment(i, s, s, min(s + self.size, frames)) for i, s in enumerate(starts)]

    def distribution(self, fused, *, segment, draws, key_mask, past, seed):
        assert past is None
        return Gaussian(fused.view(-1, draws, *fused.shape[1:]), None)

    def sample(self, distribution, num_samples, *, segment, seed):
        mu = distribution.mu.expand(-1, num_samples, -1, -1)
        z, _ = ops.reparameterize(mu, torch.zeros_like(mu), seed=seed, stream=streams.LATENT, frame_offset=segment.begin)
        return Sample(z, None)

    def decode(self, memory, sample, *, distribution, segment, frame_mask, past, seed):
        return Reaction(*self.heads(memory).split((58, 25), -1))

    def join(self, pieces, segments, frames, *, within):
        total, count = pieces[0].coefficients.new_zeros(len(pieces[0].coefficients), frames, 83), torch.zeros(frames, 1)
        for piece, s in zip(pieces, segments, strict=True):
            total = total + nn.functional.pad(torch.cat(piece, -1), (0, 0, s.begin, frames - s.stop))
            count[s.begin : s.stop] += 1
        return Reaction(*(total / count).split((58, 25), -1))


class Patches(Toy):
    autoregressive = True
    teacher_forcing = True

    def __init__(self, config, options):
        super().__init__(config, options)
        self.logits = nn.Linear(self.d_model, TOKENS)
        self.past = nn.Linear(25, self.d_model)
        self.embedding = nn.Embedding(TOKENS, self.d_model)
        self.seen = []

    def segments(self, frames):
        return [Segment(i, 0, s, min(s + self.size, frames)) for i, s in enumerate(range(0, frames, self.size))]

    def distribution(self, fused, *, segment, draws, key_mask, past, seed):
        if past is not None:
            self.seen.append(past.emotion)
            fused = fused + self.past(past.emotion).mean(1, keepdim=True)
        logits = self.logits(fused[:, segment.begin - segment.first :])
        return Categorical(logits.view(-1, draws, *logits.shape[1:]))

    def sample(self, distribution, num_samples, *, segment, seed):
        logits = distribution.logits.expand(-1, num_samples, -1, -1)
        u = ops.philox_uniform(logits.shape, seed, stream=streams.LATENT, frame_offset=segment.begin)
        weights = torch.softmax(logits, -1)
        token = (logits.detach() - torch.log(-torch.log(u))).argmax(-1)
        straight = nn.functional.one_hot(token, TOKENS) + weights - weights.detach()
        return Sample(straight @ self.embedding.weight, None)

    def decode(self, memory, sample, *, distribution, segment, frame_mask, past, seed):
        return Reaction(*self.heads(memory).split((58, 25), -1))


TOYS = {
    "toy_windows": (ToyOptions, "toy_backbones:Windows"),
    "toy_patches": (ToyOptions, "toy_backbones:Patches"),
}
"""As in `emc_fast.backbones.BACKBONES`."""
