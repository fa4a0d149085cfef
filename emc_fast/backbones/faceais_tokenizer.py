"""FaceAIS, first part: a face as one of 1000 codes per frame, and back to coefficients and emotion."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import REACTION_3DMM_DIM, REACTION_EMOTION_DIM
from ..losses import masked_mean
from ..nn.gpt import GPTStack, init_like_gpt
from ..nn.noise import Dropout, fold_seeds, layer_stream
from .base import Reaction
from .options import FaceAISOptions
from .quantization import FiniteScalarQuantizer

GROUPS = {
    "brows": (0, 5), "cheeks": (5, 8), "blink": (8, 10), "look": (10, 18), "squint": (18, 20), "wide": (20, 22), "jaw": (22, 26),
    "mouth": (26, 43), "smile": (43, 45), "mouth_side": (45, 49), "nose_tongue": (49, 52), "rotation": (52, 55), "translation": (55, 58),
}  # fmt: skip
"""Coefficients that one term of the tokenizer's loss stands for: first and one past the last."""

NOISE_LAYERS = 1024
"""First layer number of the tokenizer's noise; the predictor's, six times `FaceAISOptions.layers`, come before."""


def face_error(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over the groups of the mean absolute error in each, over frames that count, in float32 at least.

    Args:
        prediction: (B, K, T, 58).
        target: (B, T, 58).
        mask: (B, T) bool; None = all.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    # A mean over a group's channels and over frames is a mean over frames of channels weighted by 1 / size of their group.
    weights = torch.cat([torch.full((stop - first,), 1.0 / (stop - first)) for first, stop in GROUPS.values()])
    error = (prediction.to(dtype) - target.to(dtype)[:, None]).abs() @ weights.to(prediction.device, dtype)
    return masked_mean(error, None if mask is None else mask[:, None])


def emotion_error(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean absolute error of the emotion, (B, K, T, 25) against (B, T, 25), over frames that count."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    error = (prediction.to(dtype) - target.to(dtype)[:, None]).abs().mean(-1)
    return masked_mean(error, None if mask is None else mask[:, None])


class _Blocks(NamedTuple):
    """A sequence cut into blocks: values (N * blocks, block, ...), mask likewise or None, and what is needed to undo it."""

    values: Tensor
    mask: Tensor | None
    frames: int
    blocks: int

    def seeds(self, seed: Tensor | None) -> Tensor | None:
        """One seed per block."""
        return fold_seeds(seed, self.blocks)

    def join(self, values: Tensor) -> Tensor:
        """(N * blocks, block, ...) as (N, T, ...)."""
        return values.reshape(-1, self.blocks * values.shape[1], *values.shape[2:])[:, : self.frames]


class FaceTokenizer(nn.Module):
    """Blocks of a face's frames, each by itself, to codes and back.

    Encoder: linear layer and learned positions, layers that see the whole block, LayerNorm, linear layer to the few numbers
    of a code, quantiser. Decoders: linear layers and positions, then one stack for the coefficients and one for emotion. None of the
    layers has biases.

    A sequence that does not fill its last block has a shorter last block; frames that are not there are seen by none of the others.

    Args:
        options: widths, depths, levels and block.
        dropout: in training.
    """

    def __init__(self, options: FaceAISOptions, *, dropout: float) -> None:
        super().__init__()
        d, layers = options.tokenizer_width, options.tokenizer_layers
        self.block = options.block

        def stack(number: int) -> GPTStack:
            first = NOISE_LAYERS + number * layers
            return GPTStack(d, options.tokenizer_heads, layers, first=first, bias=False, dropout=dropout, final_norm=True)

        self.face_input = nn.Linear(REACTION_3DMM_DIM, d)
        self.face_positions = nn.Embedding(options.block, d)
        self.encoder = stack(0)
        self.quantizer = FiniteScalarQuantizer(options.levels)
        self.to_code = nn.Linear(d, self.quantizer.dim)
        self.from_code = nn.Linear(self.quantizer.dim, d)
        self.code_input = nn.Linear(d, d)
        self.code_positions = nn.Embedding(options.block, d)
        self.coefficient_decoder = stack(1)
        self.coefficient_head = nn.Linear(d, REACTION_3DMM_DIM, bias=False)
        self.emotion_decoder = stack(2)
        self.emotion_head = nn.Linear(d, REACTION_EMOTION_DIM, bias=False)
        self.dropout = Dropout(dropout, stream=layer_stream(NOISE_LAYERS + 3 * layers))
        self.code_dropout = Dropout(dropout, stream=layer_stream(NOISE_LAYERS + 3 * layers) + 1)
        init_like_gpt(self, layers)

    def _blocks(self, x: Tensor, mask: Tensor | None) -> _Blocks:
        rows, frames = x.shape[:2]
        if frames <= self.block:
            return _Blocks(x, mask, frames, 1)
        rest = -frames % self.block
        if rest:
            mask = torch.ones(rows, frames, dtype=torch.bool, device=x.device) if mask is None else mask
            x, mask = F.pad(x, (0, 0, 0, rest)), F.pad(mask, (0, rest))
        mask = None if mask is None else mask.reshape(-1, self.block)
        return _Blocks(x.reshape(-1, self.block, x.shape[-1]), mask, frames, (frames + rest) // self.block)

    def encode(self, coefficients: Tensor, mask: Tensor | None = None, *, seed: Tensor | None = None) -> Tensor:
        """Codes (N, T, n) of coefficients (N, T, 58), with a gradient through the rounding.

        Args:
            coefficients: relative to the mean face.
            mask: (N, T) bool, frames that are there; None = all.
            seed: int64 (N,), for dropout.
        """
        cut = self._blocks(coefficients, mask)
        seed = cut.seeds(seed)
        x = self.face_input(cut.values) + self.face_positions.weight[: cut.values.shape[1]]
        x = self.encoder(self.dropout(x, seed=seed), key_mask=cut.mask, seed=seed)
        with torch.autocast(x.device.type, enabled=False):  # half precision would move values across a rounding
            codes = self.quantizer(self.to_code(x.to(self.to_code.weight.dtype)))
        return cut.join(codes)

    @torch.no_grad()
    def tokens(self, coefficients: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens int64 (N, T) of coefficients (N, T, 58)."""
        return self.quantizer.indices(self.encode(coefficients, mask))

    def embed(self, codes: Tensor) -> Tensor:
        """What both decoders read of codes (N, T, n), without positions: (N, T, d)."""
        return self.code_input(self.from_code(codes.to(self.from_code.weight.dtype)))

    def decode(self, embedded: Tensor, mask: Tensor | None = None, *, seed: Tensor | None = None) -> Reaction:
        """Coefficients (N, T, 58) and emotion (N, T, 25) of what `embed` gave; mask and seed as in `encode`."""
        cut = self._blocks(embedded, mask)
        seed = cut.seeds(seed)
        x = self._decoder_input(cut.values, seed)
        coefficients = self.coefficient_head(self.coefficient_decoder(x, key_mask=cut.mask, seed=seed))
        emotion = self.emotion_head(self.emotion_decoder(x, key_mask=cut.mask, seed=seed))
        return Reaction(cut.join(coefficients), cut.join(emotion))

    def _decoder_input(self, embedded: Tensor, seed: Tensor | None) -> Tensor:
        return self.code_dropout(embedded + self.code_positions.weight[: embedded.shape[1]], seed=seed)

    def emotion_parameters(self) -> list[nn.Parameter]:
        """What the last part of the tokenizer's training still changes."""
        return [*self.emotion_decoder.parameters(), *self.emotion_head.parameters()]

    def loss(self, target: Reaction, *, mask: Tensor | None, emotion_only: bool, seed: Tensor | None) -> dict[str, Tensor]:
        """Errors of the faces and emotions that the codes of a target (B, T, ...) give back.

        Args:
            target: frames that do not count may hold anything finite.
            mask: (B, T) bool, frames that count; None = all.
            emotion_only: train the decoder of emotion alone; the rest is computed without a gradient.
            seed: int64 (B,), for dropout.

        Returns:
            `face`, `emotion` and what is minimised: `total`, their sum or the emotion alone.
        """
        learn = torch.is_grad_enabled()
        with torch.set_grad_enabled(learn and not emotion_only):
            embedded = self.embed(self.encode(target.coefficients, mask, seed=seed))
            cut = self._blocks(embedded, mask)
            seed = cut.seeds(seed)
            x = self._decoder_input(cut.values, seed)
            coefficients = cut.join(self.coefficient_head(self.coefficient_decoder(x, key_mask=cut.mask, seed=seed)))
        emotion = cut.join(self.emotion_head(self.emotion_decoder(x, key_mask=cut.mask, seed=seed)))
        terms = {
            "face": face_error(coefficients[:, None], target.coefficients, mask),
            "emotion": emotion_error(emotion[:, None], target.emotion, mask),
        }
        return {"total": terms["emotion"] if emotion_only else terms["face"] + terms["emotion"], **terms}
