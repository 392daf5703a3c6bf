"""Pushing by Ansible: the project folder, what events mean, and a real run over a real sshd."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.errors import UsageError
from host_tools.cli import cli
from host_tools.flash.ssh import SSH_OPTIONS
from host_tools.fleet.by_ansible import (
    AnsiblePush,
    inventory_document,
    result_from_event,
    write_project,
)
from host_tools.fleet.inventory import Device
from host_tools.fleet.rollout import DeviceResult
from tests.host_tools.flash.devices import HOST, files_in, needs_sshd, running_device
from tests.host_tools.flash.payloads import Factory, agent_wheels, small_payload

DEVICES = (
    Device(name="one", host="10.0.0.1", user="nvidia", groups=("hall",)),
    Device(name="two", host="10.0.0.2", port=2222, root="/image"),
)


def event(kind: str, task: str = "Apply", host: str = "one", **res: Any) -> dict[str, Any]:
    return {"event": kind, "event_data": {"host": host, "task": task, "res": res}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (event("runner_on_ok"), None),
        (event("runner_on_start"), None),
        ({"event": "playbook_on_stats"}, None),
        (event("runner_on_unreachable", msg="ssh: no route"),
         DeviceResult(result="unreachable", reason="ssh: no route")),
        (event("runner_on_failed", stderr="a\nsudo: a password is required\n", msg="x"),
         DeviceResult(result="failed", reason="Apply: sudo: a password is required")),
        (event("runner_on_failed"), DeviceResult(result="failed", reason="Apply: it said no more")),
        (event("runner_on_ok", "Report", edge_kit_report={"state": "done", "changed": True}),
         DeviceResult(result="committed")),
        (event("runner_on_ok", "Report", edge_kit_report={"state": "rolled-back", "reason": "r"}),
         DeviceResult(result="rolled-back", reason="r")),
        (event("runner_on_ok", "Report", edge_kit_report={"state": "refused", "reason": "old"}),
         DeviceResult(result="failed", reason="old")),
        (event("runner_on_ok", "Report", edge_kit_report="?"),
         DeviceResult(result="failed", reason="the device gave no report")),
    ],
)  # fmt: skip
def test_an_event_ends_a_device_or_does_not(
    given: dict[str, Any], expected: DeviceResult | None
) -> None:
    assert result_from_event(given) == expected


def test_no_connection_is_kept_and_a_dead_one_is_noticed_as_soon_as_by_flash() -> None:
    """A kept connection to a device that went away hangs for minutes."""
    config = configparser.ConfigParser()
    config.read(Path(sys.modules[AnsiblePush.__module__].__file__ or "").parent
                / "playbooks/ansible.cfg")  # fmt: skip
    given = config["ssh_connection"]["ssh_args"].split()
    as_flash = [SSH_OPTIONS[i + 1] for i in range(0, len(SSH_OPTIONS), 2)]
    # A password may be asked for by Ansible itself, so BatchMode is not for it.
    assert sorted(given[1::2]) == sorted(set(as_flash) - {"BatchMode=yes"})
    assert config["ssh_connection"]["retries"] == "0"


def test_ansible_itself_reads_the_inventory_as_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(inventory_document(DEVICES, ssh_config=Path("/c d/config"))))
    program = Path(sys.executable).with_name("ansible-inventory")
    listed = subprocess.run([program, "-i", path, "--list"], capture_output=True, check=True)
    told = json.loads(listed.stdout)
    assert told["hall"]["hosts"] == ["one"]
    shared = {"ansible_ssh_common_args": "-F '/c d/config'"}
    assert told["_meta"]["hostvars"] == {
        "one": {"ansible_host": "10.0.0.1", "ansible_user": "nvidia", "edge_kit_root": "/",
                **shared},
        "two": {"ansible_host": "10.0.0.2", "ansible_port": 2222, "edge_kit_root": "/image",
                **shared},
    }  # fmt: skip


def test_a_project_holds_the_whole_payload_and_is_the_same_when_written_again(
    tmp_path: Path,
) -> None:
    payload = small_payload(tmp_path / "here")
    project = tmp_path / "project"
    write_project(project, payload, DEVICES, waves=(1, 1))
    files = files_in(project)
    assert {"ansible.cfg", "rollout.yml", "inventory.json"} < set(files)
    found = {name.removeprefix("payload/") for name in files if name.startswith("payload/")}
    for archive in ("first.tar", "wheels.tar"):
        found.remove(archive)
        with tarfile.open(project / "payload" / archive) as tar:
            found |= set(tar.getnames())
    # The script lies there for the first look as well.
    assert found == {*payload.sources, "payload.json"}
    write_project(project, payload, DEVICES, waves=(1, 1))
    assert files_in(project) == files
    program = Path(sys.executable).with_name("ansible-playbook")
    checked = subprocess.run(
        [program, "rollout.yml", "--syntax-check"], cwd=project, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_many_needs_an_inventory_and_no_device(tmp_path: Path) -> None:
    (tmp_path / "i.yaml").write_text("devices: {a: {}}")
    for words, said in (
        (["user@device", "bundle", "--many", str(tmp_path / "i.yaml")], "give USER@DEVICE"),
        (["bundle", "--many", str(tmp_path / "i.yaml"), "--ignore-doctor"], "--ignore-doctor"),
    ):
        given = ["flash", *words, "--wheelhouse", str(tmp_path), "--key", "k.pub"]
        result = CliRunner().invoke(cli, given, standalone_mode=False)
        assert isinstance(result.exception, UsageError)
        assert said in str(result.exception)


@needs_sshd
@pytest.mark.slow
def test_devices_are_set_up_left_alone_taken_back_and_out_of_reach(tmp_path: Path) -> None:
    with running_device(tmp_path / "device") as device:
        factory = Factory(tmp_path / "here", port=device.port)
        house = factory.house("house", agent_wheels())
        bundles = {version: factory.bundle(version, version=version) for version in ("1", "bad")}
        one = Device(name="one", host=HOST, root=str(device.root))
        gone = Device(name="gone", host="127.0.0.1", port=1)

        def push(version: str, *devices: Device) -> dict[str, DeviceResult]:
            payload = factory.payload(bundles[version], house)
            way = AnsiblePush(
                payload=payload, forks=4, deadline_s=300.0, ssh_config=device.ssh_config
            )
            return dict(way(devices, 0, lambda: False))

        told = push("1", one, gone)
        assert told["one"] == DeviceResult(result="committed")
        assert told["gone"].result == "unreachable"
        assert "refused" in str(told["gone"].reason)
        before = files_in(device.root / "etc")
        assert push("1", one) == {"one": DeviceResult(result="unchanged")}
        assert files_in(device.root / "etc") == before
        back = push("bad", one)["one"]
        assert back.result == "rolled-back"
        assert "3.1 times" in str(back.reason)


def test_a_task_that_does_not_end_at_a_device_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = tmp_path / "bin/ssh"
    hangs.parent.mkdir()
    hangs.write_text("#!/bin/sh\nexec sleep 20\n")
    hangs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hangs.parent}:{os.environ['PATH']}")
    way = AnsiblePush(payload=small_payload(tmp_path / "here"), forks=4, deadline_s=0.5)
    told = dict(way(DEVICES[:1], 0, lambda: False))["one"]
    assert told.result == "failed"
    assert "Timed out after 1 second" in str(told.reason)


@needs_sshd
@pytest.mark.slow
def test_the_project_runs_without_edge_kit_and_a_check_changes_nothing(tmp_path: Path) -> None:
    with running_device(tmp_path / "device") as device:
        factory = Factory(tmp_path / "here", port=device.port)
        (tmp_path / "i.yaml").write_text(
            json.dumps({"devices": {"one": {"host": HOST, "root": str(device.root)}}})
        )
        config = tmp_path / "agent.json"
        config.write_text(json.dumps(factory.config))
        project = tmp_path / "project"
        words = ["fleet", "ansible", factory.bundle("bundle"), "--inventory", tmp_path / "i.yaml",
                 "--wheelhouse", factory.house("house", agent_wheels()), "--config", config,
                 "--key", factory.public, "--ssh-config", device.ssh_config,
                 "--out", project]  # fmt: skip
        made = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
        assert made.exception is None, made.output

        def play(*more: str) -> str:
            program = Path(sys.executable).with_name("ansible-playbook")
            environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
            ended = subprocess.run(
                [program, "rollout.yml", *more], cwd=project, env=environment, capture_output=True,
                check=False,
            )  # fmt: skip
            assert ended.returncode == 0, ended.stdout.decode()
            return ended.stdout.decode()

        before = files_in(device.root)
        assert "would change" not in play("--check")
        assert files_in(device.root) == before
        assert '"state": "done"' in play()
        assert "changed=0" in play()
