"""A Session whose device belongs to another process, which may die and is started again.

See `session_child` for why. Tensors pass through shared memory, in a pair of buffers for each run
that may have begun.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from edge.errors import (
    BackendUnavailableError,
    EdgeError,
    InferenceError,
    InputError,
    ModelError,
)
from edge.session import Finish
from edge.session_messages import (
    Opened,
    OpenSession,
    Ran,
    Run,
    placed,
    receive,
    send,
    tensors_from,
)
from edge.shared_buffer import SharedBuffer
from edge.spec import AnyArray, Feeds, check_feeds

DEPTH = 2
# A process that dies is started again after so long, twice as long each time it dies soon.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
_STOP_S = 5.0
# The child finds its modules where this process did, whatever its working directory.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
_CHILD = "from edge.session_child import main; main()"
_ERROR_FROM_CODE: dict[str, type[EdgeError]] = {
    error.code: error for error in (BackendUnavailableError, InferenceError, InputError, ModelError)
}

logger = logging.getLogger(__name__)


class SessionProcess:
    """Make it with `open`; one thread uses it, and the process dies with that thread."""

    def __init__(
        self,
        request: OpenSession,
        buffers: list[tuple[SharedBuffer, SharedBuffer]],
        *,
        open_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.inputs = request.inputs
        self.outputs = request.outputs
        self.depth = 1
        self.memory_bytes: int | None = None
        self._request = request
        self._buffers = buffers
        self._free = list(range(len(buffers)))
        self._open_timeout_s = open_timeout_s
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_open = False
        self._is_closed = False
        self._pause_s = FIRST_PAUSE_S
        self._next_start = clock()

    @classmethod
    def open(
        cls,
        request: OpenSession,
        *,
        open_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> SessionProcess:
        """Start the process and wait until its session is open.

        request: without buffers; its engine is a descriptor, which is copied.
        Raises what opening raised there, or ModelError if the process died or took too long.
        """
        buffers = [(SharedBuffer.new(), SharedBuffer.new()) for _ in range(DEPTH)]
        kept = replace(
            request,
            buffers=tuple((there.fileno(), back.fileno()) for there, back in buffers),
            engine=None if request.engine is None else os.dup(request.engine),
        )
        session = cls(kept, buffers, open_timeout_s=open_timeout_s, clock=clock)
        try:
            session._start()
            session._await_opened(open_timeout_s)
        except EdgeError:
            session.close()
            raise
        return session

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return None if self._child is None else self._child.pid

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output for one set of feeds; see `session.Session`."""
        return self.start(feeds)()

    def start(self, feeds: Feeds) -> Finish:
        """Begin a run; see `session.PipelinedSession`.

        Raises InferenceError while there is no process; asking is what starts it again.
        """
        if self._is_closed:
            raise InferenceError("the session is closed; open the model again")
        check_feeds(feeds, self.inputs, self._request.profile)
        self._ensure_open()
        pair = self._free.pop(0)
        try:
            tensors = placed(self._buffers[pair][0], dict(feeds), self.inputs)
            self._send(Run(pair=pair, tensors=tensors))
        except EdgeError:
            self._free.append(pair)
            raise
        return functools.partial(self._finish, pair, self._connection)

    def reset_state(self) -> None:
        """Forget all state; a process that is started again has none anyway."""
        if self._is_closed or not self._is_open:
            return
        self._send(Run(pair=0, tensors=()))
        self._receive(self._connection)

    def close(self) -> None:
        """End the process and free what it had."""
        if self._is_closed:
            return
        self._is_closed = True
        child = self._child
        self._disconnect()
        if child is not None:
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for there, back in self._buffers:
            there.close()
            back.close()
        if self._request.engine is not None:
            os.close(self._request.engine)

    def _finish(self, pair: int, connection: socket.socket | None) -> dict[str, AnyArray]:
        try:
            ran = self._receive(connection)
            if ran.error is not None:
                raise _error(ran.code, ran.error)
            views = tensors_from(self._buffers[pair][1], ran.tensors)
            return {name: array.copy() for name, array in views.items()}
        finally:
            self._free.append(pair)

    def _ensure_open(self) -> None:
        if self._is_open:
            return
        if self._connection is None:
            left = self._next_start - self._clock()
            if left > 0:
                raise InferenceError(f"its process died and is started again in {left:.1f} s")
            self._start()
        self._await_opened(0.0)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = self._request
        passed = [theirs.fileno(), *(fd for pair in request.buffers for fd in pair)]
        if request.engine is not None:
            passed.append(request.engine)
        command = [sys.executable, "-c", _BOOT + _CHILD, json.dumps(sys.path)]
        self._connection = ours
        try:
            with theirs:
                self._child = subprocess.Popen(
                    [*command, str(theirs.fileno())], pass_fds=passed, stdin=subprocess.DEVNULL
                )
        except OSError as error:
            raise self._lost(f"cannot be started, {error.strerror}") from error
        self._send(request)
        logger.info("session process started pid=%d device=%s", self._child.pid, request.device)

    def _await_opened(self, timeout_s: float) -> None:
        """Take the news that the session is open; raises InferenceError if it does not come."""
        assert self._connection is not None  # noqa: S101
        self._connection.settimeout(timeout_s or 1e-6)
        try:
            opened = receive(self._connection, Opened)
        except TimeoutError:
            if timeout_s:
                self._lose("did not open in time")
                raise ModelError(
                    f"its process did not open it within {timeout_s:g} s; raise open_timeout_s"
                ) from None
            raise InferenceError("its process died and is being started again") from None
        except OSError as error:
            raise self._lost(str(error)) from error
        self._connection.settimeout(None)
        if opened is None:
            raise self._lost("ended while it opened the session")
        if opened.error is not None:
            self._lose(opened.error)
            raise _error(opened.code, opened.error)
        self.depth, self.memory_bytes = opened.depth, opened.memory_bytes
        self._is_open = True

    def _send(self, message: object) -> None:
        assert self._connection is not None  # noqa: S101
        try:
            send(self._connection, message)
        except OSError as error:
            raise self._lost(str(error)) from error

    def _receive(self, connection: socket.socket | None) -> Ran:
        if connection is None or connection is not self._connection:
            raise InferenceError("its process died during the run")
        try:
            ran = receive(connection, Ran)
        except OSError as error:
            raise self._lost(str(error)) from error
        if ran is None:
            raise self._lost("ended")
        self._pause_s = FIRST_PAUSE_S
        return ran

    def _lost(self, how: str) -> InferenceError:
        """Let go of a process that died, and return the error that says so."""
        return InferenceError(f"its process is gone: {self._lose(how)}")

    def _lose(self, how: str) -> str:
        child, status = self._child, None
        self._disconnect()
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = child.wait(0.5)
            if status is None:
                child.kill()
                status = child.wait()
            if status < 0:
                with contextlib.suppress(ValueError):
                    how = f"killed by {signal.Signals(-status).name}"
        self._child = None
        self._next_start = self._clock() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        logger.error("session process lost device=%s: %s", self._request.device, how)
        return how

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._is_open = None, False


def _error(code: str | None, message: str) -> EdgeError:
    return _ERROR_FROM_CODE.get(code or "", InferenceError)(message)
