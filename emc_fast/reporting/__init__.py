"""What the benchmarks say: their files read, compared and turned into tables, pages and plots; and where a step spends its time."""

from .comparison import Verdict, compare
from .page import insert, page, summary
from .races import OURS, Race, Run, merge, read_run, read_runs

__all__ = ["OURS", "Race", "Run", "Verdict", "compare", "insert", "merge", "page", "read_run", "read_runs", "summary"]
