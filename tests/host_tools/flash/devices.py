"""Devices of the tests: a folder as root, and a real sshd on the loopback address."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agents import unused_port
from tests.fakes import DEADLINE_S

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
STAND_IN = Path(__file__).with_name("stand_in_systemctl.py")
HOST = "device"

needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="sshd is missing: NO DEVICE WAS FLASHED; install openssh-server and openssh-client",
)


@dataclass(frozen=True, kw_only=True)
class TestDevice:
    """A device that `ssh -F config device` reaches; root is its file system, port its agent's."""

    __test__ = False
    root: Path
    ssh_config: Path
    port: int


def stop_units(root: Path) -> None:
    """Stop what runs on a device."""
    units = [path.stem for path in (root / "run").glob("*.pid")]
    subprocess.run([str(root / "usr/bin/systemctl"), "stop", *units], check=True)


def make_root(folder: Path) -> Path:
    """Make the root of a device: nothing but a systemctl."""
    program = folder / "usr/bin/systemctl"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


@contextlib.contextmanager
def running_device(
    folder: Path,
    *,
    name: str = HOST,
    address: str = "127.0.0.1",
    inside: Sequence[str] = (),
    port: int | None = None,
) -> Iterator[TestDevice]:
    """Yield a device with its own sshd, host key and authorized key; nothing of it is left.

    name: for ssh. inside: words in front of the sshd's command, which bring it to another network
    where the address is. port: of the agent.
    """
    assert SSHD is not None
    folder.mkdir()
    root = make_root(folder / "root")
    ssh_port = unused_port()
    for key in ("host_key", "client_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
        )
    python = Path(sys.executable).resolve().parent
    (folder / "sshd_config").write_text(
        f"Port {ssh_port}\nListenAddress {address}\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/client_key.pub\nPidFile none\nUsePAM no\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n"
        f"SetEnv PATH=/usr/bin:/bin:{python}\n"
    )
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[{address}]:{ssh_port} {public}")
    config = folder / "ssh_config"
    config.write_text(
        f"Host {name}\n  HostName {address}\n  Port {ssh_port}\n"
        f"  User {pwd.getpwuid(os.getuid()).pw_name}\n  IdentityFile {folder}/client_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen(
            [*inside, SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log
        )
    device = TestDevice(root=root, ssh_config=config, port=port or unused_port())
    try:
        _wait_for_port(address, ssh_port, folder / "sshd.log")
        yield device
    finally:
        server.terminate()
        server.wait(DEADLINE_S)
        stop_units(root)


def _wait_for_port(address: str, port: int, log: Path) -> None:
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        else:
            return


def files_in(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, links as where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
