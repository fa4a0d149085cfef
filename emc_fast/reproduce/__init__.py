"""The paper's table, trained and measured anew: which models, for how long, and what came of it (see docs/reproduce.md)."""

from __future__ import annotations

from .paper import BACKBONES, PAPER, ROWS, Row
from .plan import Plan, make_plan
from .report import directions, markdown, number, save_plots
from .table1 import Measured, reproduce_table1

__all__ = [
    "BACKBONES",
    "PAPER",
    "ROWS",
    "Measured",
    "Plan",
    "Row",
    "directions",
    "make_plan",
    "markdown",
    "number",
    "reproduce_table1",
    "save_plots",
]
