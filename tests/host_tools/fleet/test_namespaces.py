"""A rollout to four devices over real SSH, with real agents: one fails its gate, one disappears."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.capture.capture_file import VERSION, End, Exchange, Head, frame_bytes
from edge.gate.gate import KEPT_REQUESTS
from tests.host_tools.flash.devices import needs_sshd
from tests.host_tools.flash.payloads import ARCH, PYTHON, Factory
from tests.host_tools.fleet.namespaces import (
    AGENT_PORT,
    Member,
    Net,
    can_make_namespaces,
    running_fleet,
)
from tests.models import affine

pytestmark = [needs_sshd, pytest.mark.fleet]
NAMES = ("line-1", "line-2", "line-3", "line-4")
X = np.ones((1, 4), dtype=np.float32)
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X.ravel().tolist()}]}
INFER = "/v2/models/affine/infer"
GONE_S = 15.0
DEADLINE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where the bundles are made and the commands typed."""

    folder: Path
    factory: Factory
    net: Net

    def words(self, bundle: Path, *more: object) -> list[str]:
        inventory = self.net.inventory(self.folder / "inventory.yaml")
        config = self.folder / "agent.json"
        config.write_text(json.dumps({"port": AGENT_PORT, "warm_up": False, "intra_op_threads": 1}))
        program = Path(sys.executable).with_name("edge-kit")
        given = [program, "fleet", "rollout", bundle, "--inventory", inventory, "--wheelhouse",
                 self.folder / "house", "--key", self.factory.public, "--config", config,
                 "--ssh-config", self.net.ssh_config, "--json", *more]  # fmt: skip
        return [str(word) for word in given]

    def roll_out(self, bundle: Path, *more: object) -> tuple[int, dict[str, Any]]:
        ended = subprocess.run(self.words(bundle, *more), capture_output=True, check=False)
        assert ended.returncode in {0, 1}, ended.stderr.decode()
        return ended.returncode, json.loads(ended.stdout)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A fleet whose devices all serve the first bundle."""
    if not can_make_namespaces():
        pytest.skip("no network namespaces here (they need root and iproute2): NO FLEET WAS ROLLED "
                    "OUT; run `make test-fleet` where they are")  # fmt: skip
    folder = tmp_path_factory.mktemp("fleet")
    program = Path(sys.executable).with_name("edge-kit")
    subprocess.run(
        [program, "wheelhouse", "--for", ARCH, "--python", PYTHON, "--extra", "ort",
         "--out", folder / "house"], check=True, capture_output=True,
    )  # fmt: skip
    with running_fleet(folder / "net", NAMES) as net:
        made = Desk(folder=folder, factory=Factory(folder / "here"), net=net)
        first = made.factory.bundle("one", scale=2.0, version="1")
        status, ended = made.roll_out(first, "--waves", "100%", "--state", folder / "first")
        assert (status, ended["phase"]) == (0, "done"), ended
        assert {serves(member) for member in net.members.values()} == {2.0}
        yield made


def serves(member: Member) -> float:
    """Return the scale of the bundle that answers on a device."""
    (y,) = (out for out in member.post(INFER, BODY)["outputs"] if out["name"] == "y")
    return next(s for s in (2.0, 3.0, 9.0) if np.allclose(y["data"], affine(X, scale=s)["y"], 0.1))


def keep_requests(member: Member) -> Path:
    """Put a request on a device, which every bundle to come has to answer alike."""
    asked = Exchange(
        offset_s=0.0, method="POST", path=INFER, headers={"Content-Type": "application/json"},
        body=json.dumps(BODY).encode(), status=200,
        answer_headers={"Content-Type": "application/json"}, latency_s=0.01,
        answer=json.dumps(member.post(INFER, BODY)).encode(),
    )  # fmt: skip
    head = Head(version=VERSION, created="2026-01-01T00:00:00+00:00", agent="1", share=1, redact=())
    end = End(reason="time", dropped=0, unredactable=0)
    path = member.device.root / "var/lib/edge" / KEPT_REQUESTS
    path.write_bytes(b"".join(map(frame_bytes, (head, asked, end))))
    return path


def test_a_device_that_fails_its_gate_halts_the_rollout_and_the_next_wave_is_untouched(
    desk: Desk,
) -> None:
    bundle = desk.factory.bundle("two", scale=9.0, version="2")
    state = ("--state", desk.folder / "second", "--waves", "2,100%", "--forks", "1")
    _, planned = desk.roll_out(bundle, *state, "--dry-run")
    good, bad, *others = (desk.net.members[name] for wave in planned["waves"] for name in wave)
    kept = keep_requests(bad)
    before = {member.name: (member.state, payload_of(member)) for member in others}
    status, ended = desk.roll_out(bundle, *state, "--halt-on", "failed>0 or p95>1.2x")
    assert (status, ended["phase"]) == (1, "halted"), ended
    assert ended["reason"].startswith("after wave 1: failed>0")
    results = {name: one["result"] for name, one in ended["results"].items()}
    assert results == {good.name: "committed", bad.name: "rolled-back"}
    assert "requests differ" in ended["results"][bad.name]["reason"]
    assert (serves(good), serves(bad)) == (9.0, 2.0)
    (refused,) = bad.state["refused"]
    assert refused["id"] == ended["bundle"]
    assert before == {member.name: (member.state, payload_of(member)) for member in others}
    assert [serves(member) for member in others] == [2.0, 2.0]
    kept.unlink()


def payload_of(member: Member) -> bytes:
    return (member.device.root / "var/lib/edge-kit/payload/payload.json").read_bytes()


@pytest.mark.parametrize(("by", "name"), [("ssh", "line-1"), ("ansible", "line-2")])
def test_a_device_that_drops_off_the_network_is_unreachable_and_comes_with_the_next_run(
    desk: Desk, by: str, name: str
) -> None:
    bundle = desk.factory.bundle(f"three-{by}", scale=3.0, version=f"3 {by}")
    member = desk.net.members[name]
    words = ("--state", desk.folder / f"gone-{by}", "--only", name, "--by", by)
    with subprocess.Popen(
        desk.words(bundle, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        await_trial(member, process)
        member.unplug()
        unplugged = time.monotonic()
        try:
            output, talk = process.communicate(timeout=DEADLINE_S)
        finally:
            member.plug_in()
    assert time.monotonic() - unplugged <= GONE_S, talk.decode()
    ended = json.loads(output)
    assert process.returncode == 1
    assert ended["results"][name]["result"] == "unreachable", ended
    status, ended = desk.roll_out(bundle, *words, "--resume")
    assert (status, ended["phase"]) == (0, "done"), ended
    assert ended["results"][name]["result"] in {"committed", "unchanged"}
    assert serves(member) == 3.0


def await_trial(member: Member, process: subprocess.Popen[bytes]) -> None:
    """Wait until a device is in the middle of it: a bundle is on trial."""
    until = time.monotonic() + DEADLINE_S
    while (member.state.get("candidate") or {}).get("phase") != "trial":
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
