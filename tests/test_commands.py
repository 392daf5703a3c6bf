"""What every command of both programs has, found by walking them."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from edge.cli import cli as edge_agent
from host_tools.cli import cli as edge_kit

# These serve, record or demonstrate until they are stopped, or speak to a program.
TALKATIVE = {
    "edge-agent build-engine",
    "edge-agent capture",
    "edge-agent serve",
    "edge-kit chat-demo",
    "edge-kit quickstart",
}
# These change a device, a channel, a fleet or a registry; others write new files, as asked.
CHANGING = {
    "edge-agent gate",
    "edge-agent install",
    "edge-agent rollback",
    "edge-agent slots begin",
    "edge-agent slots clean",
    "edge-agent update",
    "edge-kit channel init",
    "edge-kit channel promote",
    "edge-kit channel publish",
    "edge-kit channel refresh",
    "edge-kit channel revoke",
    "edge-kit channel rotate",
    "edge-kit flash",
    "edge-kit fleet abort",
    "edge-kit fleet ansible",
    "edge-kit fleet prometheus",
    "edge-kit fleet rollout",
    "edge-kit register",
    "edge-kit wheelhouse",
}


def walked(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from walked(inner, f"{name} {word}")


COMMANDS = {**dict(walked(edge_kit, "edge-kit")), **dict(walked(edge_agent, "edge-agent"))}


def options(name: str) -> set[str]:
    return {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - TALKATIVE))
def test_a_command_tells_a_program_what_it_tells_people(name: str) -> None:
    assert "--json" in options(name)


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_a_command_that_changes_something_says_first_what_it_would_do(name: str) -> None:
    assert "--dry-run" in options(name)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_and_each_of_its_options_say_what_they_are_for(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
