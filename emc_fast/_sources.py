"""Which native sources a library was built from: imports nothing heavy, because setup.py uses it too."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def digest() -> str:
    """Short digest of everything under csrc, or ``""`` where there is no source tree beside the package."""
    files = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".cu", ".cuh", ".in"))
    if not files:
        return ""
    found = hashlib.sha256()
    for path in files:
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
