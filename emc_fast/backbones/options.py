"""Options of the backbones, plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import REACTION_EMOTION_DIM


@dataclass(frozen=True)
class NoOptions:
    """Of a backbone that has none."""


@dataclass(frozen=True)
class TransVAEOptions:
    """Options of Trans-VAE.

    Attributes:
        online: produce the reaction window by window, each from all frames so far and the reaction so far.
        window: frames per window, online; may be changed on a built model (`model.backbone.window`), as the published recipe does
            between training (16) and validation (8).
        kl_p: weight of the latent's KL.
        div_p: weight of the diversity term; 0 saves the second pass that it needs.
        pose_weight: weight of rotation and translation (3DMM 52 to 57) in the reconstruction.
        logvar_offset: added to the log-variance of z, which comes out of a LayerNorm: as published (0) z begins with a standard
            deviation near 1 in every dimension, as large as all that it says of the speaker; -4 begins at 0.14.
        zero_start: begin with a 3DMM head of zeros, the mean face, instead of random faces that the first steps have to undo.
        memory: what the decoder reads of the sequence that S-EA gives. `frame`: frame t reads frame t, as every frame of the published
            decoder reads the one token that stands for the clip; `all`: attention over all frames, which has to learn which
            frame is which before it learns anything else.
    """

    online: bool = False
    window: int = 8
    kl_p: float = 1e-5
    div_p: float = 10.0
    pose_weight: float = 10.0
    logvar_offset: float = 0.0
    zero_start: bool = False
    memory: str = "frame"

    def __post_init__(self) -> None:
        for name in ("online", "zero_start"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"backbone_options[{name!r}] takes True or False; got {getattr(self, name)!r}")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"backbone_options['window'] takes a positive integer; got {self.window!r}")
        if self.memory not in ("frame", "all"):
            raise ValueError(f"backbone_options['memory'] takes 'frame' or 'all'; got {self.memory!r}")
        for name in ("kl_p", "div_p", "pose_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"backbone_options[{name!r}] takes a finite number that is not negative; got {value!r}")
            object.__setattr__(self, name, float(value))
        offset = self.logvar_offset
        if isinstance(offset, bool) or not isinstance(offset, int | float) or not -20 <= offset <= 20:
            raise ValueError(f"backbone_options['logvar_offset'] takes a number from -20 to 20; got {offset!r}")
        object.__setattr__(self, "logvar_offset", float(offset))


@dataclass(frozen=True)
class FaceAISOptions:
    """Options of FaceAIS; its width and heads are `EMCConfig.d_model` and `num_heads` (published: 360 and 12).

    Attributes:
        layers: of each of the predictor's six stacks.
        context: frames that a patch is predicted from, a multiple of `block`.
        block: frames that the tokenizer reads together and the predictor predicts together.
        vocabulary: rows of the embeddings and of the head, beside PAD and MASK; at least as many as there are codes.
        speech_factor: sub-frames that stand side by side in a frame of speech, of which the largest value counts (wav2vec2 at 50 Hz: 2
            of 512 values, so that `speech_dim` is 1024).
        speaker: how much of the speaker a patch is predicted from: all to the end of the `patch`, as an offline task has it, or the `past`
            before it, as the published predictor was trained (the first patch, before which nothing is, then sees its own frames).
        cross_reads: which layers of a cross-modal stack read the other stream: the `first` only, as in the published code, or `all`.
        gate_start: where the gates begin through which they take it in; published: 0, closed. For short trainings.
        past_mask_p: probability, in training, that of the listener's past only a random number of the last frames is shown.
        top_k: only the so many likeliest tokens are drawn from; None = all.
        temperature: of drawing.
        reconstruction: weight of the L1 error of the reaction beside the cross-entropy, with EMC's S-EA, which learns from nothing
            else. Without S-EA the loss is the cross-entropy alone.
        tokenizer_width, tokenizer_heads, tokenizer_layers: of the tokenizer; `tokenizer_layers` of each of its three stacks.
        levels: of its codes.
    """

    layers: int = 8
    context: int = 256
    block: int = 32
    vocabulary: int = 2048
    speech_factor: int = 1
    speaker: str = "patch"
    cross_reads: str = "first"
    gate_start: float = 0.0
    past_mask_p: float = 0.5
    top_k: int | None = 512
    temperature: float = 1.0
    reconstruction: float = 1.0
    tokenizer_width: int = 252
    tokenizer_heads: int = 12
    tokenizer_layers: int = 12
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        for name in ("layers", "context", "block", "vocabulary", "speech_factor", "top_k",
                     "tokenizer_width", "tokenizer_heads", "tokenizer_layers"):  # fmt: skip
            value = getattr(self, name)
            if value is None and name == "top_k":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"backbone_options[{name!r}] takes a positive integer; got {value!r}")
        if self.layers > 128:
            raise ValueError(f"backbone_options['layers'] takes at most 128; got {self.layers}")
        if not isinstance(self.levels, list | tuple) or not self.levels or any(type(n) is not int or n < 2 for n in self.levels):
            raise ValueError(f"backbone_options['levels'] takes integers of at least 2; got {self.levels!r}")
        object.__setattr__(self, "levels", tuple(self.levels))
        for name, most in (("past_mask_p", 1.0), ("temperature", math.inf), ("reconstruction", math.inf), ("gate_start", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value == math.inf:
                raise ValueError(f"backbone_options[{name!r}] takes a number from 0 to {most:g}; got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.temperature == 0:
            raise ValueError("backbone_options['temperature'] must be positive; for the likeliest token take top_k=1")
        for name, words in (("speaker", ("patch", "past")), ("cross_reads", ("first", "all"))):
            if getattr(self, name) not in words:
                raise ValueError(f"backbone_options[{name!r}] takes {' or '.join(map(repr, words))}; got {getattr(self, name)!r}")
        if self.context % self.block:
            raise ValueError(f"backbone_options['context'] must be a multiple of block; got {self.context} and {self.block}")
        if self.tokenizer_width % self.tokenizer_heads:
            raise ValueError(f"tokenizer_heads must divide tokenizer_width; got {self.tokenizer_heads} and {self.tokenizer_width}")
        if math.prod(self.levels) > self.vocabulary:
            raise ValueError(f"levels {self.levels} make {math.prod(self.levels)} codes, more than a vocabulary of {self.vocabulary}")


@dataclass(frozen=True)
class REGNNOptions:
    """Options of REGNN; the defaults are the released ones.

    Attributes:
        window: frames of a window, the width of a graph node.
        stride: frames from one window to the next; where windows overlap their mean is taken.
        perceptual_layers: layers of the cross-modal transformer, and again of the transformer after it.
        layers: layers of the motor processor.
        channels: kinds of edges.
        neighbours: edges that a node keeps besides the one to itself.
        mask: which those are. `union`, as released: to every node that is among the strongest of any; `row`: each to its own strongest.
        listeners: appropriate reactions that a clip is compared with in a step of training, at most.
        mid_p: weight of the distance of a clip's listeners from their mean.
        coefficient_p: weight of the error of the 3DMM head.
        threshold_share: distances below this share of the last epoch's mean count as 0; 0 counts all.
        noise: square of the largest element of the noise that is added to a window's graph.
        embedding_dropout: on what enters each transformer, in training.
        inverse_iterations: iterations of each layer's inverse.
        inverse_tolerance: what the last one may still change.
    """

    window: int = 50
    stride: int = 25
    perceptual_layers: int = 5
    layers: int = 2
    channels: int = 8
    neighbours: int = 5
    mask: str = "union"
    listeners: int = 10
    mid_p: float = 1.0
    coefficient_p: float = 1.0
    threshold_share: float = 1 / 3
    noise: float = 0.06
    embedding_dropout: float = 0.25
    inverse_iterations: int = 5
    inverse_tolerance: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("window", "stride", "perceptual_layers", "layers", "channels", "neighbours", "listeners", "inverse_iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"backbone_options[{name!r}] takes a positive integer; got {value!r}")
        if self.stride > self.window:
            raise ValueError(f"backbone_options['stride'] takes at most the window of {self.window} frames; got {self.stride}")
        if self.perceptual_layers > 15:
            raise ValueError(f"backbone_options['perceptual_layers'] takes at most 15; got {self.perceptual_layers}")
        if self.neighbours > REACTION_EMOTION_DIM:
            raise ValueError(f"backbone_options['neighbours'] takes at most the {REACTION_EMOTION_DIM} nodes; got {self.neighbours}")
        if self.mask not in ("union", "row"):
            raise ValueError(f"backbone_options['mask'] takes 'union' or 'row'; got {self.mask!r}")
        for name in ("mid_p", "coefficient_p", "threshold_share", "noise", "embedding_dropout", "inverse_tolerance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"backbone_options[{name!r}] takes a finite number that is not negative; got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.embedding_dropout >= 1:
            raise ValueError(f"backbone_options['embedding_dropout'] takes a probability below 1; got {self.embedding_dropout!r}")
