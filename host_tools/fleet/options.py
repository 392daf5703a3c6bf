"""Options that several commands for many devices share."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.core import ParameterSource

from edge.errors import UsageError
from host_tools.terminal import FILE, FOLDER

INVENTORY = click.option(
    "--inventory", type=FILE, required=True, help="YAML file that names the devices."
)
ONLY = click.option("--only", multiple=True, help="A device, or a group of them. Repeatable.")
WAVES = click.option(
    "--waves",
    default="1,10%,100%",
    show_default=True,
    help="Devices reached by each wave, in all.",
)
HALT_ON = click.option(
    "--halt-on",
    default="failed>0",
    show_default=True,
    help='When to stop after a wave, such as "failed>0 or p95>1.2x".',
)
FORKS = click.option(
    "--forks",
    default=16,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Devices at a time.",
)
DEADLINE = click.option(
    "--deadline-minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1, 10_000),
    help="For a device to be set up, all in all; by Ansible for each task.",
)
STATE = click.option(
    "--state",
    type=FOLDER,
    default="rollout",
    show_default=True,
    help="Folder of the rollout: its state and its log.",
)
RESUME = click.option("--resume", is_flag=True, help="Go on where the rollout in --state stopped.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def refuse_given(names: Iterable[str], why: str) -> None:
    """Raise UsageError if one of these options of the running command was written.

    names: of parameters. Also one that was given its default: somebody expects something of it.
    """
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        if option.name in names and source is not ParameterSource.DEFAULT:
            raise UsageError(f"{why} does not use {option.opts[-1]}; leave it out")
