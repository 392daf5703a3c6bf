"""Where the configuration comes from: defaults, a file, the environment and flags.

Precedence: defaults < /etc/edge/agent.json (or --config, EDGE_CONFIG) < EDGE_* < flags. An unknown
key or a bad value is a ConfigError that names the key, where it stands, and the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edge.config import (
    CONFIG_KEY,
    DEFAULT_CONFIG_FILE,
    ENVIRONMENT_PREFIX,
    AgentConfig,
    flag_from_key,
)
from edge.errors import ConfigError, os_reason

MAX_CONFIG_BYTES = 64 << 10
_BOOL_FROM_TEXT = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

ReadFile = Callable[[Path], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """One value as somebody wrote it; name is the key's spelling at that place.

    is_text: whether the place can only hold text, as variables and flags do.
    """

    value: object
    name: str
    source: str
    is_text: bool


def load_config(
    flags: Mapping[str, object], environ: Mapping[str, str], read_file: ReadFile
) -> AgentConfig:
    """Return the configuration that the four places give together.

    flags: the given flags only, by key ("queue_size"), as text or bool.
    read_file: content of the configuration file, None if there is none.
    """
    return _config(_settings(flags, environ, read_file))


def describe_config(
    flags: Mapping[str, object], environ: Mapping[str, str], read_file: ReadFile
) -> dict[str, dict[str, object]]:
    """Return {key: {"value": ..., "source": ...}} as JSON can hold it, in the order of the keys."""
    settings = _settings(flags, environ, read_file)
    config = _config(settings)
    described: dict[str, dict[str, object]] = {}
    for key in _KEYS:
        value = getattr(config, key)
        described[key] = {
            "value": str(value) if isinstance(value, Path) else value,
            "source": settings[key].source if key in settings else "default",
        }
    return described


def read_config_file(path: Path) -> bytes | None:
    """Return the content of path, None if there is no such file; raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {os_reason(error)}") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than the cap of {MAX_CONFIG_BYTES} bytes")
    return content


_KEYS = {key.name: key for key in fields(AgentConfig)}
_HINTS = get_type_hints(AgentConfig)


def _settings(
    flags: Mapping[str, object], environ: Mapping[str, str], read_file: ReadFile
) -> dict[str, _Setting]:
    from_environ = [
        _Setting(value=value, name=name, source=f"environment variable {name}", is_text=True)
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    ]
    from_flags = [
        _Setting(
            value=value, name=flag_from_key(key), source=f"flag {flag_from_key(key)}", is_text=True
        )
        for key, value in flags.items()
    ]
    keys = (*_KEYS, CONFIG_KEY)
    outer = _by_key(from_environ, {ENVIRONMENT_PREFIX + key.upper(): key for key in keys})
    outer |= _by_key(from_flags, {flag_from_key(key): key for key in keys})
    place = outer.pop(CONFIG_KEY, None)
    return _by_key(_file_settings(place, read_file), {key: key for key in _KEYS}) | outer


def _by_key(settings: Iterable[_Setting], key_from_name: Mapping[str, str]) -> dict[str, _Setting]:
    found = {}
    for setting in settings:
        key = key_from_name.get(setting.name)
        if key is None:
            nearest = difflib.get_close_matches(setting.name, key_from_name, n=1, cutoff=0)[0]
            raise ConfigError(
                f"{setting.source}: {setting.name!r} is not a key; the nearest is {nearest!r}"
            )
        found[key] = setting
    return found


def _file_settings(place: _Setting | None, read_file: ReadFile) -> list[_Setting]:
    path = DEFAULT_CONFIG_FILE if place is None else Path(str(place.value))
    content = read_file(path)
    if content is None:
        if place is not None:
            raise ConfigError(f"{place.source}: there is no file {path}")
        return []
    try:
        pairs = json.loads(content, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    # An object arrives as a list of pairs; so does an empty array, which is as good as empty.
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ConfigError(f'{path} does not hold an object; write {{"port": 8000}}')
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path}: key {twice!r} is given twice; keep one")
    return [
        _Setting(value=value, name=name, source=str(path), is_text=False) for name, value in pairs
    ]


def _config(settings: Mapping[str, _Setting]) -> AgentConfig:
    values: dict[str, Any] = {key: _value(key, setting) for key, setting in settings.items()}
    return AgentConfig(**values)


def _value(key: str, setting: _Setting) -> object:
    kinds = get_args(_HINTS[key]) if NoneType in get_args(_HINTS[key]) else (_HINTS[key],)
    kind = kinds[0]
    value = setting.value
    if setting.is_text:
        value = _from_text(kind, value)
    if value is None and NoneType in kinds:
        return None
    metadata = _KEYS[key].metadata
    problem = _problem(kind, value, metadata["low"], metadata["high"])
    if problem is not None:
        place = setting.source
        if setting.name not in place:
            place += f": key {setting.name!r}"
        raise ConfigError(f"{place}: {setting.value!r} {problem}")
    if kind is Path:
        return Path(str(value))
    return float(str(value)) if kind is float else value


def _from_text(kind: Any, value: object) -> object:
    """Return the value a text means for this kind, or the text itself if it means none."""
    if not isinstance(value, str):
        return value
    if kind is bool:
        return _BOOL_FROM_TEXT.get(value.lower(), value)
    if kind in {int, float}:
        try:
            return kind(value)
        except ValueError:
            return value
    return value


def _problem(kind: Any, value: object, low: float | None, high: float | None) -> str | None:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return None if value in choices else f"is not one of {', '.join(choices)}"
    if kind is bool:
        return None if isinstance(value, bool) else "is not true or false"
    if kind in {int, float}:
        numbers = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers):
            return "is not a whole number" if kind is int else "is not a number"
        if low is not None and high is not None and not low <= value <= high:
            return f"is not in {low}..{high}"
        return None
    if not isinstance(value, str) or not value:
        return "is not a path" if kind is Path else "is not a text"
    return None
