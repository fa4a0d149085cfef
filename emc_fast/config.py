"""`EMCConfig`: every decision about a model, validated, JSON-able and hashable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import CheckpointError

REACTION_3DMM_DIM = 58
"""Width of the listener's 3DMM frame: 52 expression coefficients, 3 of rotation, 3 of translation."""
REACTION_EMOTION_DIM = 25
"""Width of the listener's emotion frame: 15 action units, valence, arousal, 8 expressions."""
FACE_EMOTION_DIM = 25
SPEECH_EMOTION_DIM = 10

CHOICES: dict[str, tuple[str, ...]] = {
    "input": ("features", "image"),
    "norm": ("post", "pre"),
    "ea": ("attention", "add_norm", "none"),
    "cma_prior": ("standard", "mean", "learned"),
    "emotion_source": ("auto", "per_modality", "mean"),
    "fusion_pick": ("sample", "batch", "real"),
    "reduction": ("mean", "paper_sum"),
}
"""Fields that take one of a few words."""


def digest_of(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a configuration given as plain JSON values."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EMCConfig:
    """What a model is made of; docs/model.md explains each choice beside its equation.

    Attributes:
        backbone: name of a registered backbone (`emc_fast.backbones.BACKBONES`; `use_backbone` registers others).
        emc: False gives the backbone alone, as published ("original"); unavailable frames are then fed as zeros.
        input: `features`: the face is (B, T, face_dim); `image`: (B, T, 3, H, W), read by the backbone's own image encoder.
        face_dim: width of a face frame (58 3DMM coefficients; any other per-frame feature); not used for images.
        speech_dim: width of a speech frame (78 MFCC values; any other per-frame feature).
        d_model: width d of every stream.
        num_heads: attention heads; divides d_model.
        dropout: probability, in training only.
        norm: where a block of emotion-aware attention normalises: after the residual sum (`post`) or before attention (`pre`).
        ea: `attention`, `add_norm` (LayerNorm(f + e), an ablation) or `none` (the paper's "w/o EA": emotion is not used at all).
        cma_latent_dim: width of the compensation's latent; None takes d_model.
        cma_hidden_dim: hidden width of its encoder, decoder and prior; None takes d_model.
        cma_prior: what stands in for the posterior where a modality is missing: N(0, I) (`standard`), its mean z = 0 (`mean`), or a
            prior predicted from the other modality (`learned`).
        detach_target: stop the gradient from the alignment loss into the stream that is to be reproduced.
        emotion_source: which emotion goes where: `auto`, `per_modality` or `mean`.
        emotion_positions: where the sample is one vector per clip, give S-EA's emotion the positions of its frames as well as the
            queries. Without them full attention sees the emotion as a set: a reaction then cannot depend on when something was
            shown. A window says when by itself, and positions only blur what is in it. None: positions unless there is a window.
        fusion_pick: which of the three fusions goes on in training: drawn per clip (`sample`), per batch (`batch`), or always `real`.
        l_align, l_kl, l_fusion: weights of the three EMC terms of the loss.
        reduction: `mean` over valid elements, or `paper_sum`: sums over frames and channels, mean over clips.
        causal: emotion-aware attention sees no later frame.
        window: of the frames that it may see, only the last so many; needs `causal`.
        fps: frame rate that the model is meant for; carried along, computes nothing.
        backbone_options: options of the backbone itself (for `trans_vae`: see `TransVAEOptions`).
    """

    backbone: str = "trans_vae"
    emc: bool = True
    input: str = "features"
    face_dim: int = 58
    speech_dim: int = 78
    d_model: int = 128
    num_heads: int = 4
    dropout: float = 0.1
    norm: str = "post"
    ea: str = "attention"
    cma_latent_dim: int | None = None
    cma_hidden_dim: int | None = None
    cma_prior: str = "standard"
    detach_target: bool = True
    emotion_source: str = "auto"
    emotion_positions: bool | None = None
    fusion_pick: str = "sample"
    l_align: float = 1.0
    l_kl: float = 1.0
    l_fusion: float = 1.0
    reduction: str = "mean"
    causal: bool = False
    window: int | None = None
    fps: float = 25.0
    backbone_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"EMCConfig.{name} takes one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.emotion_positions is not None and not isinstance(self.emotion_positions, bool):
            raise ValueError(f"EMCConfig.emotion_positions takes True, False or None; got {self.emotion_positions!r}")
        for name in ("emc", "detach_target", "causal"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"EMCConfig.{name} takes True or False; got {getattr(self, name)!r}")
        for name in ("face_dim", "speech_dim", "d_model", "num_heads", "cma_latent_dim", "cma_hidden_dim", "window"):
            value = getattr(self, name)
            optional = name in ("cma_latent_dim", "cma_hidden_dim", "window")
            if not (value is None and optional) and not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
                raise ValueError(f"EMCConfig.{name} takes a positive integer{' or None' if optional else ''}; got {value!r}")
        for name in ("dropout", "l_align", "l_kl", "l_fusion", "fps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"EMCConfig.{name} takes a finite number that is not negative; got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one value, with one digest
        if self.dropout >= 1 or self.fps == 0:
            raise ValueError(f"EMCConfig takes dropout < 1 and fps > 0; got dropout={self.dropout!r}, fps={self.fps!r}")
        if self.d_model % self.num_heads:
            raise ValueError(f"EMCConfig.num_heads must divide d_model; got {self.num_heads} heads for a width of {self.d_model}")
        if self.d_model % 2:
            raise ValueError(f"EMCConfig.d_model must be even (sinusoidal positions come in pairs); got {self.d_model}")
        if self.window is not None and not self.causal:
            raise ValueError("EMCConfig.window limits causal attention; set causal=True as well, or window=None")
        if not isinstance(self.backbone_options, Mapping):
            raise ValueError(f"EMCConfig.backbone_options takes a dict; got {self.backbone_options!r}")
        from .backbones import check_options

        options = check_options(self.backbone, self.backbone_options)
        # Defaults are written out: a configuration means the same when a later version has other defaults.
        object.__setattr__(self, "backbone_options", asdict(options))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EMCConfig:
        """The inverse of `to_dict`; fields left out take their defaults, unknown ones are a `CheckpointError`."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise CheckpointError(
                f"the configuration has fields that this version does not know: {', '.join(unknown)}. "
                "It was written by another program or a later version; upgrade emc_fast or remove the fields."
            )
        return cls(**values)

    def digest(self) -> str:
        """16 hexadecimal digits that name this configuration: equal configurations have equal digests on every machine."""
        return digest_of(self.to_dict())

    def __hash__(self) -> int:
        return int(self.digest(), 16)
