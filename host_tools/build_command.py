"""The command of `edge-kit` that builds engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.console import print_json, say
from edge.errors import UsageError
from host_tools.terminal import ANY_PATH, FILE, FOLDER

if TYPE_CHECKING:
    from host_tools.engine_record import EngineRecord


@click.command()
@click.argument("model", type=ANY_PATH)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="A name of `edge-kit targets`, or `this`. Repeatable.",
)
@click.option("--on", metavar="USER@HOST", help="Build on this machine, over SSH, for itself.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    multiple=True,
    default=["fp16"],
    show_default=True,
    help="Repeatable; int8 needs --int8, int4 is for chat models.",
)
@click.option("--int8", type=FILE, help="Quantized model that `calibrate` wrote from MODEL.")
@click.option(
    "--golden",
    type=ANY_PATH,
    help="Real samples, as for `calibrate --data`: layers near the limits of fp16 stay fp32, and "
    "an engine is tried on them where it can be. Default: random values.",
)
@click.option("--tokenizer", type=ANY_PATH, help="Model folder or tokenizer.json, for text.")
@click.option(
    "--keep-fp32",
    multiple=True,
    metavar="PATTERN",
    help="Shell pattern of node names that stay fp32. Repeatable.",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="TensorRT's optimisation level.",
)
@click.option(
    "--calibration-cache",
    type=FILE,
    help="INT8 from the fp32 MODEL with these ranges instead of --int8; TensorRT up to 10.",
)
@click.option(
    "--dla-core",
    type=click.IntRange(0, 3),
    help="Use this deep learning accelerator of the device that builds.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Of a chat model: tokens of a conversation at most. [default: up to 4096]",
)
@click.option(
    "--lanes", type=click.IntRange(1, 256), help="Of a chat model: conversations at once."
)
@click.option(
    "--chunk",
    type=click.IntRange(2, 4096),
    help="Of a chat model: tokens of a prompt that a step takes at most; fewer need less memory, "
    "more answer long prompts sooner. [default: 512]",
)
@click.option(
    "--adapter",
    multiple=True,
    type=FOLDER,
    help="Of a chat model: LoRA adapter to merge, as for `export-chat`. Repeatable, in this order.",
)
@click.option("--out", type=FOLDER, default="engines", show_default=True, help="Folder to add to.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def build(model: Path, as_json: bool, **options: Any) -> None:
    """Build engines from MODEL for devices; `pack --engines` takes them into a bundle.

    MODEL is an .onnx file that `export` wrote, or the Hugging Face folder of a chat model. Engines
    for RTX cards are built here, GPU or not. A Jetson builds its own when the agent first starts:
    the bundle gets the graphs for that.
    """
    from host_tools.describe import record_line

    records = _chat_records(model, options) if model.is_dir() else _records(model, options)
    if as_json:
        print_json(records)
        return
    for record in records:
        click.echo(record_line(record))
    packed = "EXPORT" if model.is_dir() else str(model)
    click.echo(f"next: edge-kit pack {packed} --engines {options['out']} ...")


def _records(model: Path, options: dict[str, Any]) -> list[EngineRecord]:
    from host_tools.build import BuildOptions, build_engines

    _refuse(options, ("context", "lanes", "chunk", "adapter"), f"{model} is no chat model")
    if "int4" in options["precisions"]:
        raise UsageError("--precision int4 is for chat models; give int8 with --int8")
    return build_engines(BuildOptions(model=model, **options), say=say)


def _chat_records(folder: Path, options: dict[str, Any]) -> list[EngineRecord]:
    from host_tools.chat.build_engines import ChatBuildOptions, build_chat_engines

    unused = ("on", "int8", "golden", "tokenizer", "keep_fp32", "calibration_cache", "dla_core")
    _refuse(options, unused, f"{folder} is a chat model")
    options["adapters"] = options.pop("adapter")
    for name in ("lanes", "chunk"):
        if options[name] is None:
            del options[name]
    return build_chat_engines(ChatBuildOptions(folder=folder, **options), say=say)


def _refuse(options: dict[str, Any], names: tuple[str, ...], why: str) -> None:
    """Take options out that do not go with a model; raises UsageError for one that was given."""
    for name in names:
        if options.pop(name) not in (None, ()):
            raise UsageError(f"--{name.replace('_', '-')} does not go with {why}; leave it out")
