"""A recogniser that ends its process; in a file of its own so that the worker which unpickles it starts fast."""

from __future__ import annotations

import os


class Killer:
    cache_name = "killer"

    def __call__(self, waveform, sample_rate, *, fps):
        os._exit(1)
