"""The device script, run on a device over the system's `ssh`.

The script travels in front of what it reads, so that the device always runs the one of this
edge-kit, and nothing is written there before it was looked at.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.console import one_line
from edge.errors import EdgeError, UsageError
from host_tools.flash.script import device_script
from host_tools.terminal import plain

# No question may wait for an answer, and a device that went away is noticed within 15 s.
SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ControlMaster=no",
    "-o", "ControlPath=none", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
MAX_ANSWER_BYTES = 8 << 20  # with the talk beside it; the longest, of many files, are under 1 MiB
MAX_TEXT = 4096  # characters of each text that a device says
_READ_BYTES = 1 << 16
_SSH_FAILED = 255
_NOT_FOUND = 127
# Runs the script that stands in front of standard input; argv[1] is its length. What the script
# says when the connection is lost must not end it in the middle of a step.
_BOOT = """\
import sys
sys.version_info < (3, 8) and sys.exit("python3 is %d.%d; 3.8 is needed" % sys.version_info[:2])
import runpy, tempfile
class Talk:
    def __init__(self, stream): self.stream = stream
    def write(self, text):
        try: self.stream.write(text)
        except OSError: pass
    def flush(self):
        try: self.stream.flush()
        except OSError: pass
sys.stdout, sys.stderr = Talk(sys.stdout), Talk(sys.stderr)
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
    """How to reach one device. host: "user@name" as ssh takes it; config: a file for `ssh -F`.

    port: where it is not that of the configuration. until: by time.monotonic(), when whatever runs
    there is given up.
    """

    host: str
    port: int | None = None
    config: Path | None = None
    sudo: bool = False
    until: float | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a command line that name the device to ssh."""
        config = () if self.config is None else ("-F", str(self.config))
        port = () if self.port is None else ("-p", str(self.port))
        return (*config, *port, "--", self.host)

    def run(
        self,
        *words: str,
        stdin: Iterable[bytes] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Run a verb of the device script and return the JSON that it printed.

        say: gets each line of progress while it runs. Nothing that a device says has escapes or
        controls in it. Raises UnreachableError, or DeviceError if the device gave no answer, or
        not in time.
        """
        if self.host.startswith("-") or not self.host.strip() or set(self.host) & set(" \t\n"):
            raise UsageError(f"{self.host!r} is not a device; give user@name, as for ssh")
        script = device_script()
        # Isolated: files in the folder where ssh arrives are no modules.
        command = [*(["sudo", "-n"] if self.sudo else []), "python3", "-I", "-c", _BOOT]
        command += [str(len(script)), *words, "--json"]
        ssh = ["ssh", *SSH_OPTIONS, *self.words]
        try:
            process = subprocess.Popen(
                [*ssh, shlex.join(command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except FileNotFoundError as error:
            raise UnreachableError("ssh is not installed; apt install openssh-client") from error
        talk = _Talk(say)
        with process:
            try:
                answer = self._exchanged(process, itertools.chain([script], stdin), talk)
                status = process.wait(self._left_s())
            except subprocess.TimeoutExpired as error:
                raise self._late(talk) from error
            finally:
                process.kill()
        return self._judged(status, answer, talk.last)

    def _exchanged(
        self, process: subprocess.Popen[bytes], sent: Iterator[bytes], talk: _Talk
    ) -> bytes:
        """Send, and return what comes until the other end is closed.

        A device that stops reading says why in its answer. Raises DeviceError.
        """
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        answer, received_bytes, left = bytearray(), 0, memoryview(b"")
        pipes = [process.stdout, process.stderr]
        with selectors.DefaultSelector() as selector:
            for pipe in pipes:
                selector.register(pipe, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            os.set_blocking(process.stdin.fileno(), False)
            while pipes:
                ready = selector.select(self._left_s())
                if self._left_s() == 0.0:
                    raise self._late(talk)
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        try:
                            left = left if left else memoryview(next(sent))
                            left = left[os.write(key.fd, left) :]
                        except (StopIteration, BrokenPipeError):
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    content = os.read(key.fd, _READ_BYTES)
                    received_bytes += len(content)
                    if received_bytes > MAX_ANSWER_BYTES:
                        raise DeviceError(
                            f"{self.host}: it says more than {MAX_ANSWER_BYTES >> 20} MiB, which "
                            "no device setup does; look at what answers there"
                        )
                    if not content:
                        selector.unregister(key.fileobj)
                        pipes.remove(key.fileobj)  # type: ignore[arg-type] # one of the pipes
                    elif key.fileobj is process.stdout:
                        answer += content
                    else:
                        talk.take(content)
        talk.take(b"\n")
        return bytes(answer)

    def _left_s(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def _late(self, talk: _Talk) -> DeviceError:
        return DeviceError(
            f"{self.host}: not done within the deadline (of a setup: --deadline-minutes); it said "
            f"last: {talk.last}; what it had begun it may finish, run the same command again"
        )

    def _judged(self, status: int, answer: bytes, last: str) -> dict[str, Any]:
        if status == _SSH_FAILED:
            raise UnreachableError(
                f"{self.host}: {last.removeprefix('ssh: ')}; `ssh {self._shown} true` must work "
                "without a question; what was sent is kept, run the same command again"
            )
        if status == _NOT_FOUND:
            raise DeviceError(
                f"{self.host}: {last}; the device needs Python 3.10 or newer: apt install python3"
            )
        try:
            told = _cleaned(json.loads(answer))
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise DeviceError(f"{self.host}: {last}; nothing was reported (status {status})")
        return told

    @property
    def _shown(self) -> str:
        return shlex.join(word for word in self.words if word != "--")


class _Talk:
    """The lines that a device says beside its answer. last: the last one, as text."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.last = "it said nothing"
        self._say, self._rest = say, b""

    def take(self, content: bytes) -> None:
        """Take a piece; a line that does not end is cut."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) > _READ_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for raw in lines:
            line = _plain_text(raw.decode("utf-8", "replace").strip())
            if line:
                self.last = line
                self._say(line)


def _cleaned(told: Any) -> Any:
    """Return what a device says with all its texts plain."""
    if isinstance(told, str):
        return _plain_text(told)
    if isinstance(told, list):
        return [_cleaned(one) for one in told]
    if isinstance(told, dict):
        return {_plain_text(name): _cleaned(one) for name, one in told.items()}
    return told


def _plain_text(text: str) -> str:
    return plain(text if text.isprintable() else one_line(text), MAX_TEXT)
