"""The REACT challenge's measures of facial reactions, exact and fast.

Every measure takes NumPy arrays (memory-mapped ones too) or tensors, and ``protocol="official"`` for the figure that the
published code prints, quirks included, or ``protocol="fixed"`` for the same measure with its defects mended. docs/metrics.md
explains each measure and each quirk.
"""

from .diversity import frdiv, frdvs, frvar
from .frcorr import frcorr
from .frdist import frdist
from .frsyn import frsyn

__all__ = ["frcorr", "frdist", "frdiv", "frdvs", "frsyn", "frvar"]
