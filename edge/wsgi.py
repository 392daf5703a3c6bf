"""The HTTP server: waitress in this process, driven one turn at a time.

Three things waitress alone does not do: its own error answers are JSON like all others, a client
that is refused in the middle of its body still gets the answer, and a stop finishes what it began.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import BadRequest

from edge.errors import ConfigError

MAX_HEADER_BYTES = 16 << 10
MAX_BODY_IN_MEMORY_BYTES = 8 << 20
MAX_CONNECTIONS = 1000
BACKLOG = 128
IDLE_CONNECTION_S = 60
RECEIVE_BYTES = 256 << 10
LINGER_S = 30.0
MAX_DISCARDED_BYTES = 1 << 30
TURN_S = 1.0
_THREAD_EXIT_S = 1.0

logger = logging.getLogger(__name__)


class HttpServer:
    """A listening server. `turn`, `drain` and `close` belong to one thread, `wake` to any."""

    def __init__(self, server: Any, sockets: dict[int, Any], *, clock: Callable[[], float]) -> None:
        self._server = server
        self._sockets = sockets
        self._clock = clock
        self._is_closed = False
        # Reentrant: a signal handler may call `wake` inside `close` of the same thread.
        self._closing = threading.RLock()

    @classmethod
    def open(
        cls,
        app: Flask,
        *,
        host: str,
        port: int,
        threads: int,
        max_body_bytes: int,
        on_refusal: Callable[[int], None] = lambda status: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> HttpServer:
        """Listen on host and port, 0 for a free one; raises ConfigError if that cannot be had.

        on_refusal: called with the status of every answer that the app did not give.
        """
        listener = _listener(host, port)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # one line per busy moment
        sockets: dict[int, Any] = {}
        server = create_server(
            app,
            map=sockets,
            sockets=[listener],
            threads=threads,
            backlog=BACKLOG,
            connection_limit=MAX_CONNECTIONS,
            channel_timeout=IDLE_CONNECTION_S,
            recv_bytes=RECEIVE_BYTES,
            inbuf_overflow=MAX_BODY_IN_MEMORY_BYTES,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=max_body_bytes + 1,  # waitress refuses a body of exactly this
            clear_untrusted_proxy_headers=False,  # nothing here reads them
            log_socket_errors=False,
            ident=None,
        )
        server.channel_class = _Channel
        server.is_draining = False
        server.on_refusal = on_refusal
        return cls(server, sockets, clock=clock)

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        host, port = self._server.effective_host, self._server.effective_port
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def turn(self, timeout_s: float = TURN_S) -> None:
        """Wait up to timeout_s for the network and handle what happened."""
        wasyncore.loop(timeout=timeout_s, use_poll=True, map=self._sockets, count=1)

    def wake(self) -> None:
        """End a `turn` that waits; for other threads and signal handlers, at any time."""
        with self._closing:
            if not self._is_closed:
                self._server.pull_trigger()

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more, answer the requests that have begun to arrive, close the rest.

        Returns False if some were still unanswered after timeout_s.
        """
        self.turn(0)  # what the kernel has accepted already counts as begun
        self._server.is_draining = True
        wasyncore.dispatcher.close(self._server)  # the listening socket only
        deadline = self._clock() + timeout_s
        while True:
            busy = False
            for channel in list(self._server.active_channels.values()):
                if channel.is_busy:
                    busy = True
                else:
                    channel.handle_close()
            if not busy:
                return True
            remaining_s = deadline - self._clock()
            if remaining_s <= 0:
                return False
            self.turn(min(remaining_s, TURN_S))

    def close(self) -> None:
        """Stop the threads and close every socket."""
        self._server.task_dispatcher.shutdown(timeout=_THREAD_EXIT_S)
        with self._closing:
            self._is_closed = True
            wasyncore.close_all(self._sockets)


# waitress has no type information, so its classes are Any to the checker.
class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Reads one request; what it refuses is answered at once, not after the body."""

    def received(self, data: bytes) -> int:
        try:
            consumed = int(super().received(data))
        except ValueError:  # a Content-Length of thousands of digits, a broken IPv6 address
            self.error = BadRequest("the request line or a header is malformed")
            self.completed = True
            consumed = len(data)
        if self.error is not None:
            # Else waitress would invite the body with "100 Continue".
            self.expect_continue = False
        return consumed


class _Task(WSGITask):  # type: ignore[misc]
    """Answers one request; while draining, tells the client to use another connection next."""

    def build_response_header(self) -> bytes:
        if self.channel.server.is_draining:
            self.set_close_on_finish()
        return bytes(super().build_response_header())


class _JsonErrorTask(ErrorTask):  # type: ignore[misc]
    """Answers a request that never reached the app."""

    def execute(self) -> None:
        error = self.request.error
        message = f"{error.reason}: {error.body}"
        if error.code == 413:
            cap = self.channel.adj.max_request_body_size - 1
            message = (
                f"the request body exceeds {cap} bytes; send fewer rows at once, or raise "
                "max_body_bytes"
            )
        body = json.dumps({"error": message}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.is_refused = True
        self.channel.server.on_refusal(error.code)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection.

    Closing a socket with unread input makes the kernel send a reset, which can destroy an answer
    that the client has not read yet. So a refused client is lingered on: after the answer our side
    is shut down, and what still arrives is read and dropped, within bounds, until it closes too.
    """

    task_class = _Task
    error_task_class = _JsonErrorTask
    parser_class = _Parser

    request: Any = None
    is_refused = False
    _linger_until: float | None = None
    _discarded_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether a request is arriving, being answered, or its answer not yet sent."""
        return bool(self.requests or self.request is not None or self.writable())

    def readable(self) -> bool:
        return self._linger_until is not None or bool(super().readable())

    def writable(self) -> bool:
        if self._linger_until is not None:
            return bool(self.will_close or time.monotonic() > self._linger_until)
        return bool(super().writable())

    def handle_read(self) -> None:
        if self._linger_until is not None:
            self._discard()
        elif self._ends_in_body():
            self._refuse_cut_body()
        else:
            super().handle_read()

    def handle_write(self) -> None:
        if self._linger_until is not None:
            self.handle_close()
        elif self.is_refused and self.close_when_flushed and not self.will_close:
            self._flush_exception(self._flush_some)
            if self.will_close:
                self.handle_close()
            elif not self.total_outbufs_len:
                self._linger()
        else:
            super().handle_write()

    def _linger(self) -> None:
        self._linger_until = time.monotonic() + LINGER_S
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()

    def _discard(self) -> None:
        try:
            count = len(self.socket.recv(RECEIVE_BYTES))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._discarded_bytes += count
        if count == 0 or self._discarded_bytes > MAX_DISCARDED_BYTES:
            self.handle_close()

    def _ends_in_body(self) -> bool:
        request = self.request
        if request is None or not request.headers_finished:
            return False
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK) == b"")
        except OSError:
            return False

    def _refuse_cut_body(self) -> None:
        with self.requests_lock:
            request, self.request = self.request, None
            request.error = BadRequest("the body ends before its announced length")
            request.completed = True
            self.requests.append(request)
            if len(self.requests) == 1:
                self.server.add_task(self)


def _listener(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port, or stop "
            "the program that uses it"
        ) from error
