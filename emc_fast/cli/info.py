"""``emc-fast info``: what is installed, what was built, and what serves each operator here."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import import_module, metadata, util
from typing import Any

import typer


def collect() -> dict[str, Any]:
    """Everything that the command prints, as plain data."""
    import torch

    from .._version import __version__
    from ..ops import backend_report
    from ..ops._library import native
    from ..ops._preferences import measurements

    library = native()
    build: dict[str, str] = {}
    if util.find_spec("emc_fast._build_info") is not None:
        module = import_module("emc_fast._build_info")
        build = {key: getattr(module, key) for key in ("version", "compiler", "processor", "built", "isas", "cuda", "cuda_targets")}
    devices = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(i)
        devices.append(f"{torch.cuda.get_device_name(i)}, capability {major}.{minor}")
    return {
        "versions": {
            "emc_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch built for CUDA": torch.version.cuda or "no",
            "triton": _version("triton"),
            "numpy": _version("numpy"),
            "platform": platform.platform(),
        },
        "devices": devices or ["no CUDA device"],
        "cpu": {"threads": torch.get_num_threads(), "torch uses": torch.backends.cpu.get_cpu_capability()},
        "native library": {
            "path": str(library.path),
            "usable": not library.problem,
            "problem": library.problem,
            "instruction set in use": library.isa,
            "float32 precision": library.float32_precision,
            "instruction sets built": library.stamp.get("isas", ""),
            "compiler": library.stamp.get("compiler", ""),
            "CUDA": library.stamp.get("cuda", ""),
            "built": build.get("built", "") if build.get("version") == library.stamp.get("version") else "",
        },
        "operators": [asdict(row) for row in backend_report()],
        "preferences": [asdict(row) for row in measurements().values()],
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(emoji=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {**facts["versions"], "CUDA devices": "; ".join(facts["devices"]), "CPU threads": facts["cpu"]["threads"], "": ""}
    rows |= {f"native: {key}": value for key, value in facts["native library"].items() if value != "" and key != "usable"}
    for key, value in rows.items():
        table.add_row(key, escape(str(value)))
    console.print(table)
    console.print()
    table = Table("operator", "tensors on", "back end", "", "why (in float32)")
    last = ("", "")
    for row in facts["operators"]:
        here = (row["operator"], row["device"])
        state = "[bold green]in use[/]" if row["chosen"] else "[red]no[/]" if row["reason"] else "can serve"
        shown = ("" if row["operator"] == last[0] else row["operator"], "" if here == last else row["device"])
        if last[0] and row["operator"] != last[0]:
            table.add_section()
        table.add_row(*shown, row["backend"], state, escape(row["reason"] or row["source"]))
        last = here
    console.print(table)


def command(as_json: bool = typer.Option(False, "--json", help="Print the facts as JSON.")) -> None:
    """Print versions, what was built for which targets, and which back end serves each operator, with reasons."""
    facts = collect()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)
