"""`edge-kit chat-demo`: a chat model that talks, trained here in minutes without a download."""

from __future__ import annotations

from pathlib import Path

import click

from edge.console import stop_on_sigterm
from host_tools.terminal import FOLDER, console


@click.command("chat-demo")
@click.option(
    "--out",
    type=FOLDER,
    default="chat-demo-out",
    show_default=True,
    help="Folder to work in; the Hugging Face folder is its `model`.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Train no longer than this. [default: all steps, minutes on two cores]",
)
@click.option("--keep", is_flag=True, help="Leave the agent running, with a page to chat in.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port for --keep.")
def chat_demo(out: Path, minutes: float | None, keep: bool, port: int) -> None:
    """Train a tiny chat model on Python's documentation, pack it, serve it and ask it.

    No download: the text is that of the standard library, of the language reference and of the
    licences that come with Python.
    """
    from host_tools.chat.demo.tour import run_chat_demo

    stop_on_sigterm()
    run_chat_demo(out, minutes=minutes, keep=keep, port=port, console=console())
