"""Which clips make up which step: a pure function of (seed, step), the same for any number of processes and any point of resuming."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data import collate
from .seeds import ORDER, derive


def steps_per_epoch(clips: int, batch: int) -> int:
    """Return the number of steps in which every clip is seen at least once; ``batch`` counts the clips of all processes."""
    return -(-clips // batch)


def epoch_order(clips: int, batch: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the clips of one epoch, int64 (steps, batch).

    A permutation of range(clips); the last step is filled up from the permutation's start, so that every step has the same size
    and the gradient of a step never depends on how it is cut among processes.
    """
    order = np.random.Generator(np.random.Philox(key=derive(seed, ORDER, epoch))).permutation(clips)
    return np.resize(order, (steps_per_epoch(clips, batch), batch))


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields for each step from ``first`` to the end of the run this process's share, as (epoch, clip) pairs.

    One sampler serves the whole run: resuming in the middle of an epoch starts at that step and reads nothing that comes before it.
    """

    def __init__(self, clips: int, *, batch: int, epochs: int, seed: int, first: int = 0, rank: int = 0, processes: int = 1) -> None:
        self.clips, self.batch, self.epochs, self.seed, self.first = clips, batch, epochs, seed, first
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return steps_per_epoch(self.clips, self.batch * self.processes) * self.epochs - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        whole = self.batch * self.processes
        per_epoch = steps_per_epoch(self.clips, whole)
        mine = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        for epoch in range(self.first // per_epoch, self.epochs):
            order = epoch_order(self.clips, whole, seed=self.seed, epoch=epoch)
            for step in range(max(self.first - epoch * per_epoch, 0), per_epoch):
                yield [(epoch, int(clip)) for clip in order[step, mine]]


class EpochView(Dataset[dict[str, Any]]):
    """A corpus asked by (epoch, clip), so that worker processes, which hold copies of it, follow the epoch too."""

    def __init__(self, corpus: Any) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, clip = key
        return self.corpus.at(clip, epoch=epoch)


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C, `timeout` and batch systems signal every process of a run; only the trainer acts on it, and saves with its workers alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    """A SIGTERM of the trainer itself is its way to be rid of a worker."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def training_loader(corpus: Any, sampler: StepSampler, *, workers: int, pin_memory: bool) -> DataLoader:
    """Return the loader of the whole rest of a run; batches as `emc_fast.data.collate` makes them."""
    return DataLoader(
        EpochView(corpus),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )


def evaluation_batches(corpus: Any, *, batch: int, rank: int = 0, processes: int = 1) -> Iterator[dict[str, Any]]:
    """Yield every ``processes``-th batch of a corpus in its own order; the last one may be smaller."""
    for start in range(rank * batch, len(corpus), batch * processes):
        yield collate([corpus[clip] for clip in range(start, min(start + batch, len(corpus)))])
