"""Builds on another machine: the job goes through `ssh` to its `edge-agent build-engine`."""

from __future__ import annotations

import subprocess

from edge.engine_builder import Progress
from edge.engine_job import EngineJob, EngineResult, Frame, read_frame, write_frame
from edge.errors import BuildError, UsageError

# No question may wait for an answer in a pipe; a host that is down must not hang the build.
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
REMOTE_COMMAND = "edge-agent build-engine"


def build_on(host: str, job: EngineJob, *, progress: Progress) -> EngineResult:
    """Build on host ("user@name", as ssh takes it) and return the engine.

    The engine is not signed there; it comes back over the authenticated channel of SSH and is
    signed with the bundle here. Raises BuildError with what the other side or ssh said.
    """
    if host.startswith("-") or not host.strip():
        raise UsageError(f"--on {host!r} is not a host; give user@name, as for ssh")
    try:
        with subprocess.Popen(
            [*SSH, "--", host, REMOTE_COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as remote:
            assert remote.stdin is not None  # noqa: S101
            assert remote.stdout is not None  # noqa: S101
            try:
                write_frame(remote.stdin, job)
                remote.stdin.close()
                while (frame := read_frame(remote.stdout, Frame)) is not None:
                    if frame.error is not None:
                        raise BuildError(f"{host}: {frame.error}")
                    if frame.result is not None:
                        return frame.result
                    if frame.step is not None and not progress(*frame.step):
                        raise BuildError(f"{host}: the build was cancelled")
            finally:
                remote.kill()
    except BrokenPipeError:
        pass
    except FileNotFoundError as error:
        raise BuildError("ssh is not installed; apt install openssh-client") from error
    raise BuildError(
        f"{host} ended without an answer; what ssh said is above. Try `ssh {host} {REMOTE_COMMAND} "
        "--help`: it needs a key without a question, and edge-kit on its PATH"
    )
