"""Training: one loop for one process or many, which can stop anywhere and go on as if it had not."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ..backbones.base import Reaction
from ..data import REACTDataset
from ..errors import CheckpointError, DataError, EmcError
from ..losses import counts_of_all_processes
from ..model import EMCModel
from .checkpoint import (
    OPTIMIZER_FILE,
    PREPROCESSING_FILE,
    STATE_FILE,
    load_optimizer,
    read_json,
    save_optimizer,
    whole_directory,
    write_json,
)
from .config import TrainConfig
from .loading import load_model, load_stage
from .order import evaluation_batches, steps_per_epoch
from .rundir import open_run
from .seeds import INIT, TORCH, TRAIN, VALIDATE, clip_seeds, derive_signed

_INPUTS = (
    "face",
    "speech",
    "face_emotion",
    "speech_emotion",
    "face_available",
    "speech_available",
    "lengths",
    "target_3dmm",
    "target_emotion",
    "target_available",
    "appropriate_emotion",
    "appropriate_available",
)


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the model takes."""
    return {name: batch[name] for name in _INPUTS if name in batch}


class DivergenceError(EmcError, ArithmeticError):
    """The loss or the weights are no longer finite numbers."""


@dataclass
class Means:
    """Running means of named numbers, exact in JSON."""

    count: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float], weight: float = 1.0) -> None:
        """Count ``values`` with a weight."""
        self.count += weight
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * value

    def take(self) -> dict[str, float]:
        """Return the means and begin again."""
        means = {name: total / self.count for name, total in self.sums.items()} if self.count else {}
        self.count, self.sums = 0.0, {}
        return means


class Objective(nn.Module):
    """The model as a function from a batch to its losses; what accelerate wraps, so that nothing but the loss leaves the wrapper."""

    def __init__(self, model: EMCModel, stage: str | None = None) -> None:
        super().__init__()
        self.model, self.stage = model, stage

    def losses(self, batch: dict[str, Any], seeds: Tensor, *, progress: float, validate: bool) -> dict[str, Tensor]:
        """Return every term by name, with ``total``; ``progress`` is the share of the epochs that is done."""
        if self.stage is None:
            return self.model(**_inputs(batch), seed=seeds, validate=validate).losses
        known = batch["target_available"] & (
            torch.arange(batch["target_available"].shape[1], device=seeds.device) < batch["lengths"][:, None]
        )
        target = Reaction(*(torch.where(known[..., None], batch[name], 0) for name in ("target_3dmm", "target_emotion")))
        return self.model.backbone.stage_loss(self.stage, target, mask=known, progress=progress, seed=seeds if self.training else None)

    def forward(self, batch: dict[str, Any], seeds: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, a scalar with its graph, and all terms by name, detached."""
        # The corpus gives finite values only; to look again would make the host wait for the device in every step.
        losses = self.losses(batch, seeds, progress=progress, validate=False)
        return losses["total"], {name: value.detach().float() for name, value in losses.items()}


def open_corpora(config: TrainConfig) -> tuple[REACTDataset, REACTDataset]:
    """Return the train and validation splits as ``config`` asks for them, relative to the same mean face."""
    common: dict[str, Any] = {"mirror": config.mirror, "seed": config.seed, "cache_dir": config.cache_dir, "input": config.model.input}
    crop: dict[str, Any] = {"clip_length": config.clip_length, "random_crop": config.clip_length is not None}
    listeners = config.model.backbone_options.get("listeners", 0)  # of a backbone that learns from all appropriate ones
    train = REACTDataset(config.data, "train", swap_roles=config.swap_roles, listeners=listeners, **crop, **common)
    val = REACTDataset(config.data, "val", clip_length=config.validation_clip_length, mean_face=train.mean_face, **common)
    if train.fps != config.model.fps:
        raise DataError(f"{config.data} has {train.fps:g} frames per second, the model is set to fps {config.model.fps:g}; they must agree")
    return train, val


def _per_frame(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step (counted from 0) of a run of ``steps`` steps: a pure function, so nothing of it is saved."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * (config.drop if step >= config.drop_at * steps else 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)))


class Trainer:
    """A run: its model, optimizer, corpora and position. `train` is the usual way in.

    Raises on making: ValueError for settings that this machine cannot serve, `DataError` for a corpus that cannot be used,
    FileExistsError and `CheckpointError` as `open_run`.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        self.config = config
        AcceleratorState._reset_state(True)  # accelerate keeps precision and process group of the process's first run
        if config.precision == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
            raise ValueError("precision fp16 needs a GPU and none is visible; take bf16 or no on a CPU")
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            # Without a GPU too: accelerate would else start no process group, and each process would train the whole run.
            cpu=config.device == "cpu" or not torch.cuda.is_available(),
            # Parts of a backbone may rest in a step (the branch that was not drawn, weights that the published model never uses).
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.rank, self.processes, self.device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        self.main = self.accelerator.is_main_process
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.processes:
            raise ValueError(
                f"{started} processes were started (WORLD_SIZE) and accelerate made a group of {self.processes}: they would train beside "
                "each other in one folder; see docs/training.md for the commands"
            )
        self.batch = config.batch_size * self.processes
        self.paths = open_run(config, resume=resume, processes=self.processes)

        with self.accelerator.main_process_first():  # which builds the feature cache; the others find it there
            self.corpus, self.validation = open_corpora(config)
        self.per_epoch = steps_per_epoch(len(self.corpus), self.batch)
        self.steps = self.per_epoch * config.epochs

        self.step = 0
        self.best: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        self.epoch_means, self.window_means = Means(), Means()
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        torch.manual_seed(derive_signed(config.seed, INIT))
        self.resumed = self.paths.last.exists()
        self.model = load_model(self.paths.last, eval_mode=False) if self.resumed else EMCModel(config.model)
        self._begin_stage()
        self.model.to(self.device).train()
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        self.plain_optimizer = kind(
            self._groups(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=self.device.type == "cuda"
        )
        if self.resumed:
            self._restore()
        self.terms = Objective(self.model, config.stage)
        self.objective, self.optimizer = self.accelerator.prepare(self.terms, self.plain_optimizer)

    def _begin_stage(self) -> None:
        """In a stage let only its parameters learn; in the model's own training begin with what the stages have learned."""
        backbone, config = self.model.backbone, self.config
        if config.stage is not None:
            self.model.requires_grad_(False)
            for parameter in backbone.stage_parameters(config.stage):
                parameter.requires_grad_(True)
        elif not self.resumed:
            for stage in backbone.stages:
                given = config.stages.get(stage)
                load_stage(self.model, stage, given if isinstance(given, str) else config.of_stage(stage).out)

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameters: those that learn, by whether weight decay is for them."""
        learning = [p for p in self.model.parameters() if p.requires_grad]
        if self.config.decayed == "all":
            return [{"params": learning}]
        matrices = [p for p in learning if p.dim() >= 2]
        return [{"params": matrices}, {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0}]

    def close(self) -> None:
        """Leave the group of processes, if there is one."""
        self.accelerator.end_training()

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1, that the last step belongs to."""
        return max(self.step - 1, 0) // self.per_epoch + 1

    @property
    def epoch_closed(self) -> bool:
        """False between the last step of an epoch and its `end_epoch`."""
        return self.step % self.per_epoch != 0 or len(self.history) == self.step // self.per_epoch

    # -- one step ---------------------------------------------------------------------------------------------------------------------

    def gradients(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Leave the gradients of one batch in the parameters and return the losses, detached.

        With several processes, ``batch`` is this one's share: the gradients are those of the whole batch, since every mean in the
        losses divides by the number of valid elements of all processes.
        """
        batch = {name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}
        if self.processes > 1:
            batch = self._padded_alike(batch)
        seeds = clip_seeds(self.config.seed, TRAIN, batch["index"].tolist(), self.step).to(self.device)
        # Noise of the operators comes from `seeds`; whatever else asks torch's generators gets an answer that depends on the step alone.
        torch.manual_seed(derive_signed(self.config.seed, TORCH, self.step, self.rank))
        self.optimizer.zero_grad(set_to_none=True)
        with counts_of_all_processes(self.processes > 1):
            loss, terms = self.objective(batch, seeds, (self.step // self.per_epoch) / self.config.epochs)
        self.accelerator.backward(loss)
        return terms

    def _padded_alike(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pad to the longest clip of all processes: a backbone that walks through windows then walks as far in each."""
        longest = torch.tensor(batch["face_available"].shape[1], device=self.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        more = int(longest) - batch["face_available"].shape[1]
        if more == 0:
            return batch

        def pad(value: Any) -> Any:
            return torch.cat((value, value.new_zeros(len(value), more, *value.shape[2:])), 1) if _per_frame(value) else value

        return {name: pad(value) for name, value in batch.items()}

    def advance(self, batch: dict[str, Any]) -> None:
        """Take one step of the optimizer."""
        for group in self.plain_optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.steps)
        terms = self.gradients(batch)
        if self.config.grad_clip is not None:
            terms["gradient_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip).detach()
        self.optimizer.step()
        self.step += 1
        self.pending.append((self.step, terms))

    def flush(self, *, stop: bool = False) -> bool:
        """Bring the losses of the last steps from the device and check them; returns whether any process was asked to stop.

        Done every ``log_every`` steps and before anything is saved, so that the device is not waited for in between.
        """
        if not self.pending:
            return stop
        names = list(self.pending[0][1])
        table = torch.stack([torch.stack([terms[name] for name in names]) for _, terms in self.pending])
        table = torch.cat([table, torch.full_like(table[:, :1], float(stop))], 1)
        rows = self.accelerator.reduce(table, "mean").double().cpu().tolist()
        for (step, _), row in zip(self.pending, rows, strict=True):
            values = dict(zip(names, row[:-1], strict=True))
            for name, value in values.items():
                # With loss scaling an infinite gradient is ordinary: the step is skipped and the scale halved.
                if not math.isfinite(value) and not (name == "gradient_norm" and self.config.precision == "fp16"):
                    raise DivergenceError(
                        f"{name} is {value} at step {step} (epoch {(step - 1) // self.per_epoch + 1}); training stopped. {self._kept()} "
                        "A lower learning rate or --grad-clip may mend it"
                    )
            self.epoch_means.add(values)
            self.window_means.add(values)
        self.pending.clear()
        return any(row[-1] for row in rows)

    def _kept(self) -> str:
        if not self.paths.last.exists():
            return "No checkpoint was written yet."
        return f"The last good checkpoint is {self.paths.last} (step {read_json(self.paths.last / STATE_FILE)['step']})."

    # -- validation and checkpoints ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean losses over the validation split, batches weighted by their frames that have a target."""
        self.terms.eval()
        means = Means()
        for batch in evaluation_batches(self.validation, batch=self.config.batch_size, rank=self.rank, processes=self.processes):
            batch = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            seeds = clip_seeds(self.config.seed, VALIDATE, batch["index"].tolist()).to(self.device)
            with self.accelerator.autocast():
                losses = self.terms.losses(batch, seeds, progress=0.0, validate=True)
            if frames := float(batch["target_available"].sum()):
                means.add({name: float(value) for name, value in losses.items()}, frames)
        self.terms.train()
        if self.processes > 1:
            means = self._sum_of_processes(means)
        if not means.count:
            raise DataError(
                f"{self.config.data}: no frame of the validation split has a target (3DMM and emotion of the listener), so nothing can be "
                "validated; `emc-fast features` names the files that are missing"
            )
        return means.take()

    def _sum_of_processes(self, means: Means) -> Means:
        everyone: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(everyone, (means.count, means.sums))
        names = {name: None for _, sums in everyone for name in sums}
        return Means(sum(count for count, _ in everyone), {name: sum(sums.get(name, 0.0) for _, sums in everyone) for name in names})

    def save(self, path: Any) -> None:
        """Write a checkpoint directory whole; only the first process writes, all wait."""
        self.flush()
        self._check_weights()
        if self.main:
            with whole_directory(path) as directory:
                self.model.save_pretrained(directory)
                save_optimizer(directory / OPTIMIZER_FILE, self.plain_optimizer, self.model)
                write_json(
                    directory / PREPROCESSING_FILE, {"fps": self.config.model.fps, "mean_face": [float(v) for v in self.corpus.mean_face]}
                )
                write_json(
                    directory / STATE_FILE,
                    {
                        "step": self.step,
                        "batch": self.batch,
                        "clips": len(self.corpus),
                        "corpus": self._fingerprint(),
                        "best": self.best,
                        "history": self.history,
                        "epoch_means": vars(self.epoch_means),
                        "window_means": vars(self.window_means),
                        "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                    },
                )
        self.accelerator.wait_for_everyone()

    def _check_weights(self) -> None:
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.model.parameters()]))
        if not bool(torch.isfinite(norms).all()):
            name = next(n for n, p in self.model.named_parameters() if not bool(torch.isfinite(p).all()))
            raise DivergenceError(f"the weight {name} is not finite after step {self.step}; training stopped. {self._kept()}")

    def _fingerprint(self) -> str:
        clips = self.corpus.corpus.clips
        pairs = "\n".join(f"{clips[speaker].name} {clips[listener].name}" for speaker, listener in self.corpus.corpus.pairs)
        return hashlib.sha256(pairs.encode()).hexdigest()

    def _restore(self) -> None:
        state = read_json(self.paths.last / STATE_FILE)
        if (state["clips"], state["corpus"]) != (len(self.corpus), self._fingerprint()):
            raise CheckpointError(
                f"the run in {self.paths.run} was begun on another corpus: its train list had {state['clips']} clips, "
                f"{self.config.data} lists {len(self.corpus)}{' of other names' if state['clips'] == len(self.corpus) else ''}"
            )
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.epoch_means, self.window_means = Means(**state["epoch_means"]), Means(**state["window_means"])
        load_optimizer(self.paths.last / OPTIMIZER_FILE, self.plain_optimizer, self.model)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def end_epoch(self) -> dict[str, Any]:
        """Close the epoch that the last step ended: validate if it is time, keep the best, save."""
        self.flush()
        epoch = self.step // self.per_epoch
        record: dict[str, Any] = {"epoch": epoch, "step": self.step, "train": self.epoch_means.take()}
        if self.config.stage is None:
            self.model.backbone.end_epoch(record["train"])
        if epoch % self.config.validate_every == 0 or epoch == self.config.epochs:
            record["validation"] = self.validate()
        self.history.append(record)
        loss = record.get("validation", {}).get("total")
        if loss is not None and math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best = {"epoch": epoch, "step": self.step, "loss": loss}
            self.save(self.paths.best)
        self.save(self.paths.last)
        return record
