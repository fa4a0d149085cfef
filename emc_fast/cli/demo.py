"""``emc-fast demo``: corpus, training, reactions to a recording without a face, and a page to look at, in one go."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MARKER = ".emc-fast-demo"
"""Says that a folder was made by this command, so that it may be made anew."""


def command(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes; an earlier demo there is replaced.")] = Path(
        "emc-demo"
    ),
    wav: Annotated[Path | None, typer.Option(help="Recording to react to. Default: examples/speech.wav of the source tree.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of corpus, training and reactions.")] = 0,
) -> None:
    """Train on a small synthetic corpus and react to a speech recording whose face is missing (3 minutes on two CPU cores, no network)."""
    from rich.console import Console
    from rich.markup import escape

    recording = wav or Path(__file__).resolve().parents[2] / "examples" / "speech.wav"
    if not recording.is_file():
        raise DataError(f"{recording}: there is no such recording; give one with --wav FILE, or run the demo from the source tree")
    console = Console(highlight=False, emoji=False)
    begun = time.monotonic()
    _clear(out)
    page, table = _run(out, recording, seed, console)
    console.print(table)
    console.print(
        "MSE is per value over all ten reactions; FRCorr (0 to 10) compares each with the best fitting of the appropriate reactions.\n"
        "The corpus is synthetic: the figures show that the machinery works and moves the right way, nothing about real conversations.\n"
    )
    console.print(f"Done in {time.monotonic() - begun:.0f} s. Look at the reactions: [bold]{escape(str(page))}[/]", soft_wrap=True)
    console.print(
        f"  corpus       {out / 'corpus'}\n  runs         {out / 'run'}, {out / 'run-original'} (tensorboard --logdir {out})\n"
        f"  reactions    {page.parent} (prediction_emotion.npy, prediction_3dmm.npy)\n  this table   {out / 'summary.json'}",
        soft_wrap=True,
        markup=False,
    )


def _clear(out: Path) -> None:
    """Make way for the demo, but never for anything that it did not make."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise DataError(f"{out} is there already and was not made by this demo; name another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).write_text("emc-fast demo makes this folder anew each time.\n")


def _run(out: Path, recording: Path, seed: int, console: Console) -> tuple[Path, Table]:
    import dataclasses

    import torch

    from ..data import REACTDataset, synthesize_corpus
    from ..model import EMCModel
    from ..training import MeanReaction, demo_config, generate, load_model, train, validate
    from ..viewer import load_clip, write_clip

    corpus, run, original, reactions = out / "corpus", out / "run", out / "run-original", out / "reactions"
    with _step(console, 1, "Make a synthetic corpus of conversations"):
        synthesize_corpus(corpus, **demo_corpus(seed), progress=True, console=console)
    config = dataclasses.replace(demo_config(str(corpus), str(run)), seed=seed)
    plain = dataclasses.replace(config, out=str(original), model=dataclasses.replace(config.model, emc=False))
    with _step(console, 2, "Train the original Trans-VAE, to compare with"):
        train(plain)
    with _step(console, 3, "Train Trans-VAE with EMC"):
        train(config)
    with _step(console, 4, f"React to {recording.name}, ten times, with the face missing"):
        generate(run, reactions, wav=recording, num_samples=10, seed=seed)
    with _step(console, 5, "Write the page"):
        title = f"{recording.name}: the face is missing"
        page = write_clip(reactions / "reactions.html", load_clip(reactions), title=title, audio=recording)
    with _step(console, 6, "Validate"):
        fit, val = (REACTDataset(corpus, split, mirror=config.mirror, cache_dir=config.cache_dir) for split in ("train", "val"))
        torch.manual_seed(seed)
        untrained = EMCModel(config.model)
        trained, compared = load_model(run), load_model(original)
        rows = [
            ("mean reaction of the training listeners", validate(MeanReaction(fit), val)),
            ("EMC, untrained", validate(untrained, val, seed=seed)),
            ("original, face and speech", validate(compared, val, seed=seed)),
            ("original, zeros for the face", validate(compared, val, missing="face", seed=seed)),
            ("EMC, face and speech", validate(trained, val, seed=seed)),
            ("EMC, face missing", validate(trained, val, missing="face", seed=seed)),
            ("EMC, speech missing", validate(trained, val, missing="speech", seed=seed)),
        ]
        (out / "summary.json").write_text(json.dumps(dict(rows), indent=2) + "\n")
    return page, _table(rows)


def demo_corpus(seed: int) -> dict[str, Any]:
    """Arguments of the demo's corpus."""
    return {"train": 128, "val": 16, "test": 0, "frames": 256, "neighbours": 2, "sample_rate": 16000, "seed": seed}


@contextmanager
def _step(console: Console, number: int, what: str) -> Iterator[None]:
    from rich.markup import escape

    console.rule(f"{number}. {escape(what)}", align="left", style="dim")
    begun = time.monotonic()
    yield
    console.print(f"[dim]{time.monotonic() - begun:.1f} s[/]")


def _table(rows: list[tuple[str, dict[str, float]]]) -> Table:
    from rich.table import Table

    table = Table(title="Validation split of the synthetic corpus")
    table.add_column("")
    for heading in ("MSE emotion ↓", "MSE 3DMM ↓", "FRCorr ↑"):
        table.add_column(heading, justify="right")
    for name, figures in rows:
        table.add_row(name, f"{figures['mse_emotion']:.4f}", f"{figures['mse_3dmm']:.5f}", f"{figures['frcorr']:.2f}")
    return table
