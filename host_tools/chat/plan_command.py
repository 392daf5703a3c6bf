"""`edge-kit plan`: whether a chat model fits a device, before it is downloaded or built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge.console import print_json
from edge.errors import UsageError
from edge.files import read_capped
from host_tools.terminal import ANY_PATH, console

if TYPE_CHECKING:
    from rich.table import Table

    from edge.chat.spec import Form
    from host_tools.chat.llm_spec import LlmSpec
    from host_tools.chat.plan import FitPlan
    from host_tools.chat.sizes import Head

MAX_CONFIG_BYTES = 1 << 20
FORMS = ("scatter", "scatter-primitive", "prefix", "concat")


@click.command()
@click.option(
    "--model",
    type=ANY_PATH,
    required=True,
    help="A Hugging Face folder or its config.json; weights are not needed.",
)
@click.option("--target", required=True, metavar="NAME", help="A name of `edge-kit targets`.")
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Positions of a conversation, question and answer. [default: up to 8192, as fits]",
)
@click.option(
    "--lanes", type=click.IntRange(1, 1024), default=4, show_default=True,
    help="Conversations at the same time.",
)  # fmt: skip
@click.option("--form", type=click.Choice(FORMS), help="Of the graph. [default: the target's]")
@click.option(
    "--reserve-gb",
    type=click.FloatRange(min=0),
    help="Memory that others use there, in place of the assumption that is printed.",
)
@click.option(
    "--head",
    type=click.Choice(["int8", "same"]),
    default="same",
    show_default=True,
    help="Of int4: as in `export-chat`; `build` writes the same.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, in bytes.")
def plan(
    model: Path,
    target: str,
    context: int | None,
    lanes: int,
    form: Form | None,
    reserve_gb: float | None,
    head: Head,
    as_json: bool,
) -> int:
    """Say which precision and context of a chat model fit a device, and how fast it can be.

    Ends with exit code 1 if nothing fits.
    """
    from host_tools.chat.fitting import known_device
    from host_tools.chat.plan import Ask, fit_plan

    reserve = None if reserve_gb is None else round(reserve_gb * 1e9)
    ask = Ask(context=context, lanes=lanes, form=form, reserve_bytes=reserve, head=head)
    found = fit_plan(_spec_at(model), known_device(target), ask)
    if as_json:
        print_json(found)
    else:
        _print(found)
    return int(found.recommended is None)


def _spec_at(path: Path) -> LlmSpec:
    """Return the spec of a folder, or of a config.json under any name."""
    from host_tools.chat.llm_spec import llm_spec_from_config, llm_spec_from_folder

    if path.is_dir():
        return llm_spec_from_folder(path)
    if not path.is_file():
        raise UsageError(f"--model {path}: there is no such folder or file")
    content = read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True)
    try:
        config = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UsageError(f"--model {path} is no config.json: {error}") from error
    return llm_spec_from_config(config, where=str(path))


def _print(found: FitPlan) -> None:
    """Print a plan, fit for 80 columns."""
    out = console()
    out.print(_table(found))
    out.print()
    remarks: dict[str, list[str]] = {}
    for row in found.rows:
        if row.remark:
            remarks.setdefault(row.remark, []).append(row.precision)
    lines = [f"{', '.join(precisions)}: {remark}" for remark, precisions in remarks.items()]
    lines += [
        f"usable: {found.supply.assumption}",
        "tokens/s: bandwidth / bytes read for a token, of a conversation that begins and of one "
        "whose lane is full; nothing is faster",
    ]
    for line in lines:
        out.print(line, highlight=False)
    out.print(found.advice, style="bold", highlight=False)


def _table(found: FitPlan) -> Table:
    from rich.table import Table

    from host_tools.chat.plan import gigabytes

    lanes = found.rows[0].lanes
    usable = gigabytes(found.supply.usable_bytes)
    table = Table(
        title=f"{found.device}: {usable} GB usable, lanes: {lanes}; sizes in GB",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("")
    for heading in ("context", "weights", "cache", "work", "total", "longest", "tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("", no_wrap=True)
    for row in found.rows:
        demand = row.demand
        bound = "?"
        if row.tokens_per_s is not None and row.tokens_per_s_full is not None:
            bound = f"{row.tokens_per_s:.0f}-{row.tokens_per_s_full:.0f}"
        table.add_row(
            row.precision,
            str(row.context),
            gigabytes(demand.weights),
            gigabytes(demand.cache),
            gigabytes(demand.workspace + demand.runtime),
            gigabytes(demand.total),
            "-" if row.longest_context is None else str(row.longest_context),
            bound,
            "no" if row.verdict == "not supported" else row.verdict,
            style="" if row.verdict == "fits" else "dim",
        )
    return table
