"""FaceAIS, second part: six stacks that predict a patch of the listener's tokens from the speaker and the listener's past.

Every window of frames ends with a block, and learned positions count from its end: whatever a window's length, its last row has the
last position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.gpt import GatedCrossStack, GPTStack, init_like_gpt
from ..nn.noise import Dropout, layer_stream
from .options import FaceAISOptions

PAD, MASK = 0, 1
"""Special tokens; the published vocabulary has both, and its code never uses MASK."""
SPECIAL = 2

_DROPOUTS = 6
"""Place of the input dropouts' noise behind the layers of the six stacks, in stacks."""


class PredictorSpeaker(nn.Module):
    """The speaker's side: a stack over sound, one over face tokens, and a gated cross-modal one that puts sound into the face.

    Args:
        d_model, num_heads, dropout: as in `GPTLayer`.
        speech_dim: width of a frame of speech, a multiple of `options.speech_factor`.
        options: depths, context, vocabulary.
    """

    def __init__(self, d_model: int, num_heads: int, speech_dim: int, options: FaceAISOptions, *, dropout: float) -> None:
        super().__init__()
        if speech_dim % options.speech_factor:
            raise ValueError(f"speech_factor must divide speech_dim; got {options.speech_factor} sub-frames in a width of {speech_dim}")
        layers = options.layers
        self.options = options
        self.face_embedding = nn.Embedding(options.vocabulary + SPECIAL, d_model)
        self.face_positions = nn.Embedding(options.context, d_model)
        self.speech_input = nn.Linear(speech_dim // options.speech_factor, d_model)
        self.speech_positions = nn.Embedding(options.context * options.speech_factor, d_model)
        self.speech_stack = GPTStack(d_model, num_heads, layers, first=0, dropout=dropout)
        self.face_stack = GPTStack(d_model, num_heads, layers, first=layers, dropout=dropout)
        self.cross = GatedCrossStack(d_model, num_heads, layers, first=2 * layers, dropout=dropout, reads=options.cross_reads)
        self.face_dropout = Dropout(dropout, stream=layer_stream(_DROPOUTS * layers))
        self.speech_dropout = Dropout(dropout, stream=layer_stream(_DROPOUTS * layers) + 1)
        init_like_gpt(self, layers)

    def _first(self, frames: int) -> int:
        """Position of the first of so many frames; the last patch may be short, and then its last positions stay free."""
        block = self.options.block
        return self.options.context - -(-frames // block) * block

    def encode_face(self, tokens: Tensor, mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """(N, T) tokens to (N, T, d); frames outside `mask` (N, T) become PAD and are seen by no other."""
        rows = tokens + SPECIAL
        if mask is not None:
            rows = torch.where(mask, rows, PAD)
        first = self._first(tokens.shape[1])
        x = self.face_embedding(rows) + self.face_positions.weight[first : first + tokens.shape[1]]
        return self.face_stack(self.face_dropout(x, seed=seed), key_mask=mask, seed=seed)

    def encode_speech(self, speech: Tensor, mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """(N, T, speech_dim) to (N, T, d)."""
        rows, frames, _ = speech.shape
        factor = self.options.speech_factor
        first = self._first(frames) * factor
        x = self.speech_input(speech.reshape(rows, frames * factor, -1)) + self.speech_positions.weight[first : first + frames * factor]
        x = self.speech_dropout(x, seed=seed)
        if factor > 1:
            x = x.view(rows, frames, factor, -1).amax(2)
        return self.speech_stack(x, key_mask=mask, seed=seed)

    def fuse(self, face: Tensor, speech: Tensor, key_mask: Tensor | None, seed: Tensor | None) -> Tensor:
        """Two streams (N, T, d) to one."""
        return self.cross(face, speech, key_mask=key_mask, memory_mask=key_mask, seed=seed)


class PredictorListener(nn.Module):
    """The listener's side: a stack over its past tokens, one over the speaker's fused stream, a gated cross-modal decoder, the head.

    Row i of the listener is one patch ahead of what it reads: the row that reads frame t gives the token of frame t + block. A patch
    that has no past is predicted from PAD rows that nothing attends.

    Args:
        d_model, num_heads, dropout, options: as in `PredictorSpeaker`.
    """

    def __init__(self, d_model: int, num_heads: int, options: FaceAISOptions, *, dropout: float) -> None:
        super().__init__()
        layers = options.layers
        self.options = options
        self.embedding = nn.Embedding(options.vocabulary + SPECIAL, d_model)
        self.positions = nn.Embedding(options.context, d_model)
        self.listener_stack = GPTStack(d_model, num_heads, layers, first=3 * layers, dropout=dropout)
        self.speaker_stack = GPTStack(d_model, num_heads, layers, first=4 * layers, dropout=dropout)
        self.cross = GatedCrossStack(d_model, num_heads, layers, first=5 * layers, dropout=dropout, reads=options.cross_reads)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, options.vocabulary + SPECIAL, bias=False)
        self.dropout = Dropout(dropout, stream=layer_stream(_DROPOUTS * layers) + 2)
        init_like_gpt(self, layers)

    def forward(
        self,
        fused: Tensor,
        past: Tensor | None,
        *,
        frames: int,
        codes: int,
        key_mask: Tensor | None = None,
        past_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Logits of a patch.

        Args:
            fused: (N / K, T, d), the speaker's window, one for K rows of the past side by side.
            past: int64 (N, begin), tokens of the listener before the patch (a multiple of `block`); None at a clip's beginning.
            frames: of the patch, `block` or fewer at a clip's end.
            codes: how many tokens there are.
            key_mask: (N / K, T) bool, frames of the speaker that may be attended.
            past_mask: (N, begin) bool, frames of the past that may be.
            seed: int64 (N,), for dropout.

        Returns:
            (N, frames, codes).
        """
        block, context = self.options.block, self.options.context
        rows = fused.shape[0]
        if past is None:
            tokens = torch.full((rows, block), PAD, dtype=torch.int64, device=fused.device)
            mask: Tensor | None = torch.zeros_like(tokens, dtype=torch.bool)
        else:
            tokens = past[:, -context:] + SPECIAL
            mask = None if past_mask is None else past_mask[:, -context:]
            if mask is not None:
                tokens = torch.where(mask, tokens, PAD)
        x = self.embedding(tokens) + self.positions.weight[context - tokens.shape[1] :]
        x = self.listener_stack(self.dropout(x, seed=seed), key_mask=mask, seed=seed)
        copies = x.shape[0] // rows
        speaker = self.speaker_stack(fused, key_mask=key_mask, seed=None if seed is None else seed[::copies])
        if copies > 1:
            speaker = speaker.repeat_interleave(copies, 0)
            key_mask = None if key_mask is None else key_mask.repeat_interleave(copies, 0)
        x = self.cross(x, speaker, key_mask=mask, memory_mask=key_mask, seed=seed)
        x = self.norm(x[:, x.shape[1] - block : x.shape[1] - block + frames])
        return F.linear(x, self.head.weight[SPECIAL : SPECIAL + codes])
