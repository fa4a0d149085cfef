"""``emc-fast train``: train a model on a corpus, or go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    out: Annotated[Path, typer.Option(help="Run directory: settings, log, TensorBoard events, checkpoints.")],
    data: Annotated[Path | None, typer.Option(help="Corpus in the REACT 2024 layout.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; settings not given are taken from it.")] = False,
    config: Annotated[Path | None, typer.Option(help="JSON with any of the settings; the options below override it.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Backbone, with its published recipe as the default of every setting; or your own: package.module:Class."),
    ] = None,
    emc: Annotated[bool | None, typer.Option("--emc/--no-emc", help="With EMC, or the backbone as published.")] = None,
    epochs: Annotated[int | None, typer.Option(help="[Trans-VAE: 50]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per step and process. [Trans-VAE: 4]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or adam. [Trans-VAE: adamw]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [Trans-VAE: 1e-5]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[Trans-VAE: 5e-4]")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine or step. [Trans-VAE: constant]")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of linear warm-up. [default: 0]")] = None,
    grad_clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient. [default: no limit]")] = None,
    clip_length: Annotated[int | None, typer.Option(help="Frames of a training crop, 0 for whole clips. [Trans-VAE: 256]")] = None,
    precision: Annotated[str | None, typer.Option(help="no, fp16 (GPU, with loss scaling) or bf16. [default: no]")] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Epochs between validations. [default: 10]")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints, 0 for epochs only. [default: 0]")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between log entries. [default: 10]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read clips. [default: 0]")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where to keep the features. [default: emc-cache inside the corpus]")] = None,
    device: Annotated[str | None, typer.Option(help="auto or cpu. [default: auto]")] = None,
) -> None:
    """Train a model. Ctrl-C finishes the step, saves, and tells how to go on.

    Several GPUs: accelerate launch -m emc_fast train ... (or torchrun --nproc-per-node N -m emc_fast train ...).
    """
    from ..data.cache import default_cache_dir
    from ..training import train
    from ..training.config import TrainConfig, merge, read_settings
    from ..training.presets import recipe
    from ._backbone import chosen_backbone

    named = None if backbone is None else chosen_backbone(backbone)
    given: dict[str, Any] = {
        "data": data and str(data),
        "out": str(out),
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "grad_clip": grad_clip,
        "precision": precision,
        "seed": seed,
        "validate_every": validate_every,
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
        "workers": workers,
        "cache_dir": cache and str(cache),
        "device": device,
    }
    settings = read_settings(config) if config is not None else {}
    if resume and (out / "config.json").is_file():
        settings = merge(read_settings(out / "config.json"), settings)
    else:
        settings = merge(recipe(named or settings.get("model", {}).get("backbone", "")), settings)
    settings |= {name: value for name, value in given.items() if value is not None}
    if "cache_dir" not in settings and settings.get("data"):
        settings["cache_dir"] = str(default_cache_dir(settings["data"]))
    if clip_length is not None:
        settings["clip_length"] = clip_length or None
    model = {name: value for name, value in (("backbone", named), ("emc", emc)) if value is not None}
    if model:
        settings["model"] = {**settings.get("model", {}), **model}

    result = train(TrainConfig.from_dict(settings), resume=resume)
    if result.stopped_by is not None:
        own = f" --backbone {backbone}" if backbone is not None and ":" in backbone else ""
        typer.echo(f"stopped; to go on: emc-fast train --resume --out {_quoted(out)}{own}")
        raise typer.Exit(128 + result.stopped_by)
    if result.is_main_process:
        best = f"best validation loss {result.best['loss']:.5g} in epoch {result.best['epoch']}: {result.paths.best}" if result.best else ""
        typer.echo(best or f"done: {result.paths.last}")


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
