"""Backbones by name: those of the package, and those that users bring along."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import isabstract
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .options import FaceAISOptions, REGNNOptions, TransVAEOptions

if TYPE_CHECKING:
    from ..config import EMCConfig
    from .base import Backbone

Kind = TypeVar("Kind", bound="type[Backbone]")

BACKBONES: dict[str, tuple[type, str | type[Backbone]]] = {
    "faceais": (FaceAISOptions, "emc_fast.backbones.faceais:FaceAIS"),
    "regnn": (REGNNOptions, "emc_fast.backbones.regnn:REGNN"),
    "trans_vae": (TransVAEOptions, "emc_fast.backbones.trans_vae:TransVAE"),
}
"""Backbones by name: the dataclass of their options, and the class or where it is, as "module:class".

A configuration is checked without building, or even importing, the module. `register_backbone` and `use_backbone` add entries.
"""


def check_options(name: str, options: Mapping[str, Any]) -> Any:
    """The options of backbone `name` as their dataclass; ValueError for an unknown backbone, option or value."""
    if name not in BACKBONES:
        raise ValueError(_unknown(name))
    kind = BACKBONES[name][0]
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"backbone_options of {name} are {', '.join(known) or 'none'}; got {', '.join(unknown)}")
    return kind(**options)


def _unknown(name: str) -> str:
    if ":" in str(name):
        return (
            f"the backbone {name!r} is no part of this package, and nothing is imported because a configuration or checkpoint names it. "
            f"If you trust that module, import it first: emc_fast.backbones.use_backbone({name!r}) in Python, --backbone {name} on the "
            "command line"
        )
    return (
        f"EMCConfig.backbone takes one of {', '.join(sorted(BACKBONES))}; got {name!r}. A backbone of your own has to be registered first: "
        "import the module that does so, or name its class, emc_fast.backbones.use_backbone('package.module:Class') in Python, "
        "--backbone package.module:Class on the command line"
    )


def backbone_class(name: str) -> type[Backbone]:
    """The class of a registered backbone, imported."""
    where = BACKBONES[name][1]
    if not isinstance(where, str):
        return where
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


def build_backbone(config: EMCConfig) -> Backbone:
    """The backbone that a configuration asks for."""
    return backbone_class(config.backbone)(config, check_options(config.backbone, config.backbone_options))


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


@overload
def register_backbone(kind: Kind) -> Kind: ...
@overload
def register_backbone(*, name: str) -> Callable[[Kind], Kind]: ...
def register_backbone(kind: Any = None, *, name: str | None = None) -> Any:
    """Make a backbone of your own known; a decorator, ``@register_backbone`` or ``@register_backbone(name="mine")``.

    Its name in `EMCConfig`, and so in every checkpoint, is ``package.module:Class``, from which a reader of the checkpoint sees what to
    import, or `name`. Registering the same class again (a module that was reloaded) replaces it.

    Args:
        kind: a subclass of `Backbone` without abstract methods, with a dataclass as `options_type` (of JSON values).
        name: another name, without a colon; needed for a class of a script or notebook, which nobody can import.

    Raises:
        TypeError: the class is no such thing.
        ValueError: the name is taken, or is needed.
    """
    if kind is None:
        return lambda later: _register(later, name)
    return _register(kind, name)


def _register(kind: Any, name: str | None) -> Any:
    from .base import Backbone

    if not isinstance(kind, type) or not issubclass(kind, Backbone):
        raise TypeError(f"register_backbone takes a subclass of emc_fast.backbones.base.Backbone; got {kind!r}")
    if isabstract(kind):
        raise TypeError(f"{kind.__qualname__} lacks {', '.join(sorted(kind.__abstractmethods__))}; a backbone has all abstract methods")
    if not is_dataclass(kind.options_type):
        raise TypeError(f"{kind.__qualname__}.options_type takes a dataclass; got {kind.options_type!r}")
    if name is None:
        name = _path(kind)
        if kind.__module__ == "__main__" or "<locals>" in name:
            raise ValueError(f"{name} cannot be imported under this path from elsewhere: give it a name, register_backbone(name=...)")
    elif not name or ":" in name:
        raise ValueError(f"register_backbone takes a name without a colon; got {name!r}")
    if name in BACKBONES:
        where = BACKBONES[name][1]
        taken = where if isinstance(where, str) else _path(where)
        if taken != _path(kind):
            raise ValueError(f"the name {name!r} is taken by {taken}; give {_path(kind)} another")
    BACKBONES[name] = (kind.options_type, kind)
    return kind


def use_backbone(name: str) -> str:
    """Import the backbone at ``package.module:Class``, register it, and return the name that `EMCConfig` takes.

    A name that is registered is returned as it is. This is the one function of the package that imports what it is given: it runs the
    module, so give it only what you trust. Whatever the import raises comes through.

    Args:
        name: a registered name, or the path of a class.

    Raises:
        ValueError: no such name, module or class.
        TypeError: as `register_backbone`.
    """
    if name in BACKBONES:
        return name
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(_unknown(name))
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the module is there; it lacks something itself
        raise ValueError(f"the backbone {name!r}: there is no module {error.name!r} in {', '.join(sys.path) or 'an empty path'}") from None
    kind: Any = found
    for part in attribute.split("."):
        if not hasattr(kind, part):
            raise ValueError(f"the backbone {name!r}: {found.__name__} has no {attribute!r}")
        kind = getattr(kind, part)
    for known, (_, where) in BACKBONES.items():
        if where is kind or where == name:
            return known  # the module has registered it itself, perhaps by another name
    register_backbone(kind)
    return _path(kind)


__all__ = ["BACKBONES", "backbone_class", "build_backbone", "check_options", "register_backbone", "use_backbone"]
