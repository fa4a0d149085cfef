"""The features of many clips, in order, in one process or several, with a bar that shows the time left."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process, get_context

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import DataError
from .corpus import RoleClip
from .streams import FeatureOptions, Streams, read_streams


def progress_bar(console: Console | None = None, *, disable: bool = False) -> Progress:
    """The bar that every long job of the data commands shows."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        disable=disable,
    )


def extract_all(
    clips: Sequence[RoleClip],
    options: FeatureOptions,
    *,
    processes: int = 1,
    progress: bool = True,
    console: Console | None = None,
    title: str = "features",
) -> Iterator[tuple[RoleClip, Streams | str]]:
    """Yield each clip with its streams, or with the text of what is wrong with its files."""
    with progress_bar(console, disable=not progress) as bar:
        task = bar.add_task(title, total=len(clips))
        results = _serial(clips, options) if processes <= 1 or len(clips) < 2 else _parallel(clips, options, processes)
        for result in results:
            yield result
            bar.advance(task)


def refuse_in_unguarded_script() -> None:
    """Raise where a worker, importing the script that started it, has come to start workers itself.

    Python raises for this too, but only once it starts a process; by then the worker would wait for a lock that its parent holds.
    """
    if getattr(current_process(), "_inheriting", False):
        raise DataError("worker processes import the script that starts them; put its code under: if __name__ == '__main__':")


def _extract(clip: RoleClip, options: FeatureOptions) -> Streams | str:
    try:
        return read_streams(clip, options)
    except DataError as error:
        return str(error)


def _serial(clips: Sequence[RoleClip], options: FeatureOptions) -> Iterator[tuple[RoleClip, Streams | str]]:
    for clip in clips:
        yield clip, _extract(clip, options)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parallel(clips: Sequence[RoleClip], options: FeatureOptions, processes: int) -> Iterator[tuple[RoleClip, Streams | str]]:
    """Results in the order of ``clips``, whatever finishes first, so that a cache has the same bytes however it was built."""
    # Spawned, not forked: the parent may run threads (torch, progress bar) whose locks a fork would copy in any state.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    waiting: deque[tuple[RoleClip, Future[Streams | str]]] = deque()
    try:
        for clip in clips:
            waiting.append((clip, pool.submit(_extract, clip, options)))
            if len(waiting) >= 4 * processes:  # enough to keep them busy, few enough to hold in memory
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise DataError("a worker process ended by itself, perhaps for want of memory; use fewer processes") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
