"""The devices of an inventory as Prometheus' file_sd reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edge.errors import UsageError
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import agent_address

_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGroup:
    """One entry of file_sd."""

    targets: tuple[str, ...]
    labels: dict[str, str]


def target_groups(devices: Sequence[Device]) -> tuple[TargetGroup, ...]:
    """Return a group for each device: its address, name, groups and labels.

    groups has a comma before, between and behind the names, so that `.*,hall-a,.*` finds one. A
    label of the inventory is called label_NAME, with "_" for what Prometheus does not take.
    """
    return tuple(_group(device) for device in devices)


def bytes_from_groups(groups: Sequence[TargetGroup]) -> bytes:
    """Return the content of the file."""
    return msgspec.json.format(msgspec.json.encode(groups), indent=1) + b"\n"


def _group(device: Device) -> TargetGroup:
    address = agent_address(device)
    labels = {"device": device.name}
    if device.groups:
        labels["groups"] = f",{','.join(device.groups)},"
    if address.scheme != "http":
        labels["__scheme__"] = address.scheme
    if address.prefix:
        labels["__metrics_path__"] = f"{address.prefix}/metrics"
    for name, value in device.labels.items():
        label = f"label_{_NO_LABEL.sub('_', name)}"
        if label in labels:
            raise UsageError(f"device {device.name!r}: two labels become {label}; rename one")
        labels[label] = value
    host = f"[{address.host}]" if ":" in address.host else address.host
    return TargetGroup(targets=(f"{host}:{address.port}",), labels=labels)
