"""The commands of `edge-kit` that concern chat models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.console import print_json, say
from host_tools.chat.demo_command import chat_demo
from host_tools.chat.plan_command import plan
from host_tools.terminal import FILE, FOLDER

if TYPE_CHECKING:
    from edge.manifest import Precision


@click.command("export-chat")
@click.argument("folder", type=FOLDER)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "int8", "w8a8", "int4"]),
    show_default="fp32 and int8; fp32 if traced",
    help="Of the weights; w8a8: of activations too. Repeatable: a device serves the fastest "
    "that fits.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Tokens of a conversation at most; default: what the model was made for, up to 32768.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=FOLDER,
    help="LoRA adapter, as PEFT saves it, to merge. Repeatable, in this order.",
)
@click.option(
    "--text",
    type=FILE,
    help="Plain text that the model should be good at: int4 and w8a8 are calibrated on its "
    "beginning, and each precision is judged on its end, by perplexity and divergence from fp32.",
)
@click.option(
    "--head",
    type=click.Choice(["int8", "same"]),
    default="int8",
    show_default=True,
    help="Of int4: the matrix that gives the logits, which int4 costs most, or like the rest.",
)
@click.option(
    "--target",
    metavar="NAME",
    help="A name of `edge-kit targets`: refuse at once what its memory cannot hold.",
)
@click.option(
    "--force", is_flag=True, help="Write precisions that lose too much, or do not fit, as well."
)
@click.option(
    "--trace",
    is_flag=True,
    help="Let torch trace what transformers runs, as for architectures that are not listed above.",
)
@click.option(
    "--compare/--no-compare",
    default=True,
    show_default=True,
    help="Run the model with transformers as well, unless it is too large for that.",
)
@click.option("--out", type=FOLDER, required=True, help="Folder to write; must not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def export_chat(
    folder: Path,
    precisions: tuple[Precision, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Export the chat model of a Hugging Face FOLDER, ready for `pack`.

    Families: Llama, Mistral, Qwen2, Qwen2.5, Qwen3. The weights are read piece by piece, so that
    a model larger than memory can be exported. Other causal language models (Gemma, Phi, GPT-2,
    Mixtral ...) are traced, up to 1.5 billion parameters: they are served in fp32 on the CPU.
    """
    from host_tools.chat.chat_export import ChatExportOptions, usual_precisions
    from host_tools.chat.chat_export import export_chat as write

    precisions = precisions or usual_precisions(folder, trace=options["trace"])
    record = write(ChatExportOptions(folder=folder, precisions=precisions, **options), say=say)
    if as_json:
        print_json(record)
        return
    names = ", ".join(variant.precision for variant in record.variants)
    context_words = f"{record.variants[0].decoder.context:,} tokens of context"
    click.echo(
        f"wrote {options['out']}: {names}, {context_words}; next: edge-kit pack {options['out']}"
    )


CHAT_COMMANDS = (chat_demo, export_chat, plan)
