"""Options of the backbones, plain data."""

from __future__ import annotations

from dataclasses import dataclass


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
