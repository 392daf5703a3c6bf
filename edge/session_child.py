"""The process that owns a session for an agent: whatever happens to its GPU happens to it alone.

A fault on one GPU makes every call of its process fail, on other GPUs too; so each has a process of
its own. The parent is `session_process`; this one ends when the parent's end of the socket closes.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import select
import signal
import socket
import sys
from collections import deque
from pathlib import Path

from edge.errors import EdgeError, InferenceError
from edge.ort_session import OrtSession
from edge.session import PAUSE_S, Finish, Session, is_prepared, prepare, start_of
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
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession

_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


def main() -> None:
    """Open what the parent asks for, run what it sends, and leave without exit handlers."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when this ends
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level="WARNING", format="session process: %(message)s")
    with socket.socket(fileno=int(sys.argv[-1])) as connection:
        request = receive(connection, OpenSession)
        if request is not None:
            serve(connection, request)
    # Destructors of a lost context may crash; nothing is left to save here.
    os._exit(0)


def serve(connection: socket.socket, request: OpenSession) -> None:
    """Answer runs in the order in which they come, until the parent closes."""
    try:
        session = _opened(request)
    except EdgeError as error:
        send(connection, Opened(code=error.code, error=str(error)))
        return
    depth = min(getattr(session, "depth", 1), len(request.buffers))
    memory_bytes = getattr(session, "memory_bytes", None)
    send(connection, Opened(depth=depth, memory_bytes=memory_bytes))
    buffers = [(SharedBuffer(there), SharedBuffer(back)) for there, back in request.buffers]
    begun: deque[tuple[Run, Finish]] = deque()
    while True:
        if begun and (len(begun) == depth or not _has_message(connection)):
            run, finish = begun.popleft()
            send(connection, _ended(finish, buffers[run.pair][1], request))
            continue
        if not is_prepared(session) and not _has_message(connection, PAUSE_S):
            prepare(session)
            continue
        asked = receive(connection, Run)
        if asked is None:
            return
        begun.append((asked, _begun(session, asked, buffers[asked.pair][0])))


def _begun(session: Session, run: Run, buffer: SharedBuffer) -> Finish:
    """Begin a run; an error comes out when it is finished, in its turn."""
    try:
        if not run.tensors:
            session.reset_state()
            return dict
        return start_of(session)(tensors_from(buffer, run.tensors))
    except Exception as error:  # noqa: BLE001 - told to the parent
        failure = error

        def fail() -> dict[str, object]:
            raise failure

        return fail  # type: ignore[return-value] # it never returns


def _ended(finish: Finish, buffer: SharedBuffer, request: OpenSession) -> Ran:
    try:
        outputs = finish()
        specs = tuple(spec for spec in request.outputs if spec.name in outputs)
        return Ran(tensors=placed(buffer, outputs, specs))
    except EdgeError as error:
        return Ran(code=error.code, error=str(error))
    except Exception as error:
        logger.error("run failed", exc_info=error)
        return Ran(code=InferenceError.code, error=f"{type(error).__name__}: {error}")


def _opened(request: OpenSession) -> Session:
    if request.graph is not None:
        return OrtSession.open(
            Path(request.graph),
            inputs=request.inputs,
            outputs=request.outputs,
            profile=request.profile,
            intra_op_threads=request.intra_op_threads,
            device=request.device,
        )
    assert request.engine is not None  # noqa: S101
    assert request.backend != "ort"  # noqa: S101
    with mmap.mmap(request.engine, 0, prot=mmap.PROT_READ) as plan:
        return TrtSession.open(
            plan,
            library=load_tensorrt(request.backend),
            inputs=request.inputs,
            outputs=request.outputs,
            profile=request.profile,
            device=request.device or 0,
        )


def _has_message(connection: socket.socket, timeout_s: float = 0.0) -> bool:
    return bool(select.select([connection], [], [], timeout_s)[0])
