"""Runs `engine_child` with a time limit, so that a bad engine cannot take this process down."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import msgspec

from edge.engine_builder import Progress, engine_profiles
from edge.engine_child import BuildRequest, ChildRequest, Report, TryRequest
from edge.errors import EdgeError
from edge.sealed import memory_file

_POLL_S = 0.2
_PIPE_BYTES = 65536
# The child finds its modules where this process did, whatever its working directory.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
_CHILD = "from edge.engine_child import main; main()"

# The refusal that an error of the child amounts to; see choice.REFUSAL_CODES.
_REFUSAL_FROM_ERROR = {
    "backend-unavailable": "backend-unavailable",
    "build": "build-failed",
    "self-test": "self-test-failed",
}

logger = logging.getLogger(__name__)


class AttemptError(EdgeError):
    """A variant was tried and cannot be served; `refusal` is a key of REFUSAL_CODES."""

    code = "attempt"

    def __init__(self, refusal: str, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


def attempt(
    request: TryRequest, *, timeout_s: float, stop: threading.Event | None = None
) -> Report:
    """Open an engine and run its self-test in a child; raises AttemptError."""
    child = ChildRequest(attempt=request)
    return run_child(child, (request.engine,), timeout_s=timeout_s, stop=stop)


def build(
    request: BuildRequest,
    *,
    timeout_s: float,
    progress: Progress,
    stop: threading.Event | None = None,
) -> Report:
    """Build an engine in a child; progress may return False to cancel. Raises AttemptError."""
    descriptors = (request.engine, request.timing_cache)
    child = ChildRequest(build=request)
    return run_child(child, descriptors, timeout_s=timeout_s, progress=progress, stop=stop)


def build_and_try(
    request: BuildRequest,
    trial: TryRequest,
    *,
    build_timeout_s: float,
    open_timeout_s: float,
    progress: Progress,
    stop: threading.Event | None = None,
) -> tuple[Report, Report]:
    """Build an engine and open it, and return both reports; raises AttemptError.

    An engine with a profile for batch 1 alone is faster there, but TensorRT 8.6 has been seen to
    get such a profile wrong where the other is right. If the self-test fails, the next build has
    the whole profile alone.
    """
    profile = trial.model.profile
    choices = [engine_profiles(profile), (profile,)]
    if choices[0] == choices[1]:
        choices.pop()
    while True:
        profiles = choices.pop(0)
        attempted = replace(request, request=replace(request.request, profiles=profiles))
        built = build(attempted, timeout_s=build_timeout_s, progress=progress, stop=stop)
        try:
            return built, attempt(trial, timeout_s=open_timeout_s, stop=stop)
        except AttemptError as error:
            if error.refusal != "self-test-failed" or not choices:
                raise
            logger.warning("building again without a profile for batch 1: %s", error)


def run_child(
    request: ChildRequest,
    descriptors: Sequence[int],
    *,
    timeout_s: float,
    progress: Progress = lambda phase, done, total: True,
    stop: threading.Event | None = None,
    code: str = _CHILD,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Return the last report of a child that runs code; raises AttemptError.

    A child that is too slow, or cancelled by progress or stop, is killed; so it is when this
    process dies.
    """
    deadline = clock() + timeout_s
    reader, writer = os.pipe()
    command = [sys.executable, "-c", _BOOT + code, json.dumps(sys.path), str(writer)]
    with (
        os.fdopen(reader, "rb", buffering=0) as reports,
        _closing(writer) as close_writer,
        # A file, not a pipe: a child that never reads must not keep this process waiting.
        _memory_input(msgspec.json.encode(request, enc_hook=str)) as sent,
        subprocess.Popen(command, stdin=sent, pass_fds=(*descriptors, writer)) as child,
    ):
        close_writer()
        try:
            pending = b""
            while True:
                if clock() > deadline:
                    raise AttemptError(
                        "timed-out",
                        f"not finished after {timeout_s:g} s, so it was stopped; free the device "
                        "for it, or raise the time limit",
                    )
                if stop is not None and stop.is_set():
                    raise AttemptError("timed-out", "stopped because the agent stops")
                if not select.select([reports], [], [], _POLL_S)[0]:
                    continue
                chunk = reports.read(_PIPE_BYTES)
                if not chunk:
                    raise _ended_without_report(child)
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    report = _report(line)
                    if report.error is not None:
                        refusal = _REFUSAL_FROM_ERROR.get(report.code or "", "open-failed")
                        raise AttemptError(refusal, report.error)
                    if report.phase is None:
                        return report
                    if not progress(report.phase, report.done, report.total):
                        raise AttemptError("build-failed", "the build was cancelled")
        finally:
            child.kill()


def _report(line: bytes) -> Report:
    try:
        return msgspec.json.decode(line, type=Report)
    except msgspec.MsgspecError as error:
        raise AttemptError(
            "crashed", f"the process that tried it wrote nonsense: {error}"
        ) from error


def _ended_without_report(child: subprocess.Popen[bytes]) -> AttemptError:
    status = child.wait()
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            return AttemptError(
                "crashed",
                f"the process that tried it was killed by {name}; the file or the driver is "
                "damaged, or memory ran out (see dmesg)",
            )
    return AttemptError("crashed", f"the process that tried it ended with status {status}")


@contextlib.contextmanager
def _memory_input(content: bytes) -> Iterator[int]:
    descriptor = memory_file()
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[Callable[[], None]]:
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        yield stack.close
