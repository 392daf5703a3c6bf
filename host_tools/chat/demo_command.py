"""`edge-kit chat-demo`: a chat model that talks, trained here in minutes without a download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.console import print_json, say, stop_on_sigterm
from host_tools.terminal import FOLDER

if TYPE_CHECKING:
    from host_tools.chat.demo.demo import Demo


@click.command("chat-demo")
@click.option(
    "--out",
    type=FOLDER,
    default="chat-demo-out",
    show_default=True,
    help="Folder to work in; the model goes to its folder `model`.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Train no longer than this. [default: all steps, minutes on two cores]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def chat_demo(out: Path, minutes: float | None, as_json: bool) -> None:
    """Train a tiny chat model on the documentation that comes with Python, and ask it.

    The folder is one of Hugging Face's kind: `edge-kit export` takes it like any other.
    """
    from host_tools.chat.demo.demo import make_demo
    from host_tools.progress import progress_bar

    stop_on_sigterm()
    with progress_bar() as progress:
        demo = make_demo(out / "model", minutes=minutes, say=say, progress=progress)
    print_json(demo) if as_json else _print(demo)


def _print(demo: Demo) -> None:
    from host_tools.chat.demo.demo import QUESTIONS

    report = demo.report
    click.echo(
        f"{report.parameters / 1e6:.1f} M parameters, {report.tokens / 1e6:.1f} M tokens in "
        f"{report.steps} steps, {report.seconds:.0f} s"
    )
    click.echo(
        f"perplexity of held-out docstrings: {report.perplexity_before:,.0f} before, "
        f"{report.perplexity_after:,.0f} after"
    )
    click.echo(
        f"questions answered word by word: {report.known:.0%}, and {report.known_rephrased:.0%} "
        "in words that were never used in training"
    )
    for question, answer in zip(QUESTIONS, demo.answers, strict=True):
        click.echo(f"> {question}\n  {answer}")
    click.echo(f"written to {demo.folder}")
