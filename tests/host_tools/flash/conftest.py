"""A device without SSH, for the steps that are taken on it."""

import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from host_tools.flash.script import device_script
from tests.agents import unused_port
from tests.host_tools.flash.devices import make_root, stop_units
from tests.host_tools.flash.payloads import Factory, agent_wheels


@dataclass
class Bench:
    """A device without SSH, and what makes payloads for it."""

    factory: Factory
    root: Path
    script: Path
    port: int
    lines: str = ""

    @property
    def payload(self):
        return self.root / "var/lib/edge-kit/payload"

    def apply(self, *words, stdin=b"", payload=None):
        """Run one round; return its status and report."""
        command = [sys.executable, "-I", str(self.script), "apply", str(payload or self.payload)]
        result = subprocess.run(
            [*command, "--root", str(self.root), "--json", "--ready-s", "10", *words],
            capture_output=True,
            input=stdin,
        )
        self.lines = result.stderr.decode()
        assert result.stdout, self.lines
        return result.returncode, json.loads(result.stdout)

    def set_up(self, payload, *words):
        payload.write(self.payload)
        return self.apply(*words)

    def agent(self):
        """Return the version of the agent that serves, None if nobody does."""
        url = f"http://127.0.0.1:{self.port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.headers["Agent"]
        except OSError:
            return None

    def served(self):
        state = json.loads((self.root / "var/lib/edge/state.json").read_text())
        return state["a"]["version"] if state["committed"] else None

    def links(self):
        return (self.root / "opt/edge-kit/current").readlink().name


@pytest.fixture
def bench(tmp_path):
    port = unused_port()
    script = tmp_path / "device_setup.pyz"
    script.write_bytes(device_script())
    root = make_root(tmp_path / "root")
    yield Bench(Factory(tmp_path / "here", port=port), root, script, port)
    stop_units(root)


@pytest.fixture
def first(bench):
    """The payload of the first agent and bundle."""
    return bench.factory.payload(
        bench.factory.bundle("bundle-1", version="1"),
        bench.factory.house("house-1", agent_wheels()),
    )


def second(bench, *, version="2", fault="", bundle="2"):
    """Return the payload of another agent and another bundle."""
    wheels = agent_wheels(version, fault)
    return bench.factory.payload(
        bench.factory.bundle(f"bundle-{bundle}", scale=3.0, version=bundle),
        bench.factory.house(f"house-{version}{fault}", wheels),
    )
