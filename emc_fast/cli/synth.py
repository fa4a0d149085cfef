"""``emc-fast synth``: write the synthetic corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not hold anything yet.")],
    clips: Annotated[int, typer.Option(min=0, help="Pairs in the training list.")] = 48,
    val: Annotated[int, typer.Option(min=0, help="Pairs in the validation list.")] = 16,
    test: Annotated[int, typer.Option(min=0, help="Pairs in the test list.")] = 16,
    frames: Annotated[int, typer.Option(min=8, help="Frames of a clip.")] = 750,
    neighbours: Annotated[int, typer.Option(min=1, help="Appropriate reactions per speaker.")] = 4,
    lag: Annotated[tuple[int, int], typer.Option(metavar="LEAST MOST", help="Frames by which a listener lags.")] = (10, 25),
    noise: Annotated[float, typer.Option(min=0, help="Noise of listeners and trackers.")] = 0.25,
    sample_rate: Annotated[int, typer.Option(min=8000, help="Sampling rate of the sound, Hz.")] = 16000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write a seeded synthetic corpus of conversations in the REACT 2024 layout."""
    from rich.console import Console

    from ..data import synthesize_corpus

    console = Console(markup=False, emoji=False)  # names of folders may look like either
    root = synthesize_corpus(
        out,
        train=clips,
        val=val,
        test=test,
        frames=frames,
        seed=seed,
        neighbours=neighbours,
        lag=lag,
        noise=noise,
        sample_rate=sample_rate,
        progress=True,
        console=console,
    )
    console.print(f"{clips + val + test} synthetic pairs are in {root} (its README.md says how they were made)", soft_wrap=True)
