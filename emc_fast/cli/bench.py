"""``emc-fast bench``: run the benchmarks, turn their files into tables, pages and plots, compare two runs, see where a step spends time."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.table import Table

    from ..reporting import Race, Run, Verdict

app = typer.Typer(help="Benchmarks: run them, report them, compare two runs, profile a step.", no_args_is_help=True)
ROOT = Path(__file__).resolve().parents[2]
"""The source tree, where there is one around the package."""


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180  # a file has no edge
    return console


@app.command()
def run(
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to write. [default: bench/results/<machine>/<threads>-threads.json of the source tree; races.json of a GPU]"
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every size of the field.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of the kernels.")] = 1,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Race torch.compile too; takes most of the time.")] = True,
    budget: Annotated[float, typer.Option(min=0.01, help="Seconds for one race, preparations apart.")] = 2.0,
    compile_within: Annotated[float, typer.Option(min=0.1, help="Seconds that torch.compile may take for one rival.")] = 120.0,
    compile_models: Annotated[bool, typer.Option("--compile-models", help="Compile a whole model's training step too.")] = False,
    within: Annotated[float, typer.Option(min=1, help="Seconds that one file of bench/ may take; the next one goes on then.")] = 900.0,
    select: Annotated[str | None, typer.Option("-k", help="Only benchmarks of this expression, as pytest takes it.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="The operators on a CUDA device, and nothing of the CPU.")] = False,
) -> None:
    """Run the files of bench/ in the source tree one by one, each in a process of its own, and keep their races in one JSON file.

    What fails or does not finish is named at the end; what passed is kept beside, and taken up by no report. docs/performance.md says how
    long a run takes.
    """
    import os
    import tempfile

    import torch

    from ..errors import EmcError
    from ..reporting.races import read_run, write_compact

    if gpu and not torch.cuda.is_available():
        raise EmcError("torch sees no CUDA device, so there is nothing to race there; leave --gpu out for the CPU")
    if not (ROOT / "bench" / "conftest.py").exists():
        raise EmcError(
            f"{ROOT}: has no bench/; the benchmarks are in the source tree and not in the package: git clone, then pip install -e ."
        )
    options = ["--threads", str(threads), "--budget", str(budget), "--compile-within", str(compile_within)]
    options += ["--full"] * full + ["--no-compile"] * (not compile) + ["--compile-models"] * compile_models
    options += ["-k", select] if select else []
    options += ["-m", "gpu"] if gpu else []
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        parts: list[Path] = []
        for file in _selected(options, environment):
            part = Path(folder) / f"{file}.json"
            command = [sys.executable, "-m", "pytest", f"bench/{file}", "-p", "no:cacheprovider", "-q", *options]
            code = _bounded([*command, f"--benchmark-json={part}"], within, cwd=ROOT, env=environment)
            if code is None:
                wrong.append(f"{file} did not finish in {within:g} s")
            elif code:
                wrong.append(f"{file} ended with status {code}")
            if part.exists() and part.stat().st_size:
                parts.append(part)
        if not parts:
            raise EmcError("; ".join(["nothing was measured", *wrong]))
        first = read_run(parts[0])
        out = out or ROOT / "bench" / "results" / first.slug / ("races.json" if gpu else f"{threads}-thread{'s' * (threads > 1)}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        if wrong:
            out = out.with_name(out.name + ".partial")
        write_compact(parts, out)
    if wrong:
        raise EmcError(f"{'; '.join(wrong)}: what passed is in {out}, which no report takes up by itself")
    _console().print(f"{out}: {len(read_run(out).races)} races", soft_wrap=True)


def _selected(options: list[str], environment: dict[str, str]) -> list[str]:
    """The files of bench/ that have something to run under such options of pytest."""
    import subprocess

    from ..errors import EmcError

    command = [sys.executable, "-m", "pytest", "bench", "-p", "no:cacheprovider", "-q", "--collect-only", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 5):  # 5: nothing is selected
        raise EmcError(f"pytest bench/ cannot be collected (status {done.returncode}):\n{(done.stdout + done.stderr)[-2000:]}")
    found = (line.partition("::")[0].rpartition("/")[2] for line in done.stdout.splitlines() if "::" in line)
    return list(dict.fromkeys(found))


def _bounded(command: list[str], seconds: float, grace: float = 30.0, **options: Any) -> int | None:
    """Run a command; None where it did not end in so many seconds.

    It is asked to stop first, as by Ctrl-C, whereupon pytest still writes what it has measured; if it does not in time it is killed.
    """
    import signal
    import subprocess

    with subprocess.Popen(command, **options) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            return None
        finally:
            process.kill()


@app.command()
def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="JSON files of `pytest bench/ --benchmark-json`, or folders of them. [default: bench/results]"),
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Write docs/performance.md, README.md and docs/img/ of --root.")] = False,
    root: Annotated[Path, typer.Option(help="Source tree that --update writes into.")] = ROOT,
    plots: Annotated[Path | None, typer.Option(help="Write the plots into this folder (needs the extra viz).")] = None,
) -> None:
    """Print every race as a table; with --update also as Markdown between the markers of the documentation, and as plots."""
    from ..reporting import insert, merge, page, read_runs, summary
    from ..reporting.page import unmeasured
    from ..reporting.plots import save_plots

    runs = merge(read_runs(paths or [root / "bench" / "results"]))
    console = _console()
    for one in runs:
        for table in _tables(one):
            console.print(table)
        for sentence in unmeasured(one.races):
            console.print(sentence, soft_wrap=True)
    if plots is not None and not update:
        for one in runs:
            for _, file in save_plots(one, plots):
                console.print(str(file), soft_wrap=True)
    if update:
        drawn = {one.slug: save_plots(one, plots or root / "docs" / "img") for one in runs}
        performance, readme = root / "docs" / "performance.md", root / "README.md"
        text = page(runs, lambda one: [(title, _link(file, performance)) for title, file in drawn[one.slug]])
        short = summary(runs, "docs/performance.md", lambda one: [(title, _link(file, readme)) for title, file in drawn[one.slug][:1]])
        for file, content in ((performance, text), (readme, short)):
            console.print(f"{file}: {'written' if insert(file, content) else 'is up to date'}", soft_wrap=True)
        for files in drawn.values():
            for _, file in files:
                console.print(f"{file}: written", soft_wrap=True)


def _link(file: Path, page: Path) -> str:
    import os

    return Path(os.path.relpath(file, page.parent)).as_posix()


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="JSON file or folder of the earlier run.")],
    after: Annotated[Path, typer.Argument(help="Of the later one.")],
    tolerance: Annotated[float, typer.Option(min=0, max=0.99, help="Share by which a ratio may fall.")] = 0.1,
) -> None:
    """Compare two runs by the ratio to the best rival; exit status 1 where a ratio fell by more than the tolerance.

    The fastest rival that both runs have counts. New and missing benchmarks are named and fail nothing.
    """
    from ..reporting import compare as judge
    from ..reporting import read_runs

    first, then = read_runs([before]), read_runs([after])
    verdicts = judge(first, then, tolerance)
    console = _console()
    if len(places := {one.title + ", " + one.machine.get("isa", "") for one in (*first, *then)}) > 1:
        console.print("[yellow]these runs are of different machines:[/] " + "; ".join(sorted(places)), soft_wrap=True)
    console.print(_verdicts(verdicts))
    counts = {state: sum(v.state == state for v in verdicts) for state in dict.fromkeys(v.state for v in verdicts)}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()), soft_wrap=True)
    for state in ("regressed", "new", "missing", "no common rival"):
        for verdict in verdicts:
            if verdict.state == state:
                console.print(f"{state}: {verdict.race.name}", soft_wrap=True)
    if counts.get("regressed"):
        raise typer.Exit(1)


class Work(str, Enum):
    """What is profiled."""

    step = "step"
    generation = "generation"


@app.command()
def profile(
    works: Annotated[
        list[Work] | None, typer.Argument(help="A training step, or the generation of ten reactions. [default: step; both with --update]")
    ] = None,
    backbone: Annotated[str, typer.Option(help="trans_vae or regnn.")] = "trans_vae",
    batch: Annotated[int | None, typer.Option(min=1, help="Clips. [default: 4 for a step, 1 for a generation]")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of each. [default: 256, 750]")] = None,
    width: Annotated[int, typer.Option(help="Width d of the model.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of the kernels.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Times that the work is done; shares are over all.")] = 5,
    top: Annotated[int, typer.Option(min=1, help="Lines of the table.")] = 15,
    before: Annotated[bool, typer.Option("--before/--no-before", help="The same work on plain PyTorch too (in the source tree).")] = True,
    update: Annotated[bool, typer.Option("--update", help="Write docs/performance.md of --root.")] = False,
    root: Annotated[Path, typer.Option(help="Source tree that --update writes into.")] = ROOT,
) -> None:
    """Print where a step or a generation of an EMC model spends its time, by kinds of work beside plain PyTorch, and by operators."""
    from rich.table import Table

    from ..reporting import OURS
    from ..reporting.machine import this_machine
    from ..reporting.page import PROFILE_MARKERS, groups_table, insert, profile_page
    from ..reporting.profile import profile_model

    console = _console()
    plain = _plain() if before else {}
    if before and not plain:
        console.print(f"{ROOT}: has no bench/, so plain PyTorch is not profiled beside it", soft_wrap=True)
    leads = {Work.step: (4, 256), Work.generation: (1, 750)}
    found = {}
    for work in works or (list(Work) if update else [Work.step]):
        clips, length = batch or leads[work][0], frames or leads[work][1]
        profiles = profile_model(
            training=work is Work.step,
            backbone=backbone,
            batch=clips,
            frames=length,
            width=width,
            threads=threads,
            repeat=repeat,
            plain=plain,
        )
        title = f"{backbone}, {work.value}, {clips} x {length} x {width}, {threads} thread{'s' * (threads > 1)}"
        found[title] = profiles
        header, rows = groups_table(profiles)
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        ours = profiles[OURS]
        table = Table(title=f"{title}: {OURS}")
        for name in ("operator", "for", "share of the time", "ms", "calls", "us a call"):
            table.add_column(name, justify="left" if name in ("operator", "for") else "right")
        for line in ours.lines[:top]:
            share = f"{line.seconds / ours.seconds:.1%}"
            cells = (share, f"{line.seconds * 1e3:.2f}", f"{line.calls:g}", f"{line.seconds / line.calls * 1e6:.1f}")
            table.add_row(line.name, line.group, *cells, style="bold green" if line.ours else "")
        console.print(table)
        console.print(ours.summary(top), soft_wrap=True)
        console.print(ours.largest(), soft_wrap=True)
    if update:
        file = root / "docs" / "performance.md"
        changed = insert(file, profile_page(this_machine(), found), PROFILE_MARKERS)
        console.print(f"{file}: {'written' if changed else 'is up to date'}", soft_wrap=True)


def _plain() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """The contexts of bench/rivals.py that put a model on plain PyTorch; none where there is no source tree."""
    from importlib import import_module

    if not (ROOT / "bench" / "rivals.py").exists():
        return {}
    sys.path.insert(0, str(ROOT))
    try:
        return dict(import_module("bench.rivals").PLAIN)
    finally:
        sys.path.remove(str(ROOT))


def _tables(one: Run) -> list[Table]:
    from rich.markup import escape
    from rich.table import Table

    from ..reporting.page import SCALING, by_operator, heading, limit, memory, ours, rivals_of, scaling_cells, threads_note
    from ..reporting.races import scalings

    tables: list[Table] = []
    for operator, races in by_operator(one.races).items():
        rivals = rivals_of(races)
        table = Table(title=operator, caption=None if tables else escape(heading(one)), title_justify="left", caption_justify="left")
        ends = {title: of for title, of in (("rate", limit), ("peak memory", memory)) if any(map(of, races))}
        for title in ("size", "direction", "threads", "ours", *rivals, *ends):
            table.add_column(title, justify="left" if title in ("size", "direction", *ends) else "right")
        for race in races:
            cells = [_coloured(race, rival) if rival in race.seconds else "" for rival in rivals]
            table.add_row(race.size, race.direction, str(race.threads), ours(race), *cells, *(of(race) for of in ends.values()))
        tables.append(table)
    if grown := scalings(one):
        table = Table(*SCALING, title="along threads", caption=threads_note(one), title_justify="left", caption_justify="left")
        for line in grown:
            table.add_row(*(cell.strip("*") for cell in scaling_cells(line)))
        tables.append(table)
    return tables


def _coloured(race: Race, rival: str) -> str:
    from ..reporting.page import ratio

    value = race.ratio(rival)
    text = f"[{'green' if value >= 1 else 'red'}]{ratio(value)}[/]"
    return f"[bold]{text}[/]" if rival == race.best_rival else text


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    from rich.table import Table

    from ..reporting.page import ratio

    styles = {"regressed": "bold red", "improved": "green", "new": "cyan", "missing": "yellow", "no common rival": "yellow"}
    table = Table("operator", "size", "direction", "threads", title="times faster than the best rival that both runs have")
    for title in ("before", "after", "change", ""):
        table.add_column(title, justify="right")
    for verdict in verdicts:
        race = verdict.race
        sides = [
            f"{ratio(value)} {rival}" if value is not None else ""
            for value, rival in zip((verdict.before, verdict.after), verdict.rivals, strict=True)
        ]
        change = f"{verdict.change:+.0%}" if verdict.change is not None else ""
        style = styles.get(verdict.state, "")
        table.add_row(race.operator, race.size, race.direction, str(race.threads), *sides, change, verdict.state, style=style)
    return table
