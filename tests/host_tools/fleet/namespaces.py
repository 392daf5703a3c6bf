"""Devices as network namespaces on one bridge: each has its own address, sshd and loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.host_tools.flash.devices import TestDevice, running_device

IP = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
PREFIX = f"ek{os.getpid() % 10_000}"
BRIDGE = f"{PREFIX}br"
NETWORK = "10.213.17"
AGENT_PORT = 8000  # of all: each device has a loopback address of its own
# Asked on the device itself: its agent listens on the loopback address of its own namespace.
_ASK = """
import json, sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""


def can_make_namespaces() -> bool:
    """Whether this machine lets us make a network namespace with a link to it."""
    if IP is None or os.geteuid() != 0:
        return False
    name = f"{PREFIX}try"
    made = _ip("netns", "add", name, may_fail=True)
    linked = made and _ip(
        "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name, may_fail=True
    )
    _ip("netns", "del", name, may_fail=True)
    return linked


@dataclass(frozen=True, kw_only=True)
class Member:
    """One device of the fleet."""

    name: str
    device: TestDevice
    namespace: str
    address: str

    @property
    def state(self) -> dict[str, Any]:
        """What lies in the slots."""
        told: dict[str, Any] = json.loads(
            (self.device.root / "var/lib/edge/state.json").read_bytes()
        )
        return told

    def post(self, path: str, body: object) -> dict[str, Any]:
        """Ask the agent, from the device itself."""
        url = f"http://127.0.0.1:{self.device.port}{path}"
        words = [sys.executable, "-c", _ASK, url, json.dumps(body)]
        ended = subprocess.run([*_inside(self.namespace), *words], capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr.decode()
        told: dict[str, Any] = json.loads(ended.stdout)
        return told

    def unplug(self) -> None:
        """Let every packet to and from the device get lost, as a cable that was pulled does."""
        _ip("link", "set", self.namespace, "down")

    def plug_in(self) -> None:
        """Bring it back."""
        _ip("link", "set", self.namespace, "up")


@dataclass(frozen=True, kw_only=True)
class Net:
    """The whole fleet. ssh_config: reaches every device by its name."""

    members: dict[str, Member]
    ssh_config: Path

    def inventory(self, path: Path) -> Path:
        """Write the inventory of it."""
        devices = {name: {"root": str(member.device.root)} for name, member in self.members.items()}
        path.write_text(json.dumps({"devices": devices}))  # JSON is YAML
        return path


@contextlib.contextmanager
def running_fleet(folder: Path, names: Sequence[str]) -> Iterator[Net]:
    """Yield devices with these names; nothing of them is left."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(_ip, "link", "del", BRIDGE, may_fail=True)
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        members = {}
        for number, name in enumerate(names, start=1):
            namespace, address = f"{PREFIX}n{number}", f"{NETWORK}.{10 + number}"
            stack.callback(_ip, "netns", "del", namespace, may_fail=True)
            _plug(namespace, address)
            inside = _inside(namespace)
            made = running_device(
                folder / name, name=name, address=address, inside=inside, port=AGENT_PORT
            )
            device = stack.enter_context(made)
            members[name] = Member(name=name, device=device, namespace=namespace, address=address)
        config = folder / "ssh_config"
        config.write_text("".join(m.device.ssh_config.read_text() for m in members.values()))
        yield Net(members=members, ssh_config=config)


def _plug(namespace: str, address: str) -> None:
    """Make a namespace with a link to the bridge; the link's end here has the same name."""
    _ip("netns", "add", namespace)
    _ip("link", "add", namespace, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("link", "set", namespace, "master", BRIDGE, "up")
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")


def _inside(namespace: str) -> tuple[str, ...]:
    assert IP is not None
    return (IP, "netns", "exec", namespace)


def _ip(*words: str, may_fail: bool = False) -> bool:
    assert IP is not None
    ended = subprocess.run([IP, *words], capture_output=True, check=False)
    assert may_fail or ended.returncode == 0, (words, ended.stderr.decode())
    return ended.returncode == 0
