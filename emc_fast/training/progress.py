"""Progress for people: bars with the time left on a terminal, one plain line at a time elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Reporter:
    """One counted job with named values beside it; silent where ``shown`` is False (every process but the first)."""

    def __init__(self, title: str, total: int, *, done: int = 0, unit: str = "steps", shown: bool = True, every: float = 10.0) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.first = self.done = done
        self.note = ""
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if self.console.is_terminal and shown:
            self.bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )

    def __enter__(self) -> Reporter:
        self.began = self.told = time.monotonic()
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, count: int = 1, *, title: str | None = None, **values: float) -> None:
        """Count ``count`` more as done; ``values`` are shown until the next ones come."""
        self.done += count
        if title is not None:
            self.title = title
        if values:
            self.note = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=self.title, note=self.note)
            return
        now = time.monotonic()
        if count and (now - self.told >= self.every or self.done == self.total):
            self.told = now
            left = (now - self.began) / max(self.done - self.first, 1) * (self.total - self.done)
            progress = f"{self.done}/{self.total} {self.unit}"
            self.console.print(f"{self.title}: {progress}, {clock(now - self.began)}, left {clock(left)}  {self.note}".rstrip())

    def say(self, text: str) -> None:
        """Print a line that stays."""
        (self.bar.console if self.bar is not None else self.console).print(text, markup=False)
