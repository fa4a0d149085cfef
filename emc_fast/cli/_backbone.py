"""A backbone named on the command line, which may be the user's own."""

from __future__ import annotations

import os
import sys


def chosen_backbone(name: str) -> str:
    """The registered name of ``--backbone``: for ``package.module:Class`` that is imported, from the current directory too.

    ValueError: there is no such module or class, or no backbone of that name.
    """
    from ..backbones import use_backbone

    if ":" in name and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the last place: a file here does not stand in for an installed module
    return use_backbone(name)
