"""Looking at reactions: one self-contained HTML page with animated faces, heat strips and valence-arousal curves.

:func:`write_html` takes arrays; :func:`load_clip` reads one clip of what ``emc-fast generate`` wrote, with its speaker, and
:func:`write_clip` writes its page.
"""

from __future__ import annotations

from .source import Clip, load_clip
from .writer import write_clip, write_html

__all__ = ["Clip", "load_clip", "write_clip", "write_html"]
