"""Backbones that EMC can be put into, by name."""

from .options import FaceAISOptions, NoOptions, REGNNOptions, TransVAEOptions
from .registry import BACKBONES, backbone_class, build_backbone, check_options, register_backbone, use_backbone

__all__ = [
    "BACKBONES",
    "FaceAISOptions",
    "NoOptions",
    "REGNNOptions",
    "TransVAEOptions",
    "backbone_class",
    "build_backbone",
    "check_options",
    "register_backbone",
    "use_backbone",
]
