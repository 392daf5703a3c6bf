"""`edge-agent drift status`: whether what an agent is asked is like what it was packed with."""

from __future__ import annotations

import click

from edge.config import DEFAULT_URL
from edge.console import CommandGroup, print_json
from edge.errors import NoAgentError

MAX_LINES = 5  # of a model


@click.group(cls=CommandGroup)
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
