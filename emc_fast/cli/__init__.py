"""The command ``emc-fast``: one module of this package per subcommand, each with a function ``command``, or an ``app`` of several.

The modules import nothing heavy at the top, so that ``emc-fast --help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import typer
from rich.console import Console

from .._version import __version__
from ..errors import EmcError

app = typer.Typer(
    name="emc-fast",
    help="Facial reactions that fit: train, generate, look at them, also when a modality is missing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"emc_fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and stop.")) -> None:
    """Hold the options that stand before any subcommand."""


for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        _commands = import_module(f"{__name__}.{_module.name}")
        if hasattr(_commands, "app"):
            app.add_typer(_commands.app, name=_module.name)
        else:
            app.command(_module.name)(_commands.command)


def main() -> None:
    """Run the command line; an expected failure is one message and exit code 2, never a traceback."""
    try:
        app()
    except (EmcError, OSError, ValueError) as error:
        Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(f"error: {error}", style="bold red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        sys.exit(130)
