"""The form of the files that hold measurements: JSON, an entry to a line, so that a change shows in the diff."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def text_of(rows: Iterable[dict[str, Any]]) -> str:
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    return f'{{\n  "measurements": [\n{lines}\n  ]\n}}\n' if lines else '{\n  "measurements": []\n}\n'
