"""``emc-fast evaluate``: every measure of one or several files of predictions, as published and mended, side by side."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from ..metrics import ClipTable, ListTable
    from ._lists import ListTruth
    from ._truth import Truth

    Measured = tuple[Path, "NDArray[np.float32] | None", "ClipTable | ListTable", list[str], Any]

_TITLES = {
    "frcorr": "FRCorr ↑",
    "frdist": "FRDist ↓",
    "frdiv": "FRDiv ↑",
    "frvar": "FRVar ↑",
    "frdvs": "FRDvs ↑",
    "frsyn": "FRSyn ↓",
    "mae": "MAE of AUs ↓",
}


def command(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="Files of shape [N,K,T,25], or folders that `emc-fast generate` wrote; for a tree of 2025 folders of "
            "<session>/<clip>.npy [K,T,25], or an .npz or .pt of such arrays by name."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Tree in the layout of REACT 2024, or of 2025 and 2026.")],
    split: Annotated[str, typer.Option(help="Split that was predicted: train, val or test.")] = "val",
    matrix: Annotated[Path | None, typer.Option(help="Another appropriateness matrix (.npy) than the split's own.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    per_clip: Annotated[bool, typer.Option("--per-clip", help="Put every clip's values into the JSON file too.")] = False,
    bootstrap: Annotated[int, typer.Option(min=0, help="Redrawn means for the confidence intervals; 0 for none.")] = 2000,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the redrawing.")] = 0,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second, for the lags of FRSyn.")] = 25,
    listeners: Annotated[int, typer.Option(min=1, help="2025: listeners of each clip, its own and others of the session.")] = 10,
    listener_seed: Annotated[int, typer.Option(min=0, help="2025: of the drawing of these listeners.")] = 0,
    round_units: Annotated[bool, typer.Option("--round-units/--keep-units", help="2025: take predicted action units as 0 or 1.")] = True,
    plots: Annotated[Path | None, typer.Option(help="Write plots into this folder (needs the extra viz).")] = None,
) -> None:
    """Measure predictions against a split: FRCorr, FRDist, FRDiv, FRVar, FRDvs, FRSyn, by the published protocol and the mended one.

    A tree of 2025 or 2026 is known by its folder facial-attributes: clips of any length, no FRDvs, and the error of the action units.

    Under torchrun the clips are shared out: `torchrun --nproc-per-node 2 --no-python emc-fast evaluate ...`.
    """
    from rich.console import Console

    from ..errors import DataError
    from ._lists import is_list_tree, read_list_truth

    if per_clip and json is None:
        raise DataError("--per-clip puts values into the JSON file: give --json FILE as well")
    if json is not None and json.exists() and not json.is_file():
        raise DataError(f"{json}: is not a file; --json takes the path of a file, and replaces it")
    lists = is_list_tree(data, split)
    if lists and (matrix is not None or plots is not None):
        raise DataError(f"{data}: is a tree of 2025, which has no matrix, and for which there are no plots; leave out --matrix and --plots")
    if plots is not None:
        from ..metrics.plots import require_matplotlib

        require_matplotlib()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    console = Console(quiet=rank > 0, markup=False, emoji=False)  # file names may look like either
    notes = Console(stderr=True, quiet=rank > 0, markup=False, emoji=False)
    if world > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo")
    try:
        results = (
            _measure_lists(predictions, read_list_truth(data, split, listeners, listener_seed), round_units, fps, notes, world)
            if lists
            else _measure(predictions, data, split, matrix, fps, notes, world)
        )
    finally:
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()
    if rank > 0:
        return
    reports = [_report(path, pred, table, bootstrap, level, seed) for path, pred, table, _, _ in results]
    tables = [_table(report, level) for report in reports]
    if json is not None:  # before anything is printed: the figures are safe then
        if per_clip:
            for report, (_, _, table, names, _) in zip(reports, results, strict=True):
                report["names"] = names
                report["per_clip"] = {
                    protocol: {k: v.tolist() for k, v in table.per_clip(protocol).items()} for protocol in ("official", "fixed")
                }
        settings = {"listeners": listeners, "listener_seed": listener_seed, "round_units": round_units} if lists else {}
        _write_json(json, {"data": str(data), "split": split, "fps": fps, "level": level, **settings, "results": reports})
    for shown in tables:
        console.print(shown)
    if json is not None:
        console.print(f"figures are in {json}", soft_wrap=True)
    if plots is not None:
        from ..metrics.plots import save_plots

        labels = _labels([path for path, *_ in results])
        written = save_plots(
            plots,
            {
                label: (cast("ClipTable", table), cast("NDArray[np.float32]", pred), truth.target, truth.appropriate, truth.clips)
                for label, (_, pred, table, _, truth) in zip(labels, results, strict=True)
            },
        )
        console.print(f"{len(written)} plots are in {plots}", soft_wrap=True)


def _labels(paths: list[Path]) -> list[str]:
    """Short names of the files, all different: without what they have in common."""
    parts = [(path if path.is_dir() else path.with_suffix("")).resolve().parts for path in paths]
    skip = 0
    while min(map(len, parts)) > skip + 1 and len({part[: skip + 1] for part in parts}) == 1:
        skip += 1
    return [f"{'/'.join(part[skip:])}{f' ({i})' if parts.index(part) < i else ''}" for i, part in enumerate(parts)]


def _bar(notes: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    title = TextColumn("{task.description}", markup=False)
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=notes, transient=True, disable=notes.quiet)


def _measure_lists(predictions: list[Path], truth: ListTruth, round_units: bool, fps: int, notes: Console, world: int) -> list[Measured]:
    from ..errors import DataError
    from ..metrics import measure_lists
    from ._lists import read_predictions

    files = [(path, read_predictions(path, truth, round_units=round_units)) for path in predictions]
    results: list[Measured] = []
    with _bar(notes) as bar:
        for path, pred in files:
            task = bar.add_task(f"measuring {path.name}", total=len(pred) / world)
            try:
                table = measure_lists(pred, truth.target, truth.speaker, fps=fps, progress=partial(bar.advance, task))
            except DataError as error:  # the function knows clips by their number alone
                named = re.sub(r"pred\[(\d+)\]", lambda found: truth.names[int(found[1])], str(error))
                raise DataError(f"{path}: {named}" if named != str(error) else named) from error
            results.append((path, None, table, truth.names, truth))
    return results


def _measure(predictions: list[Path], data: Path, split: str, matrix: Path | None, fps: int, notes: Console, world: int) -> list[Measured]:
    files = [(path, open_predictions(path, split)) for path in predictions]
    results: list[Measured] = []
    with _bar(notes) as bar:
        reading = bar.add_task("reading emotion")
        whole = read_whole_truth(
            data,
            split,
            frames=max(cut(pred.shape[2]) for _, pred in files),
            matrix=matrix,
            progress=lambda done, total: bar.update(reading, completed=done, total=total),
        )
        if len(whole.clips) < whole.total:
            notes.print(f"{whole.total - len(whole.clips)} of {whole.total} clips lack an emotion file and are left out")
        checked = [check_predictions(path, pred, whole, data, split) for path, pred in files]
        for (path, uncut), (pred, truth) in zip(files, checked, strict=True):
            if uncut.shape[2] > pred.shape[2]:
                notes.print(f"{path}: {uncut.shape[2]} frames are cut to {pred.shape[2]}", soft_wrap=True)
            task = bar.add_task(f"measuring {path.name}", total=len(truth.clips) / world)
            results.append((path, pred, measure(path, pred, truth, fps=fps, progress=partial(bar.advance, task)), truth.names, truth))
    return results


def open_predictions(path: Path, split: str) -> NDArray[np.float32]:
    """Map the predictions (N,K,T,25) of a file, or of a folder of ``emc-fast generate``, which must have been made for this split."""
    from ..data.readers import map_array
    from ..errors import DataError

    file = path / "prediction_emotion.npy" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: there is no such file; `emc-fast generate` writes prediction_emotion.npy")
    pred = map_array(file, "predictions of shape [N,K,T,25]")
    if pred.ndim != 4 or pred.shape[-1] != 25 or pred.dtype.kind != "f":
        raise DataError(
            f"{file}: has shape {pred.shape} and dtype {pred.dtype}; floating [N,K,T,25] is taken: clips, draws, frames, and 15 AU, "
            "valence, arousal, 8 expressions"
        )
    about = _generation(path)
    made = about["source"].get("split") if about else split
    if made != split:
        whose = f"split {made}, not to {split}; give --split {made}" if made else "one recording; generate those to a split with --data"
        raise DataError(f"{path}: by generation.json these are reactions to {whose}")
    return pred


def cut(frames: int) -> int:
    """How many of so many predicted frames are measured."""
    # The published corpus has 751 pictures for 750 rows of emotion, and models that follow the pictures predict one frame too many.
    return 750 if frames == 751 else frames


def _generation(path: Path) -> dict[str, Any] | None:
    """What ``emc-fast generate`` says of the predictions in its folder; None for a file from elsewhere."""
    from ..viewer.source import read_description

    file = path / "generation.json" if path.is_dir() else path.with_name("generation.json")
    return read_description(file) if file.is_file() and (path.is_dir() or path.name == "prediction_emotion.npy") else None


def read_whole_truth(data: Path, split: str, *, frames: int, **how: Any) -> Truth:
    """The truth of a split without a hole: every measure needs every frame, so a file that lacks a number is refused by its name."""
    import numpy as np

    from ..data import EMOTION_NAMES, React2024
    from ..errors import DataError
    from ._truth import read_truth

    truth = read_truth(data, split, frames=frames, **how)
    roles = (truth.speaker, truth.target)
    holed = [(int(n), role) for role, rows in enumerate(roles) for n in np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))]
    if holed:
        corpus = React2024(data, split)
        files = list(dict.fromkeys(corpus.clips[corpus.pairs[truth.clips[n]][role]].emotion for n, role in holed))
        n, role = holed[0]
        frame, channel = map(int, np.argwhere(~np.isfinite(roles[role][n]))[0])
        others = f" ({len(files) - 1} other files of {split} have holes too)" if len(files) > 1 else ""
        raise DataError(
            f"{files[0]}: holds no number at frame {frame}, channel {channel} ({EMOTION_NAMES[channel]}){others}; the measures need every "
            "frame: fill the cell, say from the row before, or use a copy of the tree without the file, which leaves out its clips"
        )
    return truth


def check_predictions(path: Path, pred: NDArray[np.float32], whole: Truth, data: Path, split: str) -> tuple[NDArray[np.float32], Truth]:
    """Predictions, which must be reactions of one length to all clips of the split in its order, and the truth, in the same frames."""
    from dataclasses import replace

    from ..errors import DataError

    if len(pred) != whole.total:
        hint = "; the split's list is taken in both directions, all speakers first" if 2 * len(pred) == whole.total else ""
        raise DataError(f"{path}: holds {len(pred)} clips, but split {split} of {data} has {whole.total}{hint}")
    frames = cut(pred.shape[2])
    if about := _generation(path):
        _check_generation(path, about, whole, frames, f"split {split} of {data}")
    return pred[:, :, :frames], replace(whole, target=whole.target[:, :frames], speaker=whole.speaker[:, :frames])


def _check_generation(path: Path, about: dict[str, Any], whole: Truth, frames: int, where: str) -> None:
    from ..errors import DataError

    names, lengths = about["names"], about["lengths"]
    if len(names) != whole.total:
        raise DataError(f"{path}: generation.json names {len(names)} clips, the array holds {whole.total}; generate the reactions again")
    for n, name in zip(whole.clips, whole.names, strict=True):
        if names[n] != name:
            raise DataError(
                f"{path}: by generation.json clip {n} is a reaction to {names[n]}, but clip {n} of {where} is {name}; name the tree that "
                "the reactions were generated from with --data, or generate them again"
            )
    if short := [n for n in whole.clips if lengths[n] < frames]:
        named = ", ".join(f"{names[n]} ({lengths[n]} frames)" for n in short[:5]) + (", ..." if len(short) > 5 else "")
        raise DataError(
            f"{path}: by generation.json {len(short)} of {len(whole.clips)} clips are shorter than the array's {frames} frames, and zero "
            f"from there on: {named}; these measures take clips of one length. Mend the short streams of these clips and generate again, "
            f"measure all clips over pred[:, :, :{min(lengths[n] for n in short)}], saved elsewhere, or use emc_fast.metrics.evaluate_lists"
        )


def measure(path: Path, pred: NDArray[np.float32], truth: Truth, **how: Any) -> ClipTable:
    """Measure what :func:`check_predictions` gave; clips that are left out are never read."""
    from ..errors import DataError
    from ..metrics import measure_clips

    clips = truth.clips if len(truth.clips) < truth.total else None
    try:
        return measure_clips(pred, truth.target, truth.speaker, truth.appropriate, clips=clips, **how)
    except DataError as error:
        raise DataError(f"{path}: {error}" if str(error).startswith("pred:") else str(error)) from error


def _report(
    path: Path, pred: NDArray[np.float32] | None, table: ClipTable | ListTable, bootstrap: int, level: float, seed: int
) -> dict[str, Any]:
    from ..metrics import bootstrap_interval

    report: dict[str, Any] = {"prediction": str(path), "clips": len(table), "draws": table.draws}
    if pred is not None:  # else the clips have lengths of their own
        report["frames"] = pred.shape[2]
    protocol: Any
    for protocol in ("official", "fixed"):
        report[protocol] = {}
        values = table.per_clip(protocol)
        for name, value in table.figures(protocol).items():
            report[protocol][name] = {"value": value}
            if bootstrap:
                interval = bootstrap_interval(values[name], level=level, replicates=bootstrap, seed=seed)
                report[protocol][name]["interval"] = list(interval)
    return report


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2e}"


def _table(report: dict[str, Any], level: float) -> Table:
    from rich.table import Table

    frames = f", {report['frames']} frames" if "frames" in report else ""
    table = Table(title=f"{report['prediction']}: {report['clips']} clips, {report['draws']} draws{frames}")
    table.add_column("measure")
    intervals = "interval" in report["official"]["frcorr"]
    for protocol in ("official", "fixed"):
        table.add_column(protocol, justify="right")
        if intervals:
            table.add_column(f"{level:.0%}", justify="center", style="dim")
    for name in report["official"]:
        cells = [_TITLES[name]]
        for protocol in ("official", "fixed"):
            entry = report[protocol][name]
            cells.append(_number(entry["value"]))
            if intervals:
                cells.append(" ... ".join(map(_number, entry["interval"])))
        table.add_row(*cells)
    return table


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from json import dumps

    from .._files import write_text
    from .._version import __version__

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dumps({"emc_fast": __version__, **content}, indent=1, allow_nan=False) + "\n")
