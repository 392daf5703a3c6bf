"""The command line of the workstation: `edge-kit VERB`.

Each command only parses and prints; the work is imported when it runs, so that `--help` needs
nothing but click.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edge import __version__
from edge.console import (
    CommandGroup,
    configure_logging,
    print_json,
    run_command_line,
    say,
    stop_on_sigterm,
)
from host_tools.build_command import build
from host_tools.bundle_commands import BUNDLE_COMMANDS
from host_tools.channel.commands import channel
from host_tools.chat_commands import CHAT_COMMANDS
from host_tools.compress_commands import COMPRESS_COMMANDS
from host_tools.flash.commands import FLASH_COMMANDS
from host_tools.fleet.commands import fleet
from host_tools.profile_command import profile
from host_tools.terminal import ANY_PATH, FILE, FOLDER, console


@click.group(
    cls=CommandGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="edge-kit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """From a trained PyTorch model to a signed INT8 bundle.

    export -> calibrate -> build -> keygen -> pack -> verify; `edge-kit quickstart` shows the
    whole way.
    """
    configure_logging("debug" if debug else "warning", os.environ)


@cli.command()
@click.argument("source")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="Profile of one input, e.g. image=1x3x224x224:8x3x224x224:32x3x224x224. Repeatable.",
)
@click.option(
    "--target",
    type=click.Choice(["any", "jetpack5", "jetpack6", "jetpack7", "rtx", "cpu"]),
    default="any",
    show_default=True,
    help="What must read the file; sets the opset and the exporter.",
)
@click.option("--opset", type=click.IntRange(13, 20), help="Overrides the target's opset.")
@click.option(
    "--task",
    type=click.Choice(["image-classification", "text-classification", "feature-extraction"]),
    help="Of a Hugging Face folder, where its config.json does not tell.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-4,
    show_default=True,
    help="Largest relative error of ONNX Runtime against PyTorch, per output.",
)
@click.option(
    "--image",
    metavar="STEPS",
    help="How images become the input: unit, imagenet, inception, clip, yolo or bytes, each with "
    ",KEY=VALUE changes, or a preprocessor_config.json. A Hugging Face folder has its own.",
)
@click.option("--state", type=FILE, help="Weights that `prune` or `distill` wrote, for a factory.")
@click.option("--out", type=FILE, default="model.onnx", show_default=True, help="File to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(source: str, shapes: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Export SOURCE to ONNX and compare the result with PyTorch.

    SOURCE is package.module:factory, a Hugging Face model folder, or an .onnx file.
    """
    from host_tools.export import ExportRequest, export_model

    request = ExportRequest(source=source, shapes=shapes, out=out, **options)
    report = export_model(request, say=say)
    print_json(report) if as_json else click.echo(report.summary())


@cli.command()
@click.argument("model", type=FILE)
@click.option(
    "--data",
    type=ANY_PATH,
    required=True,
    help="Samples: an .npz file, a folder of them or of images (a folder a class gives labels), a "
    ".txt file with one text a line, or package.module:function that iterates over batches.",
)
@click.option("--labels", type=FILE, help="Class numbers of the held-out samples: .npy or .txt.")
@click.option(
    "--held-out",
    type=ANY_PATH,
    help="Samples for the accuracy gate; default: the last fifth of --data.",
)
@click.option("--tokenizer", type=ANY_PATH, help="Model folder or tokenizer.json, for text.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    help="auto tries all and keeps the best by SQNR; or minmax, moving-average, trimmed-max, "
    "percentile-99.999, percentile-99.99, percentile-99.9, entropy, mse.",
)
@click.option(
    "--keep-float",
    multiple=True,
    metavar="PATTERN",
    help="Shell pattern of node names that stay float. Repeatable.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Samples a run; bounds the memory.",
)
@click.option(
    "--max-top1-drop",
    type=float,
    default=0.5,
    show_default=True,
    help="Gate with labels: points of top-1 accuracy that int8 may lose.",
)
@click.option(
    "--min-cosine",
    type=float,
    default=0.98,
    show_default=True,
    help="Gate without labels: lowest mean cosine to fp32.",
)
@click.option(
    "--min-agreement",
    type=float,
    default=99.0,
    show_default=True,
    help="Gate without labels, for classifiers: percent of samples with the same top class.",
)
@click.option(
    "--budget",
    metavar="METRIC=LIMIT",
    help="Keep as few layers float as this needs: top1=0.5 (points lost), cosine=0.99, sqnr=20, "
    "or module:function=LIMIT.",
)
@click.option(
    "--report",
    type=FILE,
    help="Write a page for people: methods, layers, histograms. Written even if the gate refuses.",
)
@click.option(
    "--calibration-cache",
    type=FILE,
    help="Also write the ranges as a TensorRT calibration cache, for DLA and INT8 without Q/DQ.",
)
@click.option("--out", type=FILE, help="File to write; default: MODEL with .int8.onnx.")
@click.option("--json", "as_json", is_flag=True, help="Print the calibration table as JSON.")
def calibrate(model: Path, budget: str | None, as_json: bool, **options: Any) -> None:
    """Quantize MODEL to INT8, and refuse if that costs too much accuracy.

    Writes the model with explicit Q/DQ and its calibration table, or nothing: exit code 1 means
    that the accuracy gate said no.
    """
    from calibration.budget import REASON, budget_from_text
    from calibration.gate import Gate
    from calibration.table import ort_path, table_path
    from host_tools.calibrate import CalibrateRequest, calibrate_file
    from host_tools.describe import accuracy_lines, cost_line

    gate = Gate(
        max_top1_drop=options.pop("max_top1_drop"),
        min_cosine=options.pop("min_cosine"),
        min_agreement_percent=options.pop("min_agreement"),
    )
    limit = None if budget is None else budget_from_text(budget)
    request = CalibrateRequest(model=model, gate=gate, budget=limit, **options)
    table, path = calibrate_file(request, say=say)
    if as_json:
        print_json(table)
        return
    click.echo("methods, by SQNR of the outputs:")
    for name, score in sorted(table.sqnr_db.items(), key=lambda item: -item[1]):
        click.echo(f"  {name:<18}{score:.1f} dB{'  kept' if name == table.method else ''}")
    for name, gain in table.gains_db.items():
        click.echo(f"  {name}: {gain:+.1f} dB")
    for file, form, accuracy in (
        (path, "for TensorRT", table.tensorrt.accuracy),
        (ort_path(path), "for ONNX Runtime", table.ort.accuracy),
    ):
        click.echo(f"{file}, int8 {form}, against fp32:")
        for line in accuracy_lines(accuracy):
            click.echo(line)
    click.echo(cost_line(table.cost))
    kept = [name for name, reason in table.kept_float.items() if reason == REASON]
    if budget is not None:
        few = ", ".join(kept[:5]) + (", ..." if len(kept) > 5 else "")
        click.echo(
            f"budget {budget}: {len(kept)} of {len(table.sensitivity_db)} nodes stay float ({few})"
            if kept
            else f"budget {budget}: kept with every node in int8"
        )
    click.echo(f"wrote both and {table_path(path)}")


@cli.command()
@click.argument("model", type=FILE)
@click.option(
    "--target",
    type=click.Choice(["any", "jetpack5", "jetpack6", "jetpack7", "rtx"]),
    default="any",
    show_default=True,
    help="What must read the file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def lint(model: Path, target: str, as_json: bool) -> int:
    """Look in MODEL for what TensorRT would refuse or run slowly; exit 1 on errors."""
    from calibration.lint import lint as find
    from calibration.model_file import load_model

    findings = find(load_model(model), target)  # type: ignore[arg-type]  # click has checked it
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        print_json(findings)
        return int(errors > 0)
    for finding in findings:
        click.echo(f"{finding.level}: {finding.node}: {finding.message} [{finding.code}]")
    click.echo(f"{model}: {errors} errors, {len(findings) - errors} warnings for {target}")
    return int(errors > 0)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def targets(as_json: bool) -> None:
    """List the devices that `build --target` knows, and where their engines are built."""
    from edge.devices import DEVICES
    from host_tools.describe import print_targets

    print_json(DEVICES) if as_json else print_targets(DEVICES, console())


@cli.command()
@click.option(
    "--out", type=FOLDER, default="quickstart-out", show_default=True, help="Folder to work in."
)
@click.option("--keep", is_flag=True, help="Leave the agent running and print three curl lines.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port for --keep.")
def quickstart(out: Path, keep: bool, port: int) -> None:
    """Train, export, calibrate, pack, serve and compare a small CNN: minutes, no GPU."""
    from host_tools.quickstart import run_quickstart

    stop_on_sigterm()
    run_quickstart(out, keep=keep, port=port, console=console())


for _command in (
    *BUNDLE_COMMANDS,
    *CHAT_COMMANDS,
    *COMPRESS_COMMANDS,
    *FLASH_COMMANDS,
    fleet,
    build,
    channel,
    profile,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the console script `edge-kit`."""
    run_command_line(cli, "edge-kit")
