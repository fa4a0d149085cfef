"""Checking and cleaning of a model's inputs, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import FACE_EMOTION_DIM, REACTION_3DMM_DIM, REACTION_EMOTION_DIM, SPEECH_EMOTION_DIM
from ..errors import DataError

if TYPE_CHECKING:
    from ..config import EMCConfig


@dataclass(frozen=True)
class Inputs:
    """A batch as the model works on it: every tensor is finite and zero where it is not there.

    Attributes:
        face, speech: (B, T, ...) or None = missing throughout.
        face_emotion: (B, T, 25) or None. speech_emotion: (B, T, 10) or None.
        valid: (B, T) bool, frames within the clip's length; None = all.
        has_face, has_speech: (B, T) bool, frames of the clip where the stream is there; None = everywhere.
        target_3dmm, target_emotion: (B, T, ...) or None.
        target_mask: (B, T) bool, frames of the target that count; None = all.
        appropriate_emotion: (B, T, J, 25) or None. appropriate_mask: (B, T, J) bool where it is there, None without it.
        batch, frames, device: of all of them.
    """

    face: Tensor | None
    speech: Tensor | None
    face_emotion: Tensor | None
    speech_emotion: Tensor | None
    valid: Tensor | None
    has_face: Tensor | None
    has_speech: Tensor | None
    target_3dmm: Tensor | None
    target_emotion: Tensor | None
    target_mask: Tensor | None
    appropriate_emotion: Tensor | None
    appropriate_mask: Tensor | None
    batch: int
    frames: int
    device: torch.device

    def presence(self, stream: str) -> Tensor:
        """(B, T) bool, where `face` or `speech` is there, as a tensor in every case."""
        tensor, mask = (self.face, self.has_face) if stream == "face" else (self.speech, self.has_speech)
        if tensor is None:
            return torch.zeros(self.batch, self.frames, dtype=torch.bool, device=self.device)
        if mask is not None:
            return mask
        if self.valid is not None:
            return self.valid
        return torch.ones(self.batch, self.frames, dtype=torch.bool, device=self.device)


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _clean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where the mask says no, by selection: a NaN there reaches neither a value nor a gradient."""
    if mask is None:
        return x
    return torch.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, 0)


class _Checker:
    """Collects the shapes of a batch, and the tests of contents so that they cost one host synchronisation together."""

    def __init__(self) -> None:
        self.like: tuple[str, Tensor] | None = None
        self.tests: list[tuple[str, Tensor]] = []

    def sequence(self, name: str, x: Tensor | None, width: tuple[int, ...], *, dtype: torch.dtype | None = None) -> None:
        """(B, T, *width) on one device; `dtype` None = floating; -1 in `width` = any size."""
        if x is None:
            return
        if not isinstance(x, Tensor):
            raise DataError(f"{name} takes a tensor or None; got {type(x).__name__}")
        ok = x.ndim == 2 + len(width) and all(w in (-1, n) for w, n in zip(width, x.shape[2:], strict=True))
        if not ok or 0 in x.shape:
            shape = "".join(f", {w if w > 0 else 'size'}" for w in width)
            raise DataError(f"{name} takes a shape (B, T{shape}) without empty dimensions; got {tuple(x.shape)}")
        if dtype is not None and x.dtype != dtype:
            raise DataError(f"{name} takes {dtype}; got {x.dtype}")
        if dtype is None and not x.is_floating_point():
            raise DataError(f"{name} takes a floating type; got {x.dtype}")
        if self.like is None:
            self.like = name, x
            return
        other, y = self.like
        if x.shape[0] != y.shape[0]:
            raise DataError(f"{name} has {x.shape[0]} clips but {other} has {y.shape[0]}; all streams of a batch need the same number")
        if x.shape[1] != y.shape[1]:
            raise DataError(
                f"{name} has {x.shape[1]} frames but {other} has {y.shape[1]}; cut or pad the streams to one length (and give `lengths`)"
            )
        if x.device != y.device:
            raise DataError(f"{name} is on {x.device} but {other} is on {y.device}; move all inputs to one device")

    def finite(self, name: str, x: Tensor | None, mask: Tensor | None) -> None:
        """Every value of the frames in `mask` is finite."""
        if x is not None:
            bad = ~torch.isfinite(x).flatten(2).all(-1)
            self.tests.append((f"{name} has NaN or Inf in a frame marked available: {{}}", bad if mask is None else bad & mask))

    def run(self) -> None:
        """Raise for the first test that has a True; one synchronisation when there is none."""
        if not self.tests or not bool(torch.stack([bad.any() for _, bad in self.tests]).any()):
            return
        for message, bad in self.tests:
            if bool(bad.any()):
                place = bad.nonzero()[0].tolist()
                where = f"sample {place[0]}" + (f", frame {place[1]}" if len(place) > 1 else "")
                raise DataError(message.format(where))


def prepare(
    config: EMCConfig,
    *,
    face: Tensor | None,
    speech: Tensor | None,
    face_emotion: Tensor | None,
    speech_emotion: Tensor | None,
    face_available: Tensor | None,
    speech_available: Tensor | None,
    lengths: Tensor | None,
    target_3dmm: Tensor | None,
    target_emotion: Tensor | None,
    target_available: Tensor | None,
    training: bool,
    validate: bool,
    appropriate_emotion: Tensor | None = None,
    appropriate_available: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Inputs:
    """Check a batch and clean it.

    Shapes and types are always checked. Contents (NaN and Inf, lengths, clips without any frame or emotion) are checked with
    `validate`, at the price of a few host synchronisations; masks that turn out to be all True are then dropped.
    `dtype` is that of the model's weights, which the streams need too (under autocast anything up to float32); None = not looked at.

    Raises:
        DataError: naming the stream and what is wrong with it.
    """
    if face is None and speech is None:
        raise DataError("both face and speech are missing; a reaction needs at least one of them")
    if face is None and face_available is not None:
        raise DataError("face_available is given without face; leave it out, or give the stream")
    if speech is None and speech_available is not None:
        raise DataError("speech_available is given without speech; leave it out, or give the stream")
    check = _Checker()
    check.sequence("face", face, (3, -1, -1) if config.input == "image" else (config.face_dim,))
    check.sequence("speech", speech, (config.speech_dim,))
    check.sequence("face_emotion", face_emotion, (FACE_EMOTION_DIM,))
    check.sequence("speech_emotion", speech_emotion, (SPEECH_EMOTION_DIM,))
    if dtype is not None:
        for name, x in (("face", face), ("speech", speech), ("face_emotion", face_emotion), ("speech_emotion", speech_emotion)):
            _check_type(name, x, dtype)
    check.sequence("face_available", face_available, (), dtype=torch.bool)
    check.sequence("speech_available", speech_available, (), dtype=torch.bool)
    check.sequence("target_3dmm", target_3dmm, (REACTION_3DMM_DIM,))
    check.sequence("target_emotion", target_emotion, (REACTION_EMOTION_DIM,))
    check.sequence("target_available", target_available, (), dtype=torch.bool)
    check.sequence("appropriate_emotion", appropriate_emotion, (-1, REACTION_EMOTION_DIM))
    check.sequence("appropriate_available", appropriate_available, (-1,), dtype=torch.bool)
    if appropriate_available is not None and (appropriate_emotion is None or appropriate_emotion.shape[:3] != appropriate_available.shape):
        found = "no appropriate_emotion" if appropriate_emotion is None else f"appropriate_emotion {tuple(appropriate_emotion.shape)}"
        raise DataError(f"appropriate_available {tuple(appropriate_available.shape)} goes with {found}; give both with the same (B, T, J)")
    if (target_3dmm is None) != (target_emotion is None):
        raise DataError("the loss needs target_3dmm and target_emotion; only one of them is given")
    assert check.like is not None
    batch, frames = check.like[1].shape[:2]
    device = check.like[1].device
    valid = None
    if lengths is not None:
        if not isinstance(lengths, Tensor):
            raise DataError(f"lengths takes a tensor, int64 of shape (B,) = ({batch},), or None; got {type(lengths).__name__}")
        if lengths.dtype != torch.int64 or tuple(lengths.shape) != (batch,):
            raise DataError(f"lengths takes int64 of shape (B,) = ({batch},); got {lengths.dtype} of shape {tuple(lengths.shape)}")
        lengths = lengths.to(device)
        valid = torch.arange(frames, device=device) < lengths[:, None]

    uses_emotion = config.emc and config.ea != "none"
    if config.emc and training and (face is None or speech is None):
        missing = "face" if face is None else "speech"
        raise DataError(
            f"{missing} is missing throughout: compensation is learned from frames that have both streams. "
            "In training give both, with availability masks where they have holes; the losses of a modality are simulated."
        )
    if uses_emotion:
        _check_emotions(face, speech, face_emotion, speech_emotion, training)

    has_face, has_speech = _both(face_available, valid), _both(speech_available, valid)
    target_mask = _both(target_available, valid)
    appropriate_mask = None
    if appropriate_emotion is not None:
        appropriate_mask = appropriate_emotion.new_ones(appropriate_emotion.shape[:3], dtype=torch.bool)
        appropriate_mask = _both(_both(appropriate_available, appropriate_mask), None if valid is None else valid[..., None])
    if validate:
        if lengths is not None:
            check.tests.append((f"lengths takes values from 1 to T = {frames}; wrong at {{}}", (lengths < 1) | (lengths > frames)))
        check.finite("face", face, has_face)
        check.finite("speech", speech, has_speech)
        if uses_emotion:
            check.finite("face_emotion", None if face is None else face_emotion, has_face)
            check.finite("speech_emotion", None if speech is None else speech_emotion, has_speech)
        check.finite("target_3dmm", target_3dmm, target_mask)
        check.finite("target_emotion", target_emotion, target_mask)
        if appropriate_emotion is not None and appropriate_mask is not None:
            bad = ~torch.isfinite(appropriate_emotion).all(-1) & appropriate_mask
            check.tests.append(("appropriate_emotion has NaN or Inf in a frame marked available: {}", bad.any(-1)))
        check.run()
        check.tests.clear()
        # What holds everywhere needs no mask, and a stream without a hole no draws of its compensation.
        if valid is not None and bool(valid.all()):
            valid = None
        if has_face is not None and bool((has_face if valid is None else has_face | ~valid).all()):
            face_available = None
        if has_speech is not None and bool((has_speech if valid is None else has_speech | ~valid).all()):
            speech_available = None

    inputs = Inputs(
        face=None if face is None else _clean(face, has_face),
        speech=None if speech is None else _clean(speech, has_speech),
        face_emotion=_clean(face_emotion, has_face) if uses_emotion and face is not None and face_emotion is not None else None,
        speech_emotion=_clean(speech_emotion, has_speech) if uses_emotion and speech is not None and speech_emotion is not None else None,
        valid=valid,
        has_face=None if face_available is None else has_face,
        has_speech=None if speech_available is None else has_speech,
        target_3dmm=None if target_3dmm is None else _clean(target_3dmm, target_mask),
        target_emotion=None if target_emotion is None else _clean(target_emotion, target_mask),
        target_mask=target_mask,
        appropriate_emotion=None if appropriate_emotion is None else _clean(appropriate_emotion, appropriate_mask),
        appropriate_mask=appropriate_mask,
        batch=batch,
        frames=frames,
        device=device,
    )
    if validate:
        _check_presence(inputs, check, uses_emotion)
    return inputs


def _check_type(name: str, x: Tensor | None, dtype: torch.dtype) -> None:
    """A stream of the type that the weights have; autocast brings the smaller types together, but not float64."""
    if x is None or x.dtype == dtype:
        return
    if torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, dtype):
        return
    raise DataError(f"{name} takes {dtype}, as the model's weights are; got {x.dtype} (convert it with `{name}.to({dtype})`)")


def _check_emotions(
    face: Tensor | None, speech: Tensor | None, face_emotion: Tensor | None, speech_emotion: Tensor | None, training: bool
) -> None:
    """Emotion-aware attention needs an emotion that goes with a stream that is there."""
    if training and (face_emotion is None or speech_emotion is None):
        missing = "face_emotion" if face_emotion is None else "speech_emotion"
        raise DataError(
            f"{missing} is missing: training computes the fusion of both real streams and simulates the loss of each, "
            "which needs the emotion of both. Give it, or set ea='none' in the configuration."
        )
    if (face is None or face_emotion is None) and (speech is None or speech_emotion is None):
        given = "face" if speech is None else "speech" if face is None else "face or speech"
        wanted = "face_emotion" if speech is None else "speech_emotion" if face is None else "face_emotion or speech_emotion"
        raise DataError(
            f"no emotion goes with the streams that are there: with {given}, emotion-aware attention needs {wanted}. "
            "An emotion whose own stream is missing is not used."
        )


def _check_presence(inputs: Inputs, check: _Checker, uses_emotion: bool) -> None:
    """Every clip has a frame with a modality, and a frame with an emotion."""
    face, speech = inputs.presence("face"), inputs.presence("speech")
    check.tests.append(("face and speech are both unavailable in every frame of {}", ~(face | speech).any(1)))
    if uses_emotion:
        nothing = torch.zeros_like(face)
        known = (nothing if inputs.face_emotion is None else face) | (nothing if inputs.speech_emotion is None else speech)
        check.tests.append(
            ("{} has no emotion in any frame: its available streams come without face_emotion or speech_emotion", ~known.any(1))
        )
    check.run()
