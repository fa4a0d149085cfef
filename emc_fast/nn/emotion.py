"""The e-MLP, and which emotion goes to which place."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FACE_EMOTION_DIM, SPEECH_EMOTION_DIM
from .frames import Spans, cut_frames


class EmotionMLP(nn.Module):
    """e = W (GELU(W_in x)): one input layer per source (25 values from the face, 10 from speech), the last layer shared.

    Args:
        d_model: width d of the result.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.face = nn.Linear(FACE_EMOTION_DIM, d_model)
        self.speech = nn.Linear(SPEECH_EMOTION_DIM, d_model)
        self.shared = nn.Linear(d_model, d_model)

    def forward(self, face_emotion: Tensor | None = None, speech_emotion: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Both sources at once.

        Args:
            face_emotion: (B, T, 25) or None: 15 action units, valence, arousal, 8 expressions.
            speech_emotion: (B, T, 10) or None: valence, arousal, 8 expressions.

        Returns:
            Their embeddings (B, T, d), None for a source that is None.
        """
        face = None if face_emotion is None else self.shared(F.gelu(self.face(face_emotion)))
        speech = None if speech_emotion is None else self.shared(F.gelu(self.speech(speech_emotion)))
        return face, speech


class Emotion(NamedTuple):
    """An emotion sequence for one place: values (B, T, d), and the frames (B, T) that have one (None = all)."""

    values: Tensor
    mask: Tensor | None

    def cut(self, spans: Spans) -> Emotion:
        """The frames of `spans`, as `cut_frames`."""
        return Emotion(cut_frames(self.values, spans), None if self.mask is None else cut_frames(self.mask, spans))


class EmotionView(NamedTuple):
    """The emotions of one fusion: for the face stream, the speech stream and the fused sequence."""

    face: Emotion
    speech: Emotion
    fused: Emotion


class EmotionSources(NamedTuple):
    """Embedded emotions with the frames (B, T) bool where each is there; None = this source is absent for the whole batch.

    `everywhere`: it is known, without looking, that every frame has an emotion; views then need no mask.
    """

    face: Tensor | None
    speech: Tensor | None
    has_face: Tensor
    has_speech: Tensor
    everywhere: bool = False

    def view(self, source: str) -> EmotionView:
        """Who gets which emotion when everything that is there may be used.

        Args:
            source: `auto`: the face's where there is one, else speech's. `mean`: the mean of both where both are there, else the
                one that is. `per_modality`: each stream its own where it is there, else the other's; the fused sequence as `auto`.

        Returns:
            The view; places that get the same emotion share one object.
        """
        present = None if self.everywhere else self.has_face | self.has_speech
        auto = Emotion(self._prefer(self.face, self.speech, self.has_face), present)
        if source == "auto":
            return EmotionView(auto, auto, auto)
        if source == "mean":
            if self.face is None or self.speech is None:
                return EmotionView(auto, auto, auto)
            both = (self.has_face & self.has_speech)[..., None]
            mean = Emotion(torch.where(both, (self.face + self.speech) / 2, auto.values), present)
            return EmotionView(mean, mean, mean)
        speech = Emotion(self._prefer(self.speech, self.face, self.has_speech), present)
        return EmotionView(auto, speech, auto)

    def without_face(self, source: str) -> EmotionView:
        """The view of the fusion that simulates a missing face: speech's emotion wherever there is one, in every source mode."""
        return self._replace(has_face=self.has_face & ~self.has_speech).view(source)

    def without_speech(self, source: str) -> EmotionView:
        """The view of the fusion that simulates missing speech: the face's emotion wherever there is one."""
        return self._replace(has_speech=self.has_speech & ~self.has_face).view(source)

    @staticmethod
    def _prefer(first: Tensor | None, second: Tensor | None, has_first: Tensor) -> Tensor:
        if first is None or second is None:
            only = second if first is None else first
            assert only is not None, "the caller has seen to it that there is an emotion"
            return only
        return torch.where(has_first[..., None], first, second)


def pick_emotion(options: list[Emotion], pick: Tensor) -> Emotion:
    """Of several emotions, per clip the one that `pick` (B,) int64 names; identical ones are not copied."""
    if all(option is options[0] for option in options):
        return options[0]
    rows = torch.arange(pick.shape[0], device=pick.device)
    values = torch.stack([option.values for option in options])[pick, rows]
    masks = [option.mask for option in options if option.mask is not None]
    return Emotion(values, torch.stack(masks)[pick, rows] if len(masks) == len(options) else None)
