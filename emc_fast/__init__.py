"""emc_fast: emotion-aware facial reactions that survive a missing modality, on fused kernels.

The public names are loaded on first use, so that ``import emc_fast`` costs next to nothing beyond torch itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .config import EMCConfig
    from .model import EMCModel, EMCOutput

__all__ = ["EMCConfig", "EMCModel", "EMCOutput", "__version__"]

_HOME = {"EMCConfig": ".config", "EMCModel": ".model", "EMCOutput": ".model"}
_MODULES = {"backbones", "config", "data", "errors", "losses", "metrics", "model", "nn", "ops", "training", "viewer"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
