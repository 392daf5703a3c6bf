"""The keys of the configuration as flags of a command, and as flags for another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from edge.config import CONFIG_KEY, DEFAULT_CONFIG_FILE, AgentConfig, flag_from_key

_Command = TypeVar("_Command", bound=Callable[..., Any])


def config_options(*keys: str) -> Callable[[_Command], _Command]:
    """Give a command --config and one flag per key; all of them are text, or unset."""

    def decorate(command: _Command) -> _Command:
        for key in reversed([key for key in fields(AgentConfig) if key.name in keys]):
            command = _config_option(key)(command)
        return click.option(
            flag_from_key(CONFIG_KEY),
            metavar="PATH",
            help=f"Configuration file. [default: {DEFAULT_CONFIG_FILE}]",
        )(command)

    return decorate


def _config_option(key: Field[Any]) -> Callable[[_Command], _Command]:
    flag = flag_from_key(key.name)
    text = key.metadata["help"]
    if isinstance(key.default, bool):
        return click.option(f"{flag}/--no-{flag[2:]}", key.name, default=None, help=text)
    if key.default is not None:
        text += f" [default: {key.default}]"
    return click.option(flag, key.name, metavar="VALUE", help=text)


def given_only(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flags that were given, as `config.load_config` takes them."""
    return {key: value for key, value in flags.items() if value is not None}


def flags_from_config(config: AgentConfig) -> list[str]:
    """Return the flags that give another process this configuration, whatever its folder."""
    flags = []
    for key in fields(AgentConfig):
        value = getattr(config, key.name)
        if value == key.default:
            continue
        flag = flag_from_key(key.name)
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            flags += [flag, str(value.absolute() if isinstance(value, Path) else value)]
    return flags
