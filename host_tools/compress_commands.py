"""The commands of `edge-kit` that make a torch model smaller before it is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge.console import print_json
from host_tools.terminal import ANY_PATH, FILE

_Command = Callable[..., None]


def _training(command: _Command) -> _Command:
    """Add the options that both commands have."""
    for option in reversed(
        (
            click.option(
                "--data",
                type=ANY_PATH,
                required=True,
                help="Samples to train on: an .npz file with the model's inputs by name, and "
                '"labels".',
            ),
            click.option(
                "--held-out",
                type=ANY_PATH,
                required=True,
                help="Samples that the accuracy is measured on, after every epoch.",
            ),
            click.option(
                "--epochs",
                type=click.IntRange(1, 1000),
                default=10,
                show_default=True,
                help="Passes over the training samples.",
            ),
            click.option(
                "--batch",
                type=click.IntRange(2, 4096),
                default=64,
                show_default=True,
                help="Samples a step.",
            ),
            click.option(
                "--rate",
                type=click.FloatRange(min=0, min_open=True),
                default=1e-3,
                show_default=True,
                help="Highest learning rate.",
            ),
            click.option(
                "--seed", type=int, default=0, show_default=True, help="Of the sample order."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("source")
@click.option(
    "--pattern",
    type=click.Choice(["magnitude", "2:4"]),
    default="magnitude",
    show_default=True,
    help="The smallest weights, or two of every four, which sparse tensor cores skip.",
)
@click.option(
    "--sparsity",
    type=click.FloatRange(min=0, max=0.99),
    default=0.5,
    show_default=True,
    help="Share of the weights that becomes zero, for magnitude.",
)
@click.option("--state", type=FILE, help="Weights to start from, instead of the factory's.")
@click.option("--out", type=FILE, default="pruned.pt", show_default=True, help="Weights to write.")
@_training
def prune(source: str, as_json: bool, **options: Any) -> None:
    """Prune the model of SOURCE, and fine-tune it for a few epochs.

    SOURCE is package.module:factory. Export the result with `edge-kit export SOURCE --state`.
    """
    from host_tools.progress import progress_bar
    from host_tools.prune import PruneRequest
    from host_tools.prune import prune as run

    request = PruneRequest(source=source, schedule=_schedule(options), **options)
    with progress_bar() as progress:
        report = run(request, progress=progress)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{report.zero_percent:.1f} % of the weights of {report.layers} layers are zero; "
        f"{report.metric} {_value(report.metric, report.before)} before, "
        f"{_value(report.metric, report.after)} after"
    )
    _write_end(report.metric, report.curve, request.out, source)


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.option("--teacher-state", type=FILE, help="Weights of the teacher, if not the factory's.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Class scores are divided by it: higher tells more of the wrong classes.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Of the teacher in the loss; the labels have the rest.",
)
@click.option("--out", type=FILE, default="student.pt", show_default=True, help="Weights to write.")
@_training
def distill(teacher: str, student: str, as_json: bool, **options: Any) -> None:
    """Train the model of STUDENT to answer as the model of TEACHER does.

    Both are package.module:factory. Export the result with `edge-kit export STUDENT --state`.
    """
    from host_tools.distill import DistillRequest
    from host_tools.distill import distill as run
    from host_tools.progress import progress_bar

    request = DistillRequest(
        teacher=teacher, student=student, schedule=_schedule(options), **options
    )
    with progress_bar() as progress:
        report = run(request, progress=progress)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{report.student_parameters:,} parameters instead of {report.teacher_parameters:,}; "
        f"{report.metric} {_value(report.metric, report.after)}, the teacher's "
        f"{_value(report.metric, report.teacher)}"
    )
    _write_end(report.metric, report.curve, request.out, student)


COMPRESS_COMMANDS = (prune, distill)


def _schedule(options: dict[str, Any]) -> Any:
    from host_tools.training import Schedule

    return Schedule(**{name: options.pop(name) for name in ("epochs", "batch", "rate", "seed")})


def _write_end(metric: str, curve: tuple[float, ...], out: Path, source: str) -> None:
    values = " ".join(_value(metric, value) for value in curve)
    click.echo(f"by epoch: {values}")
    click.echo(f"wrote {out}\nnext: edge-kit export {source} --state {out} ...")


def _value(metric: str, value: float) -> str:
    return f"{value:.2f} %" if metric == "top1" else f"{value:.4f}"
