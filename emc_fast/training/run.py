"""A whole run: steps, epochs, validations and checkpoints until the end or a signal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..backbones import backbone_class
from .config import TrainConfig
from .order import StepSampler, training_loader
from .progress import Reporter
from .rundir import RunLog, RunPaths, create_run, describe_environment, open_run, record_environment
from .stopping import StopRequest
from .trainer import Trainer


@dataclass
class RunResult:
    """What a run has come to."""

    history: list[dict[str, Any]]
    """Per epoch: ``epoch``, ``step``, ``train`` and, where validated, ``validation``: means of the losses by name."""
    best: dict[str, Any] | None
    """``epoch``, ``step`` and ``loss`` of the lowest validation loss."""
    paths: RunPaths
    stopped_by: int | None = None
    """Number of the signal that ended the run early; None if it came to its end."""
    is_main_process: bool = True
    """Whether this is the process that writes; always so unless there are several."""


def train(config: TrainConfig, *, resume: bool = False) -> RunResult:
    """Train a model by ``config`` in the run directory ``config.out`` and return what came of it.

    ``resume=True`` goes on from the last checkpoint of that directory (or begins, if there is none yet); the result has the same weights
    as an uninterrupted run, bit for bit on a CPU with the same number of threads. SIGINT and SIGTERM end the run after the current step
    with a checkpoint. torch's random state is left as it was found.

    The stages that the backbone has before its own training are trained first, each in a run of its own under ``config.out/stages``; a
    signal or a crash in one of them ends the whole, and resuming goes on there. The result is that of the model's own run.

    Raises FileExistsError for a run directory that is not empty without ``resume``, `CheckpointError` for one with other settings,
    `DataError` for a corpus that cannot be used, `DivergenceError` when a loss is NaN or infinite.
    """
    stages = backbone_class(config.model.backbone).stages if config.stage is None else ()
    untrained = [stage for stage in stages if not isinstance(config.stages.get(stage), str)]
    if not untrained:
        return _run(config, resume=resume)
    paths = open_run(config, resume=resume, processes=int(os.environ.get("WORLD_SIZE", "1")))
    if not (paths.last.exists() and resume):
        for stage in untrained:
            part = config.of_stage(stage)
            result = _run(part, resume=Path(part.out).exists(), whole=(paths, config))
            if result.stopped_by is not None:
                return RunResult([], None, paths, result.stopped_by, result.is_main_process)
    return _run(config, resume=True)


def _run(config: TrainConfig, *, resume: bool, whole: tuple[RunPaths, TrainConfig] | None = None) -> RunResult:
    """One run directory from its beginning or last checkpoint to its end or a signal; ``whole`` is the run that it is a stage of."""
    with torch.random.fork_rng():
        trainer = Trainer(config, resume=resume)
        log = None
        if trainer.main:
            if whole is not None:
                create_run(*whole)
            create_run(trainer.paths, config)
            environment = describe_environment(device=str(trainer.device), processes=trainer.processes, seed=config.seed)
            record_environment(trainer.paths, environment, step=trainer.step)
            log = RunLog(trainer.paths, step=trainer.step)
        try:
            with StopRequest() as stop, Reporter(_title(trainer), trainer.steps, done=trainer.step, shown=trainer.main) as reporter:
                reporter.say(_opening(trainer))
                _loop(trainer, stop, reporter, log)
        finally:
            if log is not None:
                log.close()
            trainer.close()
    finished = trainer.step == trainer.steps and trainer.epoch_closed
    return RunResult(trainer.history, trainer.best, trainer.paths, None if finished else stop.signal, trainer.main)


def _loop(trainer: Trainer, stop: StopRequest, reporter: Reporter, log: RunLog | None) -> None:
    config = trainer.config
    if not trainer.epoch_closed:  # the run was stopped on the last step of an epoch
        _end_epoch(trainer, reporter, log)
    sampler = StepSampler(
        len(trainer.corpus),
        batch=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        first=trainer.step,
        rank=trainer.rank,
        processes=trainer.processes,
    )
    for batch in training_loader(trainer.corpus, sampler, workers=config.workers, pin_memory=trainer.device.type == "cuda"):
        trainer.advance(batch)
        # Several processes must stop at the same step: they agree when they exchange their losses anyway.
        asked = stop.asked and trainer.processes == 1
        if trainer.step % config.log_every == 0:
            asked = trainer.flush(stop=stop.asked) or asked
            means = trainer.window_means.take()
            if log is not None:
                log.write("train", step=trainer.step, epoch=trainer.epoch, **means)
            reporter.advance(0, loss=means["total"])
        reporter.advance(title=_title(trainer))
        if asked:
            reporter.say(f"stopping after step {trainer.step}: saving {trainer.paths.last}")
            trainer.save(trainer.paths.last)
            return
        if trainer.step % trainer.per_epoch == 0:
            _end_epoch(trainer, reporter, log)
        elif config.checkpoint_every and trainer.step % config.checkpoint_every == 0:
            trainer.save(trainer.paths.last)


def _end_epoch(trainer: Trainer, reporter: Reporter, log: RunLog | None) -> None:
    record = trainer.end_epoch()
    text = f"epoch {record['epoch']}: loss {record['train']['total']:.5g}"
    if "validation" in record:
        if log is not None:
            log.write("validation", step=record["step"], epoch=record["epoch"], **record["validation"])
        best = trainer.best is not None and trainer.best["step"] == record["step"]
        text += f", validation {record['validation']['total']:.5g}{' (best)' if best else ''}"
    reporter.say(text)


def _title(trainer: Trainer) -> str:
    stage = f"{trainer.config.stage}, " if trainer.config.stage else ""
    return f"{stage}epoch {trainer.epoch}/{trainer.config.epochs}"


def _opening(trainer: Trainer) -> str:
    begun = f"resuming at step {trainer.step}" if trainer.resumed else "training"
    size = f"{len(trainer.corpus)} clips, {trainer.per_epoch} steps per epoch, {trainer.config.epochs} epochs"
    where = f"{trainer.device}{f', {trainer.processes} processes' if trainer.processes > 1 else ''}"
    return f"{begun}: {size}, {where}, {trainer.paths.run}"
