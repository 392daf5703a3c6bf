"""The device script over a real sshd on the loopback address."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import UsageError
from host_tools.flash import ssh as ssh_module
from host_tools.flash.ssh import SSH_OPTIONS, DeviceError, SshDevice, UnreachableError
from tests.agents import unused_port
from tests.fakes import DEADLINE_S
from tests.host_tools.flash.devices import HOST, needs_sshd, running_device

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    with running_device(tmp_path_factory.mktemp("ssh") / "device") as device:
        yield device


@pytest.fixture
def ssh(device):
    return SshDevice(host=HOST, config=device.ssh_config)


def changed(device, folder, *pairs):
    """Return a device whose ssh configuration has other values for some keys."""
    text = device.ssh_config.read_text()
    for key, value in pairs:
        text, count = re.subn(rf"(?m)^  {key} .*$", f"  {key} {value}", text)
        assert count == 1, key
    path = folder / "ssh_config"
    path.write_text(text)
    return SshDevice(host=HOST, config=path)


def test_facts_come_over_ssh_and_nothing_is_written(device, ssh):
    before = sorted(device.root.rglob("*"))
    told = ssh.run("facts", "--root", str(device.root))
    assert told["arch"] == os.uname().machine
    assert told["root"] == (os.getuid() == 0)
    assert sorted(device.root.rglob("*")) == before


def test_what_the_script_refuses_is_an_answer_and_no_error(device, ssh):
    told = ssh.run("apply", str(device.root / "nothing"), "--root", "/nowhere")
    assert told["state"] == "refused"
    assert "send it first" in told["reason"]


def test_files_travel_byte_for_byte(device, ssh):
    content = os.urandom(3_000_000)
    digest = hashlib.sha256(content).hexdigest()
    head = {"path": "wheels/a_b", "size": len(content), "sha256": digest}
    stream = [json.dumps({**head, "offset": 0}).encode() + b"\n", content]
    folder = device.root / "payload; touch 'x'"  # a name that a shell would misread
    assert ssh.run("receive", str(folder), stdin=stream)["files"] == 1
    assert (folder / "wheels/a_b").read_bytes() == content


@pytest.mark.parametrize("host", ["", " ", "-oProxyCommand=x", "a b", "a\nb"])
def test_a_host_that_ssh_could_misread_is_refused(host):
    with pytest.raises(UsageError, match="is not a device"):
        SshDevice(host=host).run("facts")


def test_a_device_that_nobody_answers_for_is_named(device, tmp_path):
    nobody = changed(device, tmp_path, ("Port", unused_port()))
    with pytest.raises(UnreachableError, match=f"{HOST}: .*[Cc]onnection refused") as caught:
        nobody.run("facts")
    assert caught.value.exit_code == 3


def test_a_key_that_the_device_does_not_know_is_told(device, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True
    )
    with pytest.raises(UnreachableError, match="Permission denied"):
        changed(device, tmp_path, ("IdentityFile", tmp_path / "k")).run("facts")


def test_a_device_with_another_host_key_gets_nothing(device, tmp_path):
    known = tmp_path / "known_hosts"
    other = (device.ssh_config.parent / "client_key.pub").read_text()
    port = re.search(r"Port (\d+)", device.ssh_config.read_text())[1]
    known.write_text(f"[127.0.0.1]:{port} {other}")
    with pytest.raises(UnreachableError, match="Host key verification failed"):
        changed(device, tmp_path, ("UserKnownHostsFile", known)).run("facts")


def test_no_question_is_asked_and_a_silent_device_is_given_up_within_15_seconds():
    values = dict(word.split("=") for word in SSH_OPTIONS if "=" in word)
    assert values["BatchMode"] == "yes"
    assert values["ControlMaster"] == "no"
    assert int(values["ConnectTimeout"]) <= 15
    alive = int(values["ServerAliveInterval"]) * (int(values["ServerAliveCountMax"]) + 1)
    assert alive <= 15


def fake_ssh(monkeypatch, folder, script):
    """Put a program of that name before the real one."""
    path = folder / "bin/ssh"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return SshDevice(host="nobody@nowhere")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'sh: python3: not found' >&2; exit 127", "needs Python 3.10"),
        ("cat >/dev/null; echo garbage", "nothing was reported"),
        ("cat >/dev/null; echo '[]'", "nothing was reported"),
        ("echo 'python3 is 3.6; 3.8 is needed' >&2; exit 1", "python3 is 3.6"),
    ],
)
def test_a_device_without_an_answer_is_told_in_one_line(monkeypatch, tmp_path, script, words):
    with pytest.raises(DeviceError, match=words) as caught:
        fake_ssh(monkeypatch, tmp_path, script).run("facts")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 1000", "it said nothing"),
        ("echo 'agent: making' >&2; cat >/dev/null; exec sleep 1000", "agent: making"),
        ("cat >/dev/null; exec >&- 2>&-; exec sleep 1000", "it said nothing"),
    ],
)
def test_a_device_that_does_not_end_is_given_up_and_its_ssh_is_ended(
    monkeypatch, tmp_path, script, words
):
    pid = tmp_path / "pid"
    ssh = fake_ssh(monkeypatch, tmp_path, f"echo $$ >{pid}; {script}")
    begun = time.monotonic()
    with pytest.raises(DeviceError, match=f"not done within the deadline.*{words}"):
        replace(ssh, until=begun + 1).run("facts")
    assert time.monotonic() - begun < DEADLINE_S
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize("pipe", ["1", "2"])
def test_a_device_that_does_not_stop_talking_is_given_up(monkeypatch, tmp_path, pipe):
    pid = tmp_path / "pid"
    ssh = fake_ssh(monkeypatch, tmp_path, f"echo $$ >{pid}; exec cat /dev/zero >&{pipe}")
    with pytest.raises(DeviceError, match="says more than 8 MiB"):
        ssh.run("facts")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize("depth", [10, 100_000])
def test_an_answer_that_is_nested_too_deep_is_no_answer(monkeypatch, tmp_path, depth):
    text = tmp_path / "answer"
    text.write_text("[" * depth + "]" * depth)
    with pytest.raises(DeviceError, match="nothing was reported"):
        fake_ssh(monkeypatch, tmp_path, f"cat >/dev/null; cat {text}").run("facts")


def test_nothing_that_a_device_says_can_steer_a_terminal(monkeypatch, tmp_path):
    hostile = "\x1b[2J\x07\x9b31m\u202e\r\ud800two\nlines"
    text = tmp_path / "answer"
    text.write_text(json.dumps({"reason": hostile, "of": [{hostile: [hostile, 1.5, None, True]}]}))
    talk = tmp_path / "talk"
    talk.write_bytes(b"\x1b]0;title\x07one \xff\xfe\n\x1b[31mtwo\n")
    heard = []
    ssh = fake_ssh(monkeypatch, tmp_path, f"cat >/dev/null; cat {talk} >&2; cat {text}")
    told = ssh.run("facts", say=heard.append)
    texts = [*heard, told["reason"], *told["of"][0], told["of"][0].popitem()[1][0]]
    assert len(texts) == 5
    assert all(text.isprintable() for text in texts)
    assert told["reason"].endswith("two | lines")
    assert heard[1].endswith("two")


def test_a_file_in_the_login_folder_is_no_module_of_the_device(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("runpy", "tempfile", "json", "host_tools"):
        (home / f"{name}.py").write_text("raise SystemExit('shadowed')")
    ssh = fake_ssh(monkeypatch, tmp_path, f'for last; do :; done; cd {home}; exec sh -c "$last"')
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    monkeypatch.setenv("PYTHONPATH", str(home))
    assert ssh.run("facts", "--root", str(tmp_path))["arch"] == os.uname().machine


def test_a_device_finishes_what_it_had_begun_when_the_connection_is_lost(tmp_path):
    """The other end of all pipes is closed in the middle, as sshd does it then."""
    script = tmp_path / "script.pyz"
    done = tmp_path / "done"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("__main__.py", (
            "import sys\n"
            "print('begun', file=sys.stderr, flush=True)\n"
            "sys.stdin.buffer.read()\n"  # until the connection is gone
            "for _ in range(9): print('a step', file=sys.stderr, flush=True)\n"
            "print('{}', flush=True)\n"
            f"open({str(done)!r}, 'x').close()\n"
        ))  # fmt: skip
    command = [sys.executable, "-I", "-c", ssh_module._BOOT, str(len(script.read_bytes()))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(script.read_bytes())
    process.stdin.flush()
    assert process.stderr.readline() == b"begun\n"
    process.stdout.close()
    process.stderr.close()
    process.stdin.close()
    process.wait(DEADLINE_S)
    assert done.exists()


def test_a_machine_without_ssh_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="apt install openssh-client"):
        SshDevice(host="nobody@nowhere").run("facts")


def test_the_words_that_reach_the_device_are_the_ones_that_were_meant(monkeypatch, tmp_path):
    ssh = fake_ssh(monkeypatch, tmp_path, 'for last; do :; done; exec sh -c "$last"')
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    told = ssh.run("facts", "--root", str(tmp_path / "a 'b' $c `d`"))
    assert told["arch"] == os.uname().machine
