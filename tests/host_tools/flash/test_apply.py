"""The steps on a device: what they leave, that they can be repeated, and their ways back."""

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.host_tools.flash.conftest import second
from tests.host_tools.flash.devices import files_in

pytestmark = pytest.mark.slow

UNIT = "edge-agent.service"


def send(payload, folder, needs):
    for file in needs:
        path = folder / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        source = payload.sources[file["path"]]
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())


def test_a_device_asks_for_what_it_lacks_and_ends_serving(bench, first):
    bench.payload.mkdir(parents=True)
    (bench.payload / "payload.json").write_bytes(first.content)
    status, report = bench.apply()
    assert (status, report["state"]) == (4, "needs")
    asked = {file["path"] for file in report["needs"]}
    assert asked == {name for name in first.sources if "/blobs/" not in name}
    assert not (bench.root / "opt").exists()
    send(first, bench.payload, report["needs"])
    status, report = bench.apply()
    assert (status, report["state"]) == (4, "needs")
    asked = {file["path"] for file in report["needs"]}
    assert asked == {name for name in first.sources if "/blobs/" in name}
    assert not (bench.root / "opt/edge-kit/current").exists()
    send(first, bench.payload, report["needs"])
    status, report = bench.apply()
    assert (status, report["state"], report["changed"]) == (0, "done", True)
    assert (bench.served(), bench.agent()) == ("1", "1")
    assert "gate: all checks passed" in bench.lines


def test_what_a_setup_leaves_is_in_its_place_and_nothing_else(bench, first):
    bench.set_up(first)
    agent = first.document.agent
    assert bench.links() == agent
    key = (bench.root / "etc/edge/trusted-keys/release.pub").read_bytes()
    assert key == bench.factory.public.read_bytes()
    config = json.loads((bench.root / "etc/edge/agent.json").read_text())
    assert config == {
        "port": bench.port,
        "slots": str(bench.root / "var/lib/edge"),
        "trusted_keys": str(bench.root / "etc/edge/trusted-keys"),
    }
    left = {
        name
        for name in files_in(bench.root)
        if not name.startswith(("opt/edge-kit/agents", "var/lib/edge/", "run/", "usr/"))
    }
    units = "etc/systemd/system"
    payload = "var/lib/edge-kit/payload"
    assert left == {
        "etc/edge/agent.json",
        "etc/edge/trusted-keys/release.pub",
        f"{units}/{UNIT}",
        f"{units}/edge-setup.service",
        f"{units}/multi-user.target.wants/{UNIT}",
        f"{units}/multi-user.target.wants/edge-setup.service",
        "opt/edge-kit/current",
        "var/lib/edge-kit/lock",
        f"{payload}/payload.json",
        f"{payload}/device_setup.pyz",
        f"{payload}/keys/release.pub",
        f"{payload}/bundle/manifest.json",
        f"{payload}/bundle/manifest.sig",
    }


def test_the_second_time_changes_nothing_and_says_so(bench, first):
    bench.set_up(first)
    before = {path: path.lstat().st_mtime_ns for path in bench.root.rglob("*.*")}
    status, report = bench.apply()
    assert (status, report["state"], report["changed"]) == (0, "done", False)
    assert {step["step"]: step["changed"] for step in report["steps"]} == dict.fromkeys(
        ["check", "keys", "boot unit", "agent", "doctor", "switch", "bundle"], False
    )
    after = {path: path.lstat().st_mtime_ns for path in bench.root.rglob("*.*")}
    assert {path for path in after if after[path] != before.get(path)} == set()


def test_an_upgrade_replaces_agent_and_bundle_and_keeps_the_last_agent(bench, first):
    bench.set_up(first)
    status, report = bench.set_up(second(bench))
    assert (status, report["state"]) == (0, "done")
    assert (bench.served(), bench.agent()) == ("2", "2")
    bench.set_up(second(bench, version="3", bundle="3"))
    assert (bench.served(), bench.agent()) == ("3", "3")
    agents = bench.root / "opt/edge-kit/agents"
    assert len(list(agents.iterdir())) == 2
    assert first.document.agent not in {path.name for path in agents.iterdir()}


def test_a_bundle_that_fails_its_trial_leaves_the_old_one_serving(bench, first):
    bench.set_up(first)
    bad = second(bench, version="1", bundle="bad")
    status, report = bench.set_up(bad)
    assert (status, report["state"]) == (1, "rolled-back")
    assert "p95 is 3.1 times as long" in report["reason"]
    assert (bench.served(), bench.agent()) == ("1", "1")
    assert not (bench.payload / "pending").exists()
    status, report = bench.apply()
    assert (status, report["state"]) == (1, "refused")
    assert "rolled back" in report["reason"]


def test_an_agent_that_does_not_serve_is_taken_back(bench, first):
    bench.set_up(first)
    before = bench.links(), (bench.root / "etc/edge/agent.json").read_bytes()
    bench.factory.config = {"port": bench.port, "warm_up": False}
    status, report = bench.set_up(second(bench, fault="serve"))
    assert (status, report["state"]) == (1, "rolled-back")
    assert "the agent is as before" in report["reason"]
    assert (bench.links(), (bench.root / "etc/edge/agent.json").read_bytes()) == before
    assert bench.served() == "1"
    status, report = bench.set_up(first)
    assert (status, bench.agent()) == (0, "1")


def test_a_bundle_that_was_committed_is_not_installed_again_by_a_later_boot(bench):
    status, report = bench.set_up(second(bench, fault="serve"))
    assert (status, report["state"]) == (1, "failed")
    assert "not ready" in report["reason"]
    assert bench.served() == "2"
    assert not (bench.payload / "pending").exists()


def test_a_device_that_doctor_finds_ill_is_left_alone(bench, first):
    bench.set_up(first)
    ill = second(bench, fault="doctor")
    status, report = bench.set_up(ill)
    assert (status, report["state"]) == (1, "refused")
    assert "doctor: cuda: no driver; install one" in report["reason"]
    assert (bench.links(), bench.served()) == (first.document.agent, "1")
    status, report = bench.apply("--ignore-doctor")
    assert (status, bench.agent()) == (0, "2")


def test_a_dry_run_writes_nothing_and_names_every_step(bench, first):
    before = files_in(bench.root)
    status, report = bench.apply("--dry-run", stdin=first.content, payload="-")
    assert (status, report["state"]) == (0, "done")
    would = {step["step"]: step["changed"] for step in report["steps"]}
    new = dict.fromkeys(["keys", "boot unit", "agent", "switch", "bundle"], True)
    assert would == {"check": False, **new}
    assert files_in(bench.root) == before
    bench.set_up(first)
    before = files_in(bench.root)
    status, report = bench.apply("--dry-run", stdin=first.content, payload="-")
    assert (status, report["changed"]) == (0, False)
    assert files_in(bench.root) == before


def test_keys_and_settings_of_the_operator_stay(bench, first):
    keys = bench.root / "etc/edge/trusted-keys"
    keys.mkdir(parents=True)
    (keys / "mine.pub").write_bytes(b"mine")
    (keys / "release.pub").write_bytes(b"of an earlier release")
    (bench.root / "etc/edge/agent.json").write_text('{"port": 1, "log_level": "debug"}')
    bench.set_up(first)
    config = json.loads((bench.root / "etc/edge/agent.json").read_text())
    assert (config["port"], config["log_level"]) == (bench.port, "debug")
    assert (keys / "mine.pub").read_bytes() == b"mine"
    # What the device may go back to was signed by the key that had this name.
    assert (keys / "release.pub").read_bytes() == b"of an earlier release"
    (beside,) = keys.glob("release-*.pub")
    assert beside.read_bytes() == (bench.payload / "keys/release.pub").read_bytes()
    assert bench.set_up(first)[1]["changed"] is False


def test_a_configuration_that_is_no_json_stops_before_the_switch(bench, first):
    (bench.root / "etc/edge").mkdir(parents=True)
    (bench.root / "etc/edge/agent.json").write_text("{")
    status, report = bench.set_up(first)
    assert (status, report["state"]) == (1, "refused")
    assert "is not JSON" in report["reason"]
    assert not (bench.root / "opt/edge-kit/current").exists()


def test_a_wheel_that_is_cut_is_asked_for_again(bench, first):
    first.write(bench.payload)
    wheel = next(bench.payload.glob("wheels/edge_kit-*"))
    whole = wheel.read_bytes()
    wheel.unlink()
    wheel.with_name(wheel.name + ".part").write_bytes(whole[:10])
    status, report = bench.apply()
    assert status == 4
    assert [(f["path"], f["received"]) for f in report["needs"]] == [(f"wheels/{wheel.name}", 10)]


def test_two_setups_at_once_are_one_too_many(bench, first):
    first.write(bench.payload)
    with (bench.payload.parent / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, report = bench.apply("--wait-s", "0")
    assert (status, report["state"]) == (1, "refused")
    assert "another setup" in report["reason"]


def test_a_setup_waits_for_the_one_under_way_and_says_so(bench, first):
    first.write(bench.payload)
    command = [sys.executable, "-I", str(bench.script), "place", str(bench.payload)]
    with (bench.payload.parent / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = subprocess.Popen([*command, "--root", str(bench.root)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)  # fmt: skip
        with waiting:
            assert "waiting for it" in waiting.stderr.readline()
            fcntl.flock(file, fcntl.LOCK_UN)
            said, _ = waiting.communicate()
    assert (waiting.returncode, said) == (0, "placed\n")


def test_modes_do_not_follow_the_umask_of_the_login(bench, first):
    first.write(bench.payload)
    before = os.umask(0o077)
    try:
        assert bench.apply()[0] == 0
    finally:
        os.umask(before)
    for name in ("etc/edge/trusted-keys", "etc/edge", "opt/edge-kit/agents", "opt/edge-kit"):
        assert (bench.root / name).stat().st_mode & 0o777 == 0o755, name
    agent = bench.root / "opt/edge-kit/current/bin"
    assert (agent / "edge-agent").stat().st_mode & 0o755 == 0o755


@pytest.mark.parametrize("content", [b"[]", b'{"a": "\xff"}', b"7"])
def test_a_configuration_that_cannot_be_merged_with_is_named_and_nothing_is_written(
    bench, first, content
):
    path = bench.root / "etc/edge/agent.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    first.write(bench.payload)
    status, report = bench.apply()
    assert (status, report["state"]) == (1, "refused")
    assert str(path) in report["reason"]
    assert "flash again" in report["reason"]
    assert not (bench.root / "etc/edge/trusted-keys").exists()


def test_a_device_without_systemd_says_that_nothing_serves_the_bundle(bench, first):
    (bench.root / "usr/bin/systemctl").rename(bench.root / "systemctl")
    status, report = bench.set_up(first)
    (bench.root / "systemctl").rename(bench.root / "usr/bin/systemctl")
    assert (status, report["state"]) == (1, "staged")
    assert "no systemd" in report["reason"]


@pytest.mark.parametrize("heard_lines", [0, 3, 6])
def test_a_setup_whose_listener_went_away_ends_all_the_same(bench, first, heard_lines):
    first.write(bench.payload)
    command = [sys.executable, "-I", str(bench.script), "apply", str(bench.payload)]
    process = subprocess.Popen([*command, "--root", str(bench.root), "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.close()
    for _ in range(heard_lines):
        process.stderr.readline()
    process.stderr.close()
    if heard_lines:
        process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert (bench.served(), bench.agent()) == ("1", "1")
    assert not (bench.payload / "pending").exists()
