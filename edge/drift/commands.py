"""`edge-agent drift`: whether what an agent is asked is usual, and a sample of it for training."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edge.config import DEFAULT_URL
from edge.config_options import config_options, given_only
from edge.config_sources import load_config, read_config_file
from edge.console import print_json
from edge.errors import NoAgentError, StorageError, UsageError

MAX_LINES = 5  # of a model


@click.group()
def drift() -> None:
    """Compare what a running agent is asked with what its bundle says is usual."""


@drift.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The agent to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what is known as JSON, by model.")
def status(*, url: str, as_json: bool) -> int:
    """Print the state of every model; exit 1 if one has drifted."""
    from contextlib import closing
    from typing import Any

    import msgspec

    from edge.http_client import AgentClient

    with closing(AgentClient(url)) as client:
        received = client.send("GET", "/telemetry")
    try:
        report = msgspec.json.decode(received.body, type=dict[str, Any])
        found = {model["name"]: model["drift"] for model in report["models"]}
        states = {None if each is None else each["state"] for each in found.values()}
        lines = [line for name, each in found.items() for line in _lines(name, each)]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise NoAgentError(f"{url} is no agent that watches for drift; upgrade it") from error
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(lines))
    return int("drifted" in states)


@drift.command()
@config_options("drift_keep_folder")
@click.option("--model", required=True, help="The model whose inputs are exported.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder to write, which must not exist.",
)
@click.option(
    "--redact",
    multiple=True,
    metavar="INPUT",
    help="Input whose contents are left out, with the answers that follow from it; repeatable.",
)
@click.option(
    "--reference",
    metavar="DIGITS",
    help="First digits of the reference whose inputs are exported; the last one served if left "
    "out. An agent keeps those of the last two.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    *,
    model: str,
    out: Path,
    redact: tuple[str, ...],
    reference: str | None,
    dry_run: bool,
    as_json: bool,
    **flags: object,
) -> None:
    """Write the inputs that the agent has kept, for training and `edge-kit calibrate --data`.

    The agent keeps them if drift_keep_inputs says so, for its user only; it need not run now.
    FOLDER is readable by its owner only: inputs/ holds .npz files, or texts.txt, answers/ what the
    model said, and rows.jsonl the time of each row and whether its window had drifted.
    """
    config = load_config(given_only(flags), os.environ, read_config_file)
    from edge.drift.export import Kept
    from edge.manifest import is_plain_name

    if not is_plain_name(model):
        raise UsageError(f"--model: {model!r} is no name of a model")
    kept = Kept.read(config.drift_keep_folder, model, redact, reference)
    found = kept.summary(redact)
    if os.path.lexists(out):
        raise StorageError(f"{out} exists already; give another name, or remove it")
    if not dry_run:
        kept.write(out, found)
    if as_json:
        print_json(found)
        return
    others = "" if found.left_out == 0 else f"; {found.left_out} damaged or not redactable"
    click.echo(
        f"{out}: {found.rows} inputs, {found.drifted} of windows that drifted, {found.bytes} bytes,"
        f" {found.first} to {found.last}, kept for reference {found.reference} of bundle "
        f"{found.bundle_version}{others}" + ("; not written" if dry_run else "")
    )


def _lines(name: str, report: dict[str, object] | None) -> list[str]:
    if report is None:
        return [f"{name}: not watched, its bundle holds no drift reference"]
    lines = [f"{name}: {report['state']}, {report['detail']}"]
    features = report["features"]
    for each in features[:MAX_LINES] if isinstance(features, list) else []:
        mark = "DRIFT" if each["drifted"] else "ok   "
        psi = "" if each["psi"] is None else f"  psi {each['psi']:.2f}"
        lines.append(
            f"  {mark} {each['name']} ({each['kind']}): {each['statistic']:.3f}, "
            f"p {each['p_value']:.1e}{psi}"
        )
    return lines
