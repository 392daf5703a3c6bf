"""Flags that take the name of a preset with changes: "imagenet,edge=232,resample=bicubic"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from edge.errors import UsageError


def fields_from_preset(
    flag: str,
    text: str,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    known: Set[str],
    or_file: str,
    read: Callable[[str, str], Any],
) -> dict[str, Any]:
    """Return the fields of a preset, changed as text says.

    known: the keys that may be changed. or_file: what else the flag takes, for the error.
    read: key and text of a change -> value. Raises UsageError.
    """
    name, *changes = text.split(",")
    if name not in presets:
        raise UsageError(f"{flag} {name!r} is neither one of {', '.join(presets)} nor a {or_file}")
    fields = dict(presets[name])
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in known:
            raise UsageError(
                f"{flag} {text}: {change!r} is not KEY=VALUE with a key of "
                f"{', '.join(sorted(known))}"
            )
        fields[key] = read(key, value)
    return fields
