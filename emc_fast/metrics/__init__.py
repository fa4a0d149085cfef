"""The REACT challenge's measures of facial reactions, exact and fast.

Every measure takes NumPy arrays (memory-mapped ones too) or tensors, and ``protocol="official"`` for the figure that the
published code prints, quirks included, or ``protocol="fixed"`` for the same measure with its defects mended. docs/metrics.md
explains each measure and each quirk.
"""

from .diversity import frdiv, frdvs, frvar
from .evaluation import evaluate, measure_clips
from .frcorr import frcorr
from .frdist import frdist
from .frsyn import frsyn
from .lists import ListTable, evaluate_lists, measure_lists
from .table import ClipTable, bootstrap_interval

__all__ = [
    "ClipTable",
    "ListTable",
    "bootstrap_interval",
    "evaluate",
    "evaluate_lists",
    "frcorr",
    "frdist",
    "frdiv",
    "frdvs",
    "frsyn",
    "frvar",
    "measure_clips",
    "measure_lists",
]
