"""Backbones that EMC can be put into, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .options import FaceAISOptions, REGNNOptions, TransVAEOptions

if TYPE_CHECKING:
    from ..config import EMCConfig
    from .base import Backbone

BACKBONES: dict[str, tuple[type, str]] = {
    "faceais": (FaceAISOptions, "emc_fast.backbones.faceais:FaceAIS"),
    "regnn": (REGNNOptions, "emc_fast.backbones.regnn:REGNN"),
    "trans_vae": (TransVAEOptions, "emc_fast.backbones.trans_vae:TransVAE"),
}
"""Backbones by name: the dataclass of their options, and where their module is, as "module:class".

A configuration is checked without building, or even importing, the module. A backbone from elsewhere adds its own entry.
"""


def check_options(name: str, options: Mapping[str, Any]) -> Any:
    """The options of backbone `name` as their dataclass; ValueError for an unknown backbone, option or value."""
    if name not in BACKBONES:
        raise ValueError(f"EMCConfig.backbone takes one of {', '.join(sorted(BACKBONES))}; got {name!r}")
    kind = BACKBONES[name][0]
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"backbone_options of {name} are {', '.join(known)}; got {', '.join(unknown)}")
    return kind(**options)


def backbone_class(name: str) -> type[Backbone]:
    """The class of a registered backbone, imported."""
    module, _, attribute = BACKBONES[name][1].partition(":")
    return getattr(import_module(module), attribute)


def build_backbone(config: EMCConfig) -> Backbone:
    """The backbone that a configuration asks for."""
    return backbone_class(config.backbone)(config, check_options(config.backbone, config.backbone_options))


__all__ = ["BACKBONES", "FaceAISOptions", "REGNNOptions", "TransVAEOptions", "backbone_class", "build_backbone", "check_options"]
