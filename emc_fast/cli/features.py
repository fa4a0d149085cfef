"""``emc-fast features``: compute the features of a corpus once, for fast epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    data: Annotated[Path, typer.Option(help="Root of a REACT 2024 tree.")],
    cache: Annotated[Path | None, typer.Option(help="Where to keep the features; default: emc-cache inside the tree.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to take; may be given again. Default: every list there is.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
) -> None:
    """Compute MFCC and speech emotion, parse emotion and 3DMM files, and keep it all for memory mapping."""
    from rich.console import Console

    from ..data.cache import FeatureCache, default_cache_dir, split_cache_dir
    from ..data.react2024 import SPLITS, React2024
    from ..data.streams import FeatureOptions
    from ..errors import DataError

    console = Console(markup=False, emoji=False)  # names of folders may look like either
    splits = split or [name for name in SPLITS if (data / f"{name}.csv").is_file()]
    if not splits:
        raise DataError(f"{data}: holds none of {', '.join(f'{name}.csv' for name in SPLITS)}; the root of a REACT 2024 tree is taken")
    where = cache or default_cache_dir(data)
    options = FeatureOptions()
    for name in splits:
        corpus = React2024(data, name)
        place = split_cache_dir(where, name, options)
        FeatureCache.build(place, corpus.clips, options, processes=processes, title=f"features of {name}")
        console.print(f"{name}: {len(corpus.clips)} clips of one person, {len(corpus.pairs)} pairs with both roles", soft_wrap=True)
    console.print(f"features are in {where}", soft_wrap=True)
