"""`edge-kit fleet` as it is typed: a device behind a real sshd, and one that nobody reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.errors import EdgeError, UsageError
from host_tools.cli import cli
from host_tools.fleet.audit import entries
from host_tools.fleet.rollout import AUDIT_NAME
from tests.host_tools.flash.devices import HOST, needs_sshd, running_device
from tests.host_tools.flash.payloads import Factory, agent_wheels


def fleet(*words: object) -> tuple[int | EdgeError, str]:
    """Run `edge-kit fleet`; an error is returned as it is raised."""
    result = CliRunner().invoke(cli, ["fleet", *map(str, words)], standalone_mode=False)
    if isinstance(result.exception, EdgeError):
        return result.exception, ""
    assert result.exception is None, result.output
    return result.return_value or 0, result.stdout


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """What a rollout to two devices is called with, but for the inventory."""
    factory = Factory(tmp_path / "here")
    house = factory.house("house", agent_wheels())
    return [factory.bundle("bundle"), "--wheelhouse", house, "--key", factory.public]


def inventory(path: Path, **devices: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"devices": devices}))  # JSON is YAML
    return path


def test_a_dry_run_prints_the_waves_and_makes_nothing(tmp_path: Path, words: list[object]) -> None:
    names = inventory(tmp_path / "i.yaml", **{f"line-{n}": {} for n in range(20)})
    state = tmp_path / "state"
    call = ["rollout", *words, "--inventory", names, "--state", state, "--dry-run"]
    status, said = fleet(*call)
    assert status == 0
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "wave 1", "wave 2", "wave 3", "stops after a wave if failed>0",
    ]  # fmt: skip
    assert all(len(line) <= 80 for line in said.splitlines())
    assert not state.exists()
    planned = json.loads(fleet(*call, "--json")[1])
    assert [len(wave) for wave in planned["waves"]] == [1, 1, 18]


def test_devices_are_listed_as_ssh_reaches_them(tmp_path: Path) -> None:
    names = inventory(tmp_path / "i.yaml", b={"host": "10.0.0.1", "port": 22}, a={"user": "u"})
    status, said = fleet("list", "--inventory", names)
    assert status == 0
    assert [line.split()[:2] for line in said.splitlines()] == [["a", "u@a"], ["b", "10.0.0.1"]]


@needs_sshd
@pytest.mark.slow
def test_a_device_out_of_reach_halts_and_the_rollout_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    with running_device(tmp_path / "device") as device:
        factory = Factory(tmp_path / "here", port=device.port)
        config = factory.folder / "agent.json"
        config.write_text(json.dumps(factory.config))
        call: list[object] = [
            "rollout", factory.bundle("bundle"), "--wheelhouse",
            factory.house("house", agent_wheels()), "--key", factory.public, "--config", config,
            "--ssh-config", device.ssh_config, "--state", tmp_path / "state",
            "--waves", "100%", "--halt-on", "unreachable>0", "--json",
        ]  # fmt: skip
        reached = {"host": HOST, "root": str(device.root)}
        gone = inventory(tmp_path / "gone.yaml", one=reached, two={"host": "127.0.0.1", "port": 1})
        status, said = fleet(*call, "--inventory", gone)
        ended = json.loads(said)
        assert (status, ended["phase"]) == (1, "halted")
        results = {name: one["result"] for name, one in ended["results"].items()}
        assert results == {"one": "committed", "two": "unreachable"}

        error, _ = fleet(*call, "--inventory", gone)
        assert isinstance(error, UsageError)
        assert "--resume" in str(error)
        # The second is the first by another name, so that there is somebody to reach.
        back = inventory(tmp_path / "back.yaml", one=reached, two=reached)
        status, said = fleet(*call, "--inventory", back, "--resume")
        ended = json.loads(said)
        assert (status, ended["phase"]) == (0, "done")
        assert ended["results"]["two"]["result"] == "unchanged"
        status, said = fleet("audit", "--state", tmp_path / "state", "--json")
        events = [entry["event"] for entry in json.loads(said)]
        assert (status, events) == (0, [
            "begin", "wave", "device", "device", "halted", "resume", "wave", "device", "done",
        ])  # fmt: skip


def test_an_aborted_rollout_is_not_resumed(tmp_path: Path, words: list[object]) -> None:
    names = inventory(tmp_path / "i.yaml", gone={"host": "127.0.0.1", "port": 1})
    state = tmp_path / "state"
    call = ["rollout", *words, "--inventory", names, "--state", state]
    status, _ = fleet(*call, "--json")
    assert status == 1
    before = (state / AUDIT_NAME).read_bytes()
    status, said = fleet("abort", "--state", state, "--dry-run", "--json")
    assert (status, json.loads(said)["phase"]) == (0, "aborted")
    assert (state / AUDIT_NAME).read_bytes() == before
    assert fleet("abort", "--state", state)[0] == 0
    error, _ = fleet(*call, "--resume")
    assert isinstance(error, UsageError)
    assert "aborted" in str(error)
    (*_, (_, end)) = entries(state / AUDIT_NAME)
    audit = CliRunner().invoke(cli, ["fleet", "audit", "--state", str(state)])
    assert f"the log ends with {end.digest}" in audit.stderr
    assert isinstance(fleet("abort", "--state", tmp_path / "none")[0], UsageError)
    assert not (tmp_path / "none").exists()
