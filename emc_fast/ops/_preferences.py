"""Which of two back ends is taken where both can serve: by the table of what was measured, or by the stated fallback.

The table (``_preferences.json``) is written by ``bench/preferences.py`` from races on a GPU (``bench/gpu_cases.py``). It knows the
operator, the compute capability and the dtype, and no sizes: the choice must be a constant under ``torch.compile``, and a clip must not
get other bits because more clips stand beside it.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch

#: Order of preference per device type where nothing was measured. Everything else is served by the reference.
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
FALLBACK = "not measured: CUDA C++ where both can serve"
TABLE = Path(__file__).with_name("_preferences.json")


@dataclass(frozen=True)
class Measurement:
    """One line of the table: the back end to prefer, and what says so.

    ``times`` is how many times as fast it was as the other one, the geometric mean over ``races`` (sizes and directions).
    """

    operator: str
    capability: int
    dtype: str
    backend: str
    times: float
    races: int
    device: str
    versions: str

    def __str__(self) -> str:
        other = "cuda" if self.backend == "triton" else "triton"
        return f"measured on {self.device}: {self.times:.2f} times as fast as {other} over {self.races} races ({self.versions})"


def read(path: Path = TABLE) -> dict[tuple[str, int, str], Measurement]:
    """The table, by operator, capability and dtype."""
    names = [field.name for field in fields(Measurement)]
    rows = [Measurement(**{name: row[name] for name in names}) for row in json.loads(path.read_text())["measurements"]]
    for row in rows:
        if row.backend not in PREFERENCE["cuda"][:-1]:
            raise ValueError(f"{path.name} prefers {row.backend!r} for {row.operator}; a preference is one of {PREFERENCE['cuda'][:-1]}")
    return {(row.operator, row.capability, row.dtype): row for row in rows}


measurements = functools.cache(read)


@functools.cache
def capability(index: int | None) -> int:
    """Compute capability of a CUDA device as a number (80, 90); 0 where torch sees none, and on AMD."""
    if torch.version.hip or not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def preferred(operator: str, device: str, index: int | None, dtype: torch.dtype) -> tuple[tuple[str, ...], str]:
    """Back ends for ``operator`` on that device in the order of preference, and where the order of the first two comes from."""
    order = PREFERENCE.get(device, ("reference",))
    if device != "cuda":
        return order, ""
    found = measurements().get((operator, capability(index), str(dtype).removeprefix("torch.")))
    if found is None:
        return order, FALLBACK
    return (found.backend, *(backend for backend in order if backend != found.backend)), str(found)
