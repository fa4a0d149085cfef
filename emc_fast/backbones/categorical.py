"""A categorical distribution per frame, as a backbone of discrete tokens has it for Z."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..losses import masked_mean, mean_divisor
from ..ops import streams
from .distribution import Distribution


@dataclass(frozen=True)
class Categorical(Distribution):
    """One categorical per frame over V tokens: `logits` (B, J, T, V)."""

    logits: Tensor

    @property
    def per_frame(self) -> bool:
        """Always."""
        return True

    def split(self, parts: int) -> list[Categorical]:
        """Chunks along B."""
        return [Categorical(chunk) for chunk in self.logits.chunk(parts)]

    @staticmethod
    def join(segments: list[Categorical]) -> Categorical:
        """All frames of the segments as one sequence (B, J, T, V)."""
        draws = max(s.logits.shape[1] for s in segments)
        return Categorical(torch.cat([s.logits.expand(-1, draws, -1, -1) for s in segments], dim=2))

    @staticmethod
    def pick(options: list[Categorical], index: Tensor) -> Categorical:
        """Per clip the distribution that `index` (B,) names."""
        rows = torch.arange(index.shape[0], device=index.device)
        return Categorical(torch.stack([option.logits for option in options])[index, rows])

    def fusion_loss(self, comp_face: Categorical, comp_speech: Categorical, *, mask: Tensor | None, reduction: str) -> Tensor:
        """See `Distribution.fusion_loss`; an element is one frame's categorical."""
        rows = self.logits.shape[:-1]
        if mask is not None:
            mask = mask[:, None].expand(rows)
        total = ops.fusion_kl_categorical(self.logits, comp_face.logits, comp_speech.logits, mask=mask, reduction="sum")
        if reduction == "mean":
            return total / mean_divisor(rows, mask, self.logits.device)
        return total / rows[0]

    def cross_entropy(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """-log p(token) as a mean over the frames that count and J, float32 at least.

        Args:
            tokens: int64 (B, T).
            mask: (B, T) bool; None = all.
        """
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        chosen = tokens[:, None, :, None].expand(*logits.shape[:-1], 1)
        values = torch.logsumexp(logits, dim=-1) - logits.gather(-1, chosen)[..., 0]
        return masked_mean(values, None if mask is None else mask[:, None])

    def draw(
        self, num_samples: int, *, top_k: int | None, temperature: float, seed: Tensor | None, frame_offset: int
    ) -> tuple[Tensor, Tensor | None]:
        """Draw tokens by the Gumbel-max rule: the largest of logit / temperature - log(-log u), u from the package's noise.

        A frame's token depends on its own logits and on (seed of the clip, draw, frame) alone, so it is the same in any batch.

        Args:
            num_samples: K; J is 1 or K.
            top_k: only the so many likeliest tokens of each frame (and those as likely as the last of them); None = all.
            temperature: positive; below 1 sharpens.
            seed: int64 (B,).
            frame_offset: number of the first frame in the clip.

        Returns:
            tokens int64 (B, K, T), and where gradients are wanted the one-hot vectors (B, K, T, V) of these tokens with the
            gradient of the probabilities they were drawn with ("straight through"), else None.
        """
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)) / temperature
        if top_k is not None and top_k < logits.shape[-1]:
            least = logits.topk(top_k, dim=-1).values[..., -1:]
            logits = torch.where(logits < least, -torch.inf, logits)
        logits = logits.expand(-1, num_samples, -1, -1)
        noise = ops.philox_uniform(
            logits.shape, seed, stream=streams.LATENT, frame_offset=frame_offset, dtype=logits.dtype, device=logits.device
        )
        tokens = (logits.detach() - torch.log(-torch.log(noise))).argmax(-1)
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return tokens, None
        probabilities = torch.softmax(logits, dim=-1)
        hard = torch.nn.functional.one_hot(tokens, logits.shape[-1]).to(probabilities.dtype)
        return tokens, hard + (probabilities - probabilities.detach())
