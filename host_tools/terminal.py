"""What every command of the workstation shares: kinds of paths, tables, and who is asking."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)
MAX_TEXT = 300  # characters of what a device says that are shown, unless somebody says otherwise
_UNSEEN = "\ufffd"


def console() -> Console:
    """Return the console for tables."""
    from rich.console import Console

    return Console()


def user_name() -> str:
    """Return the name of who runs this, or the number where a container gives it no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return f"uid {os.getuid()}"


def plain(text: str, most: int = MAX_TEXT) -> str:
    """Return text that a terminal or a page takes as nothing but text, cut to so many characters.

    Escapes, controls, and marks that turn the direction of writing are replaced.
    """
    cut = text if len(text) <= most else text[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else _UNSEEN for char in cut)
