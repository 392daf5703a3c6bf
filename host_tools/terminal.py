"""What every command of the workstation shares: kinds of paths, and the console for tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)


def console() -> Console:
    """Return the console for tables."""
    from rich.console import Console

    return Console()
