"""Agents found without an inventory: every address of given ranges is asked on the agent's port.

An agent answers nothing but HTTP, so there is nothing to listen for. Ranges are given, and small:
who asks addresses that are not his own looks like an attacker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from edge.errors import UsageError
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import DeviceStatus

MAX_ADDRESSES = 4096


def devices_in_ranges(ranges: Sequence[str], *, port: int) -> tuple[Device, ...]:
    """Return a device for every address of ranges such as 10.0.0.0/24, named by its address.

    Raises UsageError for what is no range, or for more than MAX_ADDRESSES in all.
    """
    found: dict[str, None] = {}
    for text in ranges:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise UsageError(f"--discover {text!r} is no range: {error}; write 10.0.0.0/24") from (
                error
            )
        if network.num_addresses > MAX_ADDRESSES:
            raise UsageError(
                f"--discover {text} has {network.num_addresses} addresses, more than "
                f"{MAX_ADDRESSES}; give smaller ranges, such as those of one hall"
            )
        found.update(dict.fromkeys(map(str, network.hosts())))
    if len(found) > MAX_ADDRESSES:
        raise UsageError(f"--discover: {len(found)} addresses in all, more than {MAX_ADDRESSES}")
    return tuple(Device(name=host, host=host, url=_url(host, port)) for host in found)


def is_agent(status: DeviceStatus) -> bool:
    """Return whether what was asked is an agent, and not another server or nobody."""
    return status.facts is not None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
