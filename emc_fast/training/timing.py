"""How long an epoch takes on this machine: for plans that have to fit into a time."""

from __future__ import annotations

import itertools
import statistics
import time

import torch

from .config import TrainConfig
from .order import StepSampler, training_loader
from .trainer import Trainer

STEPS = 6
"""Steps that are timed, after one that is not: the first compiles and allocates."""


def epoch_seconds(config: TrainConfig) -> float:
    """Return about how many seconds one epoch of a run takes: its steps, and its share of the validations and checkpoints.

    Nothing of the run is kept but what its corpus caches. ``config.out`` names a directory that does not exist yet.
    """
    with torch.random.fork_rng():
        trainer = Trainer(config)
        try:
            sampler = StepSampler(len(trainer.corpus), batch=config.batch_size, epochs=STEPS + 1, seed=config.seed)
            times = [time.perf_counter()]
            for batch in training_loader(trainer.corpus, sampler, workers=0, pin_memory=False):
                trainer.advance(batch)
                trainer.flush()
                times.append(time.perf_counter())
                if len(times) > STEPS + 1:
                    break
            step = statistics.median(b - a for a, b in itertools.pairwise(times[1:]))
            begun = time.perf_counter()
            trainer.validate()
            validation = time.perf_counter() - begun
            trainer.save(trainer.paths.last)
            saving = time.perf_counter() - begun - validation
        finally:
            trainer.close()
    return step * trainer.per_epoch + saving + (validation + saving) / config.validate_every
