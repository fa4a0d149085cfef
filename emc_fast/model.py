"""`EMCModel`: speaker in, K appropriate reactions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import build_backbone
from .backbones.base import Distribution, Listeners, Reaction
from .checkpoint import CheckpointMixin, load_checked
from .config import EMCConfig
from .nn.emc import EMC
from .nn.inputs import prepare
from .nn.noise import resolve_seed
from .pipeline import Pass, Result


@dataclass
class EMCOutput:
    """What a model returns.

    Attributes:
        reaction_3dmm: (B, K, T, 58), 0 beyond a clip's length.
        reaction_emotion: (B, K, T, 25), likewise.
        distribution: what the reactions were drawn from, one per segment of the clip (offline models: one).
        losses: scalars by name, with `total`, when targets were given; else None.
    """

    reaction_3dmm: Tensor
    reaction_emotion: Tensor
    distribution: tuple[Distribution, ...]
    losses: dict[str, Tensor] | None = None


class EMCModel(nn.Module, CheckpointMixin):
    """A backbone, with EMC or without, as `config` says.

    Args:
        config: an `EMCConfig`, or its fields as a mapping.
    """

    def __init__(self, config: EMCConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, EMCConfig) else EMCConfig.from_dict(config)
        self.backbone = build_backbone(self.config)
        self.emc = EMC(self.config, self.backbone) if self.config.emc else None

    def forward(
        self,
        face: Tensor | None,
        speech: Tensor | None,
        *,
        face_emotion: Tensor | None = None,
        speech_emotion: Tensor | None = None,
        face_available: Tensor | None = None,
        speech_available: Tensor | None = None,
        lengths: Tensor | None = None,
        num_samples: int = 1,
        seed: int | Tensor | None = None,
        target_3dmm: Tensor | None = None,
        target_emotion: Tensor | None = None,
        target_available: Tensor | None = None,
        appropriate_emotion: Tensor | None = None,
        appropriate_available: Tensor | None = None,
        validate: bool = True,
    ) -> EMCOutput:
        """Draw `num_samples` reactions to each clip; with targets, also compute the losses.

        In training mode with targets EMC computes its three fusions and its own loss terms, and sends one fusion per clip on. In
        every other case it reacts to the streams as they are, and `losses` are the backbone's.

        Args:
            face: speaker's face, (B, T, face_dim) or images (B, T, 3, H, W); None = missing for the whole batch.
            speech: speaker's speech, (B, T, speech_dim); None likewise. Both None is an error.
            face_emotion: (B, T, 25); read in frames where the face is available. Without it speech's emotion serves everywhere.
            speech_emotion: (B, T, 10); read in frames where speech is available.
            face_available, speech_available: (B, T) bool; None = every frame. What stands in other frames does not matter.
            lengths: int64 (B,); frames from there on are neither attended nor counted.
            num_samples: reactions K per clip.
            seed: None (from torch's default generator), an int, or int64 (1,) or (B,). A clip's reaction is a function of its own
                seed: it does not depend on its batch mates, and draw k does not depend on K.
            target_3dmm: (B, T, 58), target_emotion: (B, T, 25): the listener's real reaction.
            target_available: (B, T) bool, frames of the target that count; None = all.
            appropriate_emotion: (B, T, J, 25), in training the reactions of J listeners that are appropriate for the speaker, for
                backbones that learn from them (REGNN); others do not look at them. None = the target is the only one.
            appropriate_available: (B, T, J) bool, where they are there; None = everywhere.
            validate: check contents too (host synchronisations); False for latency, CUDA graphs and torch.compile.

        Returns:
            `EMCOutput`.

        Raises:
            DataError: an input that cannot be used, by name, before any work.
        """
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples takes a positive integer; got {num_samples!r}")
        learn = self.training and target_3dmm is not None
        inputs = prepare(
            self.config, face=face, speech=speech, face_emotion=face_emotion, speech_emotion=speech_emotion,
            face_available=face_available, speech_available=speech_available, lengths=lengths, target_3dmm=target_3dmm,
            target_emotion=target_emotion, target_available=target_available, appropriate_emotion=appropriate_emotion,
            appropriate_available=appropriate_available, training=learn, validate=validate, dtype=next(self.parameters()).dtype,
        )  # fmt: skip
        self.backbone.check_frames(inputs.frames)
        target = None
        if inputs.target_3dmm is not None and inputs.target_emotion is not None:
            target = Reaction(inputs.target_3dmm, inputs.target_emotion)
        walk = Pass(self, inputs, num_samples, resolve_seed(seed, inputs.batch, inputs.device), learn=learn)
        result = walk.run(target)
        if validate:
            self.backbone.check_result()
        losses = None if target is None else self._losses(walk, result, target, learn)
        return EMCOutput(*result.reaction, tuple(step.distribution for step in result.steps), losses)

    def _losses(self, walk: Pass, result: Result, target: Reaction, learn: bool) -> dict[str, Tensor]:
        """Every term by name, and `total` (eq. 10): the backbone's loss, and in training EMC's terms by their weights."""
        terms = dict(result.terms)
        kl = terms.pop("segment_kl", None)
        mask = walk.inputs.target_mask
        own = None
        if learn:
            x = walk.inputs
            listeners = None
            if x.appropriate_emotion is not None and x.appropriate_mask is not None:
                listeners = Listeners(x.appropriate_emotion, x.appropriate_mask)
            own = self.backbone.training_loss(result.steps, target, mask=mask, listeners=listeners)
        if own is None:
            alternative = None
            if learn and self.backbone.alternative_weight > 0:
                with torch.no_grad():
                    alternative = walk.again().run(target).reaction
            own = self.backbone.loss(
                result.reaction, target, mask=mask, kl=kl, alternative=alternative,
                distributions=[step.distribution for step in result.steps], true_draw=result.true_draw,
            )  # fmt: skip
        total = own["backbone"]
        cfg = self.config
        for name, weight in (("align", cfg.l_align), ("cma_kl", cfg.l_kl), ("fusion", cfg.l_fusion)):
            if name in terms:
                total = total + weight * terms[name]
        return {"total": total, **own, **terms}

    def load_official_trans_vae(self, state_dict: Mapping[str, Tensor]) -> EMCModel:
        """Load the published weights of Trans-VAE (the `state_dict` of its checkpoint) into the backbone.

        Args:
            state_dict: tensors by the published names, of the offline or the online form as this model is, for image input. Read
                the file by `torch.load(path, weights_only=True)["state_dict"]`; nothing here unpickles.

        Returns:
            self. With EMC on, EMC's own modules keep their weights.

        Raises:
            CheckpointError: missing, unknown or misshapen tensors, by name.
        """
        load_checked(self.backbone, self.backbone.map_official(dict(state_dict)), "the published state dict")
        return self

    def load_official_regnn(self, state_dict: Mapping[str, Tensor]) -> EMCModel:
        """Load released weights of REGNN into the backbone, built with `face_dim=768` and `speech_dim=128`.

        Args:
            state_dict: tensors by the released names. The release pickles the whole module, which nothing here unpickles: the program
                that made it has to save its `state_dict()`.

        Returns:
            self. With EMC on, EMC's own modules keep their weights, and so does the head of 3DMM coefficients.

        Raises:
            CheckpointError: missing, unknown or misshapen tensors, by name.
        """
        load_checked(self.backbone, self.backbone.map_official(dict(state_dict)), "the published state dict")
        return self

    def load_official_faceais(self, *state_dicts: Mapping[str, Tensor]) -> EMCModel:
        """Load the published weights of FaceAIS into the backbone.

        Args:
            state_dicts: tensors by the published names: the predictor's checkpoint, which has the tokenizer in it, or one of each.
                `emc_fast.checkpoint.read_published` reads the files without unpickling. The published predictor has `d_model=360` and
                `num_heads=12`, and hears two 512-d wav2vec2 frames per video frame: `speech_dim=1024` and
                `backbone_options={"speech_factor": 2, "speaker": "past"}`.

        Returns:
            self. With EMC on, EMC's own modules keep their weights.

        Raises:
            CheckpointError: missing, unknown or misshapen tensors, by name.
        """
        merged = {name: tensor for state_dict in state_dicts for name, tensor in state_dict.items()}
        load_checked(self.backbone, self.backbone.map_official(merged), "the published state dict")
        return self
