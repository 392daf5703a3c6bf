"""The device script, run on a device over the system's `ssh`.

The script travels in front of what it reads, so that the device always runs the one of this
edge-kit, and nothing is written there before it was looked at.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edge.errors import EdgeError, UsageError
from host_tools.flash.script import device_script

# No question may wait for an answer, and a device that went away is noticed within 15 s.
SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ControlMaster=no",
    "-o", "ControlPath=none", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
MAX_ANSWER_BYTES = 64 << 20
_SSH_FAILED = 255
_NOT_FOUND = 127
# Runs the script that stands in front of standard input; argv[1] is its length.
_BOOT = """\
import sys
sys.version_info < (3, 8) and sys.exit("python3 is %d.%d; 3.8 is needed" % sys.version_info[:2])
import runpy, tempfile
with tempfile.NamedTemporaryFile(suffix=".pyz") as script:
    script.write(sys.stdin.buffer.read(int(sys.argv.pop(1))))
    script.flush()
    sys.argv[0] = script.name
    runpy.run_path(script.name, run_name="__main__")
"""


class UnreachableError(EdgeError):
    """A device cannot be reached over SSH, or the connection was lost."""

    code = "unreachable"
    exit_code = 3


class DeviceError(EdgeError):
    """A device refused, or a step of setting it up failed there."""

    code = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshDevice:
    """How to reach one device. host: "user@name" as ssh takes it; config: a file for `ssh -F`."""

    host: str
    config: Path | None = None
    sudo: bool = False

    def run(
        self,
        *words: str,
        stdin: Iterable[bytes] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Run a verb of the device script and return the JSON that it printed.

        say: gets each line of progress while it runs. Raises UnreachableError, or DeviceError if
        the device gave no answer.
        """
        if self.host.startswith("-") or not self.host.strip() or set(self.host) & set(" \t\n"):
            raise UsageError(f"{self.host!r} is not a device; give user@name, as for ssh")
        script = device_script()
        command = [*(["sudo", "-n"] if self.sudo else []), "python3", "-c", _BOOT]
        command += [str(len(script)), *words, "--json"]
        ssh = ["ssh", *SSH_OPTIONS, *([] if self.config is None else ["-F", str(self.config)])]
        try:
            process = subprocess.Popen(
                [*ssh, "--", self.host, shlex.join(command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise UnreachableError("ssh is not installed; apt install openssh-client") from error
        with process:
            assert process.stdin is not None  # noqa: S101
            assert process.stdout is not None  # noqa: S101
            assert process.stderr is not None  # noqa: S101
            lines: list[str] = []
            listener = threading.Thread(
                target=_listen, args=(process.stderr, lines, say), name="ssh-stderr"
            )
            listener.start()
            try:
                _send(process.stdin, script, stdin)
                answer = process.stdout.read(MAX_ANSWER_BYTES)
                status = process.wait()
            finally:
                process.kill()
                process.wait()
                listener.join()
        return self._judged(status, answer, lines)

    def _judged(self, status: int, answer: bytes, lines: list[str]) -> dict[str, Any]:
        last = lines[-1] if lines else "it said nothing"
        if status == _SSH_FAILED:
            raise UnreachableError(
                f"{self.host}: {last.removeprefix('ssh: ')}; `ssh {self.host} true` must work "
                "without a question; what was sent is kept, run the same command again"
            )
        if status == _NOT_FOUND:
            raise DeviceError(
                f"{self.host}: {last}; the device needs Python 3.10 or newer: apt install python3"
            )
        try:
            told = json.loads(answer)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise DeviceError(f"{self.host}: {last}; nothing was reported (status {status})")
        return told


def _send(pipe: IO[bytes], script: bytes, stream: Iterable[bytes]) -> None:
    """Write script and stream; a device that stops reading says why in its answer."""
    try:
        pipe.write(script)
        for chunk in stream:
            pipe.write(chunk)
    except BrokenPipeError:
        pass
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _listen(pipe: IO[bytes], lines: list[str], say: Callable[[str], None]) -> None:
    for raw in pipe:
        line = raw.decode("utf-8", "replace").strip()
        if line:
            lines.append(line)
            say(line)
