"""``emc-fast view``: one clip's reactions as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    generation: Annotated[Path, typer.Argument(help="What 'emc-fast generate' wrote, or an .npy of (N,K,T,25).", metavar="DIR")],
    clip: Annotated[str | None, typer.Option(help="Clip by name, end of its name, or index. Default: the first.")] = None,
    draws: Annotated[str | None, typer.Option(help="Reactions to take, such as 0,1,2. Default: all.")] = None,
    data: Annotated[Path | None, typer.Option(help="Corpus with the speaker, if it has moved since.", metavar="TREE")] = None,
    audio: Annotated[Path | None, typer.Option(help="Sound to embed. Default: the recording that was reacted to.", metavar="WAV")] = None,
    no_audio: Annotated[bool, typer.Option("--no-audio", help="Embed no sound.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write. Default: in DIR.", metavar="FILE.html")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one self-contained page: animated faces, heat strips and valence-arousal curves of a clip's reactions."""
    from ..errors import DataError
    from ..viewer import load_clip, write_clip

    try:
        wanted = None if draws is None else [int(part) for part in draws.split(",")]
    except ValueError as error:
        raise DataError(f"--draws: got {draws!r}, takes indices with commas between, such as 0,1,2") from error
    found = load_clip(generation, clip=clip, draws=wanted, data=data)
    if out is None:
        out = generation / f"clip-{found.index}.html" if generation.is_dir() else generation.with_suffix(".html")
    page = write_clip(out, found, audio=None if no_audio else audio or found.recording)
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written: {page} ({page.stat().st_size / 1024:,.0f} KiB)")
    if open_page:
        typer.launch(page.resolve().as_uri())
