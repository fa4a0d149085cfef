"""``emc-fast generate``: reactions of a trained model to a corpus or to one recording."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Run directory, or a checkpoint.", metavar="RUN_OR_CHECKPOINT")],
    out: Annotated[Path, typer.Option(help="Directory for the arrays; written whole or not at all.")],
    data: Annotated[Path | None, typer.Option(help="Corpus in the REACT 2024 layout.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    wav: Annotated[Path | None, typer.Option(help="One recording instead of a corpus.")] = None,
    face: Annotated[Path | None, typer.Option(help="One face: npy of 3DMM coefficients (T,58).")] = None,
    face_emotion: Annotated[Path | None, typer.Option(help="Its emotion: csv with a header, or npy (T,25).")] = None,
    speech_emotion: Annotated[Path | None, typer.Option(help="Emotion of the recording: npy (T,10). Default: from its prosody.")] = None,
    num_samples: Annotated[int, typer.Option(help="Reactions per clip.")] = 10,
    missing: Annotated[str | None, typer.Option(help="Withhold the face, the speech, or a fraction of the frames (0.3).")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Clips computed together.")] = 8,
    add_mean_face: Annotated[
        bool, typer.Option("--add-mean-face/--no-add-mean-face", help="3DMM absolute, as renderers take it, or relative to the mean face.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where to keep the features. [default: emc-cache inside the corpus]")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Import this backbone, package.module:Class, for a model that was made with it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the earlier generation that is in --out.")] = False,
) -> None:
    """Write K reactions per clip: prediction_emotion.npy [N,K,T,25] and prediction_3dmm.npy [N,K,T,58]."""
    from ..data.cache import default_cache_dir
    from ..training import generate
    from ._backbone import chosen_backbone

    if backbone is not None:
        chosen_backbone(backbone)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
        written = generate(
            checkpoint,
            out,
            data=data,
            split=split,
            wav=wav,
            face=face,
            face_emotion=face_emotion,
            speech_emotion=speech_emotion,
            num_samples=num_samples,
            missing=missing,
            seed=seed,
            batch_size=batch_size,
            add_mean_face=add_mean_face,
            device=device,
            cache_dir=cache or (default_cache_dir(data) if data is not None else None),
            overwrite=overwrite,
        )
    typer.echo(f"written: {written}")
