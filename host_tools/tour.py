"""What the tours share (`quickstart`, `chat-demo`): the commands a user types, and a folder."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from edge.agent_process import LOG_NAME, agent_process, script
from edge.errors import EdgeError, UsageError
from edge.files import storage_errors

SERVE_FLAGS = ("--bundle", "bundle", "--trusted-keys", "keys")


class TourError(EdgeError):
    """A step of a tour failed; its own message is above this one."""

    code = "tour"


class Tour:
    """Runs commands in a folder, each printed before it runs."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console

    def step(self, *words: str) -> None:
        """Run a command of this installation; raises TourError if it fails."""
        self.show(words)
        command = [script(words[0]), *words[1:]]
        status = subprocess.run(command, cwd=self.folder, check=False).returncode
        if status != 0:
            raise TourError(f"`{shlex.join(words)}` ended with exit code {status}; see above")

    def show(self, words: Sequence[str]) -> None:
        """Print a command."""
        line = f"\n$ {shlex.join(words)}"
        self.console.print(line, style="bold", highlight=False, soft_wrap=True)

    def keep_serving(self, port: int, hints: Sequence[str]) -> None:
        """Serve the bundle until Ctrl-C; hints: lines for people, {url} is where it is served."""
        flags = [*SERVE_FLAGS, "--port", str(port)]
        self.show(["edge-agent", "serve", *flags])
        with agent_process(self.folder, flags) as (url, process):
            self.console.print(f"\nserving at {url} until Ctrl-C:", style="bold")
            for hint in hints:
                self.console.print(f"  {hint.format(url=url)}", highlight=False, soft_wrap=True)
            with contextlib.suppress(KeyboardInterrupt):
                status = process.wait()
                log = self.folder / LOG_NAME
                raise TourError(f"the agent ended with {status}; {log} says why")


def require_free(port: int) -> None:
    """Refuse a port in use before minutes of work."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UsageError(f"port {port} is in use; give another one with --port") from error


def make_empty(folder: Path, *, marker: str) -> None:
    """Make a folder anew; raises UsageError for one with files and without the marker."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / marker).exists():
            raise UsageError(f"{folder} holds other files; give an empty folder with --out")
        shutil.rmtree(folder)
    with storage_errors("create", folder):
        folder.mkdir(parents=True)
        (folder / marker).touch()
