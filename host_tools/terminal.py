"""What every command of the workstation shares: kinds of paths, and three ways to print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)


def print_json(value: object) -> None:
    """Print a value on standard output, for programs."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1))


def say(line: str) -> None:
    """Print a line on standard error, for people."""
    click.echo(line, err=True)


def console() -> Console:
    """Return the console for tables."""
    from rich.console import Console

    return Console()
