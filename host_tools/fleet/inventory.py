"""The inventory: one YAML file that names every device, for flashing and for looking at them.

defaults: {user: nvidia}
devices:
line-1: {host: 10.0.0.11, groups: [hall-a], labels: {camera: left}}
line-2: {host: 10.0.0.12, port: 2222}
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.files import read_capped

MAX_INVENTORY_BYTES = 8 << 20
MAX_DEVICES = 100_000
DEFAULT_PORT = 22
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:%_-]{0,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. host, port, user: as for ssh. url: of its agent, where it is not the default one.

    root: of the system on the device. groups, labels: for choosing devices, and for people.
    """

    name: str
    host: str
    user: str | None = None
    port: int = DEFAULT_PORT
    url: str | None = None
    root: str = "/"
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


_KEYS = tuple(key.name for key in fields(Device) if key.name != "name")


def read_inventory(path: Path) -> tuple[Device, ...]:
    """Return the devices of an inventory, by name.

    Raises UsageError naming the device and the key, StorageError if the file cannot be read.
    """
    return inventory_from_text(read_capped(path, max_bytes=MAX_INVENTORY_BYTES, follow_links=True),
                               name=str(path))  # fmt: skip


def inventory_from_text(content: bytes, *, name: str) -> tuple[Device, ...]:
    """Return the devices that content describes; raises UsageError naming the place in it."""
    import yaml

    try:
        # Anchors could make a small file a large one, so no loader but this plain one.
        document = yaml.load(content, Loader=_plain_loader())  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not isinstance(document.get("devices"), dict):
        raise UsageError(f"{name} has no devices; write devices: {{line-1: {{host: 10.0.0.11}}}}")
    for key in document:
        if key not in {"devices", "defaults"}:
            raise UsageError(f"{name}: {key!r} is not a key here; write devices or defaults")
    defaults = document.get("defaults") or {}
    devices = document["devices"]
    if len(devices) > MAX_DEVICES:
        raise UsageError(f"{name} has {len(devices)} devices, more than {MAX_DEVICES}")
    base = _checked(f"{name}: defaults", defaults)
    found = []
    for device, given in devices.items():
        place = f"{name}: device {device!r}"
        if not isinstance(device, str) or _NAME.fullmatch(device) is None:
            raise UsageError(f"{place}: use letters, digits, '.', '-' and '_', at most 64")
        values = {**base, **_checked(place, given or {})}
        found.append(Device(name=device, **{"host": device, **values}))
    return tuple(sorted(found, key=lambda device: device.name))


def chosen(devices: tuple[Device, ...], names: tuple[str, ...]) -> tuple[Device, ...]:
    """Return the devices with these names, or in groups of these names; all if there are none.

    Raises UsageError for a name that is neither, with the nearest.
    """
    known = {device.name for device in devices} | {g for d in devices for g in d.groups}
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise UsageError(f"the inventory has no device or group {name!r}{hint}")
    if not names:
        return devices
    return tuple(d for d in devices if d.name in names or set(d.groups) & set(names))


def _checked(place: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UsageError(f"{place}: write keys and values, such as {{host: 10.0.0.11}}")
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _KEYS:
            nearest = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0)[0]
            raise UsageError(f"{place}: {key!r} is not a key; the nearest is {nearest!r}")
        problem = _problem(key, value)
        if problem is not None:
            raise UsageError(f"{place}: {key}: {value!r} {problem}")
        values[key] = tuple(value) if key == "groups" else value
    return values


def _problem(key: str, value: Any) -> str | None:
    if key == "port":
        is_port = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16
        return None if is_port else "is no port"
    if key == "groups":
        fits = isinstance(value, list) and all(
            isinstance(v, str) and _NAME.fullmatch(v) for v in value
        )
        return None if fits else "is no list of plain names"
    if key == "labels":
        fits = isinstance(value, dict) and all(
            isinstance(v, str) for kv in value.items() for v in kv
        )
        return None if fits else "is no table of texts"
    if not isinstance(value, str) or not value:
        return "is no text"
    # What begins with a dash would be an option of ssh.
    if key in {"host", "user"} and _HOST.fullmatch(value) is None:
        return "is no name or address"
    if key == "host" and ":" in value and not _is_ipv6(value):
        return "is no IPv6 address, which is written without brackets; a port is a key of its own"
    # Braces would be a template of Ansible.
    if key == "root" and not re.fullmatch(r"/[^{}\s]*", value):
        return "is no absolute path, or has spaces or braces"
    if key == "url" and re.fullmatch(r"https?://[^\s]+", value) is None:
        return "is no http address"
    return None


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _plain_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # the library is not typed
        """No anchors, and no key twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("anchors are not read here; write the value again")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if not isinstance(name, str) or name in seen:
                    raise yaml.YAMLError(f"key {name!r} is given twice, or is no text")
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Loader
