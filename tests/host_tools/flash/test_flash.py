"""`edge-kit flash` over a real sshd: what travels, what is cut, what is refused.

The agent is `fake_agent`; test_flash_for_real has the real one.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.errors import EdgeError, UsageError
from host_tools.cli import cli
from host_tools.flash import flash as flash_module
from host_tools.flash.flash import flash
from host_tools.flash.ssh import DeviceError, SshDevice, UnreachableError
from tests.agents import unused_port
from tests.fakes import DEADLINE_S
from tests.host_tools.flash.devices import HOST, files_in, needs_sshd, running_device
from tests.host_tools.flash.payloads import Factory, agent_wheels

pytestmark = needs_sshd


@pytest.fixture
def device(tmp_path):
    with running_device(tmp_path / "device") as device:
        yield device


@pytest.fixture
def factory(tmp_path, device):
    return Factory(tmp_path / "here", port=device.port)


@pytest.fixture
def words(device, factory):
    """The command line for a bundle that is good."""
    config = factory.folder / "agent.json"
    config.write_text(json.dumps(factory.config))
    return {
        "host": HOST,
        "bundle": factory.bundle("bundle"),
        "--wheelhouse": factory.house("house", agent_wheels()),
        "--key": factory.public,
        "--config": config,
        "--ssh-config": device.ssh_config,
        "--device-root": device.root,
    }


def run(words, *flags):
    """Run `edge-kit flash`; an error is returned as it is raised."""
    arguments = [str(words["host"]), str(words["bundle"])]
    for name, value in words.items():
        if name.startswith("--"):
            arguments += [name, str(value)]
    result = CliRunner().invoke(cli, ["flash", *arguments, "--json", *flags], standalone_mode=False)
    if isinstance(result.exception, EdgeError):
        return result.exception, None
    assert result.exception is None, result.output
    return result.return_value, json.loads(result.stdout)


@pytest.mark.slow
def test_a_device_is_flashed_then_left_alone_and_then_upgraded(device, factory, words):
    status, report = run(words)
    assert (status, report["state"], report["changed"]) == (0, "done", True)
    assert [step["step"] for step in report["steps"]] == [
        "check", "keys", "boot unit", "agent", "doctor", "switch", "bundle",
    ]  # fmt: skip
    before = files_in(device.root)
    status, report = run(words)
    assert (status, report["state"], report["changed"]) == (0, "done", False)
    after = files_in(device.root)
    assert {name for name in after if after[name] != before.get(name)} <= {
        f"run/{name}" for name in ("edge-agent.service.log", "edge-agent.service.pid")
    }
    words["bundle"] = factory.bundle("bundle-2", scale=3.0, version="2")
    status, report = run(words)
    assert (status, report["state"]) == (0, "done")
    steps = {step["step"]: step["changed"] for step in report["steps"]}
    assert steps["bundle"]
    assert not steps["agent"]


@pytest.mark.slow
def test_only_files_that_are_missing_there_travel(device, factory, words, monkeypatch):
    asked = []
    stream = flash_module._stream

    def seen(sources, entries, tick):
        asked.append([entry["path"] for entry in entries])
        return stream(sources, entries, tick)

    monkeypatch.setattr(flash_module, "_stream", seen)
    run(words)
    first = {path for paths in asked for path in paths}
    assert len(first) == sum(len(paths) for paths in asked)
    asked.clear()
    run(words)
    assert asked == []
    words["bundle"] = factory.bundle("bundle-2", scale=3.0, version="2")
    run(words)
    again = {path for paths in asked for path in paths}
    assert not [path for path in again if path.startswith("wheels/")]
    shared = {p.name for p in (factory.folder / "bundle/blobs/sha256").iterdir()}
    assert not [path for path in again if path.rpartition("/")[2] in shared]
    assert [path for path in again if "/blobs/" in path]


@pytest.mark.slow
def test_a_connection_that_was_cut_is_taken_up_where_it_ended(device, factory, words, monkeypatch):
    payload = factory.payload(words["bundle"], words["--wheelhouse"])
    ssh = SshDevice(host=HOST, config=device.ssh_config)
    stream = flash_module._stream
    # In the script, which is sent again, and then twice in the wheels.
    cuts = iter([5_000, 1 << 40, 100_000, 700_000])
    sent = []

    def cut(sources, entries, tick):
        left = next(cuts, 1 << 40)
        for chunk in stream(sources, entries, tick):
            sent.append(len(chunk[:left]))
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return

    monkeypatch.setattr(flash_module, "_stream", cut)
    for _ in range(3):
        with pytest.raises(DeviceError, match=r"cut at byte.*run the same command again"):
            flash(ssh, payload, root=str(device.root))
    assert flash(ssh, payload, root=str(device.root))["state"] == "done"
    assert sum(sent) - payload_size(payload) < 1 << 18
    assert (device.root / "var/lib/edge/state.json").exists()


def payload_size(payload):
    sources = [payload.content, *payload.sources.values()]
    return sum(len(s) if isinstance(s, bytes) else s.stat().st_size for s in sources)


def unreachable(words, device, folder):
    text = device.ssh_config.read_text().splitlines()
    config = folder / "elsewhere"
    config.write_text(
        "\n".join(f"  Port {unused_port()}" if "  Port" in line else line for line in text)
    )
    words["--ssh-config"] = config


def wrong_key(words, device, folder):
    key = device.ssh_config.parent / "client_key"
    key.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    key.with_name("client_key.pub").unlink()


def no_bundle(words, device, folder):
    words["bundle"] = folder


def unsigned(words, device, folder):
    (Path(words["bundle"]) / "manifest.sig").unlink()


def other_architecture(words, device, folder):
    path = Path(words["--wheelhouse"]) / "wheelhouse.json"
    document = json.loads(path.read_text())
    document["arch"] = "aarch64" if document["arch"] != "aarch64" else "x86_64"
    path.write_text(json.dumps(document))


def other_python(words, device, folder):
    path = Path(words["--wheelhouse"]) / "wheelhouse.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "python": "3.19"}))


def bad_config(words, device, folder):
    Path(words["--config"]).write_text('{"prot": 1}')


def strange_host(words, device, folder):
    words["host"] = "a b"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unreachable, "onnection refused"),
        (wrong_key, "Permission denied"),
        (no_bundle, "manifest.json"),
        (unsigned, "unsigned"),
        (other_architecture, "edge-kit wheelhouse --for"),
        (other_python, "no Python 3.19"),
        (bad_config, "prot"),
        (strange_host, "is not a device"),
    ],
)
def test_what_cannot_work_is_told_in_one_line_and_touches_nothing(
    device, words, tmp_path, spoil, said
):
    spoil(words, device, tmp_path)
    before = files_in(device.root)
    status, report = run(words)
    if isinstance(status, EdgeError):
        reason = str(status)
    else:
        assert (status, report["state"]) == (1, "refused")
        reason = report["reason"]
    assert said in reason
    assert "\n" not in reason
    assert files_in(device.root) == before


def test_a_device_without_space_is_told_before_anything_is_sent(device, words, small_disk):
    words["--device-root"] = small_disk
    status, report = run(words)
    assert (status, report["state"]) == (1, "refused")
    assert "MiB free" in report["reason"]
    assert not list(small_disk.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB, where this machine lets its tests mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here: NO FULL DEVICE WAS FLASHED; run it as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_dry_run_over_ssh_writes_nothing(device, words):
    before = files_in(device.root)
    status, report = run(words, "--dry-run")
    assert (status, report["state"], report["changed"]) == (0, "done", True)
    assert files_in(device.root) == before


def test_an_error_is_json_too_where_a_program_reads(device, words, tmp_path):
    unreachable(words, device, tmp_path)
    arguments = [str(words["host"]), str(words["bundle"])]
    arguments += [str(word) for pair in words.items() if pair[0].startswith("--") for word in pair]
    result = CliRunner().invoke(cli, ["flash", *arguments, "--json"], standalone_mode=False)
    assert isinstance(result.exception, UnreachableError)
    assert json.loads(result.stdout) == {
        "state": "error",
        "error": "unreachable",
        "reason": str(result.exception),
        "exit_code": 3,
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "a"], "a flash without --many does not use --only"),
        (["--forks", "16"], "a flash without --many does not use --forks"),
        (["--resume"], "a flash without --many does not use --resume"),
        (["--image", "/", "--again"], "--image does not use --again"),
        (["--image", "/", "--deadline-minutes", "30"], "--image does not use --deadline-minutes"),
    ],
)
def test_a_flag_that_does_nothing_is_refused(flags, said):
    host = [] if "--image" in flags else ["device"]
    given = ["flash", *host, "bundle", "--wheelhouse", "w", "--key", "k", *flags]
    result = CliRunner().invoke(cli, given, standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == f"{said}; leave it out"


def test_a_device_that_hangs_is_given_up_at_the_deadline(device, words, monkeypatch, tmp_path):
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    words["--deadline-minutes"] = "0.1"
    begun = time.monotonic()
    error, _ = run(words)
    assert isinstance(error, DeviceError)
    assert "--deadline-minutes" in str(error)
    assert time.monotonic() - begun < DEADLINE_S


@pytest.mark.parametrize("arguments", [["BUNDLE"], ["a", "b", "c"], ["a", "b", "--image", "d"]])
def test_too_few_or_too_many_words_are_usage(words, arguments):
    given = ["--wheelhouse", str(words["--wheelhouse"]), "--key", str(words["--key"])]
    result = CliRunner().invoke(cli, ["flash", *arguments, *given])
    assert result.exception is not None
    assert "--image DIR" in str(result.exception)


def test_a_device_that_asks_for_other_files_gets_none(device, words, factory, monkeypatch):
    payload = factory.payload(words["bundle"], words["--wheelhouse"])
    real = SshDevice.run

    def lying(self, *verb, **given):
        if verb[0] == "apply":
            wish = {"path": "/etc/shadow", "size": 1, "sha256": "0", "received": 0}
            return {"state": "needs", "needs": [wish]}
        return real(self, *verb, **given)

    monkeypatch.setattr(SshDevice, "run", lying)
    with pytest.raises(DeviceError, match="/etc/shadow"):
        flash(SshDevice(host=HOST, config=device.ssh_config), payload, root=str(device.root))


def test_an_unreachable_device_ends_with_status_3():
    assert UnreachableError("x").exit_code == 3
