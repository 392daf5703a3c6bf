"""`edge-kit fleet` as it is typed: a device behind a real sshd, and one that nobody reaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.errors import EdgeError, UsageError
from host_tools.cli import cli
from host_tools.fleet.audit import entries
from host_tools.fleet.rollout import AUDIT_NAME
from tests.fakes import DEADLINE_S
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


def put_ssh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of that name before the real one."""
    path = folder / "bin/ssh"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_an_abort_ends_a_rollout_in_another_process_after_the_device_under_way(
    tmp_path: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    put_ssh(tmp_path, f"echo . >{begun}; read line <{go_on}; echo garbage", monkeypatch)
    state = tmp_path / "state"
    names = inventory(tmp_path / "i.yaml", a={}, b={}, c={})
    call = ["rollout", *words, "--inventory", names, "--state", state, "--waves", "100%",
            "--forks", 1, "--halt-on", "failed>9"]  # fmt: skip
    program = Path(sys.executable).with_name("edge-kit")
    command = [str(program), "fleet", *map(str, call), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        begun.read_bytes()  # comes when the first device is under way
        second, _ = fleet(*call, "--resume")
        assert isinstance(second, UsageError)
        assert f"process {process.pid}" in str(second)
        status, said = fleet("abort", "--state", state, "--json")
        told = json.loads(said)
        assert (status, told["phase"], told["process"]) == (0, "running", str(process.pid))
        go_on.write_text("\n")
        output, talk = process.communicate(timeout=DEADLINE_S)
    ended = json.loads(output)
    assert process.returncode == 1, talk.decode()
    assert (ended["phase"], ended["reason"]) == ("aborted", "by hand, in wave 1")
    assert len(ended["results"]) == 1
    events = [entry.event for entry, _ in entries(state / AUDIT_NAME)]
    assert events == ["begin", "wave", "abort asked", "device", "aborted"]
    for more in ([], ["--dry-run"]):
        error, _ = fleet(*call, "--resume", *more)
        assert isinstance(error, UsageError)
        assert "aborted" in str(error)


def test_a_dry_run_of_a_resume_tells_what_is_left_of_the_rollout_in_its_folder(
    tmp_path: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ssh(tmp_path, "echo garbage", monkeypatch)
    names = inventory(tmp_path / "i.yaml", a={}, b={}, c={})
    state = tmp_path / "state"
    call = ["rollout", *words, "--inventory", names, "--state", state, "--waves", "1,100%"]
    assert fleet(*call)[0] == 1
    before = {path: path.read_bytes() for path in state.iterdir()}
    told = json.loads(fleet(*call, "--resume", "--dry-run", "--json")[1])
    assert list(told["results"]) == told["waves"][0]
    refused, _ = fleet(*call, "--dry-run")
    assert isinstance(refused, UsageError)
    assert "give --resume" in str(refused)
    other, _ = fleet(*call, "--resume", "--dry-run", "--only", "a")
    assert isinstance(other, UsageError)
    assert {path: path.read_bytes() for path in state.iterdir()} == before


@pytest.mark.parametrize(
    ("by", "flag"),
    [
        ("ssh", "--follow=stable"), ("ssh", "--wait-minutes=9"), ("ssh", "--channel=c"),
        ("ansible", "--follow=x"), ("ansible", "--channel-keys=k"),
        ("channel", "--deadline-minutes=30"), ("channel", "--again"), ("channel", "--key=k"),
    ],
)  # fmt: skip
def test_a_flag_that_a_way_does_not_use_is_refused(
    tmp_path: Path, words: list[object], by: str, flag: str
) -> None:
    names = inventory(tmp_path / "i.yaml", a={})
    given = words[:1] if by == "channel" else words
    error, _ = fleet("rollout", *given, "--inventory", names, "--by", by, flag, "--dry-run",
                     "--state", tmp_path / "state")  # fmt: skip
    assert isinstance(error, UsageError)
    assert str(error) == f"--by {by} does not use {flag.partition('=')[0]}; leave it out"


def test_a_dry_run_of_an_ansible_project_writes_nothing(
    tmp_path: Path, words: list[object]
) -> None:
    names = inventory(tmp_path / "i.yaml", a={}, b={})
    out = tmp_path / "project"
    call = ["ansible", *words, "--inventory", names, "--out", out, "--waves", "1", "--dry-run"]
    told = json.loads(fleet(*call, "--json")[1])
    assert (told["devices"], told["serial"]) == (["a", "b"], [1, 1])
    assert "would be written" in fleet(*call)[1]
    assert not out.exists()


def test_devices_that_answer_nonsense_fail_each_with_a_reason_in_the_log(
    tmp_path: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program in front of ssh answers as the name of the device says."""
    answers = {
        "garbage": b"\xff\xfe{",
        "empty": b"{}",
        "list": b"[]",
        "kinds": b'{"arch": 1, "pythons": [], "root": null, "free_bytes": "x", "glibc": {}}',
        "escapes": b'{"state": "failed", "reason": "\\u001b[2J\\ud800"}',
        "deep": b'{"arch": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_bytes(answer)
    put_ssh(tmp_path, f'for w; do before=$name; name=$w; if [ "$before" = -- ]; then break; fi; '
            f'done; cat >/dev/null; cat "{tmp_path}/$name"', monkeypatch)  # fmt: skip
    names = inventory(tmp_path / "i.yaml", **{name: {} for name in answers})
    state = tmp_path / "state"
    status, said = fleet("rollout", *words, "--inventory", names, "--state", state, "--waves",
                         "100%", "--halt-on", "failed>99", "--json")  # fmt: skip
    ended = json.loads(said)
    assert (status, ended["reason"]) == (1, "after wave 1: no device of it came out well")
    assert {one["result"] for one in ended["results"].values()} == {"failed"}
    assert set(ended["results"]) == set(answers)
    told = {e.facts["device"]: e.facts["result"]["reason"] for e, _ in entries(state / AUDIT_NAME)
            if e.event == "device"}  # fmt: skip
    assert set(told) == set(answers)
    assert all(reason and reason.isprintable() for reason in told.values())


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
