"""The HTTP server: one event loop in the agent's main thread, driven a turn at a time.

Connections live in the loop (see `http_connection`); a Handler answers requests, and whatever may
block does so in other threads. A stop finishes what has begun.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge.access import Access
from edge.errors import ConfigError, QueueFullError
from edge.http_answer import AGENT_FAILED, HttpAnswer, answer_from_error, json_error
from edge.http_connection import Connection, Rules
from edge.http_handler import Cancel, Handler, Reply
from edge.http_limits import Budget, ClientPlaces
from edge.http_request import HttpRequest
from edge.pool import Pool
from edge.wsgi_environ import environ_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

MAX_CONNECTIONS = 1000
BACKLOG = 512
# So many of the largest bodies may be held at once, from the first byte to the answer.
LARGEST_BODIES = 8
TURN_S = 1.0
SWEEP_S = 1.0
# Flask answers what takes no time: health, metrics, descriptions.
APP_THREADS = 4

logger = logging.getLogger(__name__)


class Loop:
    """An event loop, and the ways into it from other threads."""

    def __init__(self) -> None:
        self.events = _new_event_loop()
        self._thread = threading.get_ident()
        self._calls: list[Callable[[], object]] = []
        self._adding = threading.Lock()

    def turn(self, timeout_s: float) -> None:
        """Run for so long, or until `stop`."""
        self._thread = threading.get_ident()
        timer = self.events.call_later(timeout_s, self.events.stop)
        self.events.run_forever()
        timer.cancel()

    def stop(self) -> None:
        """End a turn; from any thread."""
        self._wake(self.events.stop)

    @property
    def is_here(self) -> bool:
        """Whether the caller's thread is the loop's, in a turn of it."""
        return threading.get_ident() == self._thread and self.events.is_running()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the loop's thread: now if this is it, else as soon as it can.

        What comes while the loop is being woken goes with it: a batch of answers wakes it once.
        """
        if self.is_here:
            function(*args)
            return
        with self._adding:
            self._calls.append(functools.partial(function, *args))
            is_first = len(self._calls) == 1
        if is_first:
            self._wake(self._call_all)

    def _call_all(self) -> None:
        with self._adding:
            calls, self._calls = self._calls, []
        for call in calls:
            try:
                call()
            except Exception as error:
                logger.error("a call in the event loop failed", exc_info=error)

    def _wake(self, function: Callable[[], object]) -> None:
        try:
            self.events.call_soon_threadsafe(function)
        except RuntimeError:  # closed: nobody is left to hear of it
            logger.debug("the event loop is closed")


class AppHandler:
    """Answers with a WSGI application, in threads of its own."""

    def __init__(self, app: WSGIApplication, loop: Loop, *, threads: int = APP_THREADS) -> None:
        self._app = app
        self._loop = loop
        self._pool = Pool(threads, "http")

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        """Refuse nothing."""
        return None

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        """Begin to answer one request."""
        self._pool.submit(functools.partial(self._answer, request, reply))
        return None

    def close(self) -> None:
        """Stop the threads, once they have done what they do."""
        self._pool.close()

    def _answer(self, request: HttpRequest, reply: Reply) -> None:
        try:
            answer = self._run(environ_of(request))
        except Exception as error:
            logger.error("request failed path=%s", request.path, exc_info=error)
            answer = json_error(500, AGENT_FAILED)
        self._loop.call(reply, answer)

    def _run(self, environ: WSGIEnvironment) -> HttpAnswer:
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        chunks: list[bytes] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], object]:
            begun[:] = [(status, headers)]
            return chunks.append

        result = self._app(environ, start_response)
        try:
            chunks.extend(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        status, headers = begun[0]
        return HttpAnswer(status=int(status[:3]), body=b"".join(chunks), headers=dict(headers))


class HttpServer:
    """A listening server. `turn`, `drain` and `close` belong to one thread, `wake` to any."""

    def __init__(
        self,
        handler: Handler,
        loop: Loop,
        listener: socket.socket,
        *,
        max_body_bytes: int,
        max_per_client: int | None,
        max_connections_per_client: int | None,
        clock: Callable[[], float],
    ) -> None:
        self.loop = loop
        self.arriving = Budget(LARGEST_BODIES * max_body_bytes)
        self.requests = ClientPlaces(max_per_client)
        most = max_connections_per_client
        # As many again are told that they are too many; what comes then is closed.
        self.connections = ClientPlaces(None if most is None else 2 * most)
        self._max_connections_per_client = most
        self._handler = handler
        self._listener = listener
        self._clock = clock
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._is_draining = False
        self._address: tuple[str, int] = listener.getsockname()[:2]

    @classmethod
    def open(
        cls,
        handler: Handler,
        loop: Loop,
        *,
        host: str,
        port: int,
        max_body_bytes: int,
        access: Access = Access(),  # noqa: B008 - it is immutable
        max_per_client: int | None = None,
        max_connections_per_client: int | None = None,
        on_refusal: Callable[[int], None] = lambda status: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> HttpServer:
        """Listen on host and port, 0 for a free one; raises ConfigError if that cannot be had.

        The server closes handler and loop at its end, and if it cannot be opened.
        access: what is refused whoever asks.
        max_per_client, max_connections_per_client: requests, but for those of WATCHING_METHODS, and
        connections that one client may have at a time; see `http_limits.client_from_address`.
        on_refusal: called with the status of every answer that the handler did not give.
        """
        try:
            listener = _listener(host, port)
        except ConfigError:
            handler.close()
            loop.events.close()
            raise
        server = cls(
            handler,
            loop,
            listener,
            max_body_bytes=max_body_bytes,
            max_per_client=max_per_client,
            max_connections_per_client=max_connections_per_client,
            clock=clock,
        )
        rules = Rules(
            handler=handler,
            loop=loop.events,
            address=server._address,
            max_body_bytes=max_body_bytes,
            access=access,
            arriving=server.arriving,
            per_client=server.requests,
            on_refusal=on_refusal,
            on_open=server._welcome,
            on_close=server._forget,
        )
        server._server = loop.events.run_until_complete(
            loop.events.create_server(
                lambda: Connection(rules), sock=server._listener, backlog=BACKLOG
            )
        )
        loop.events.call_later(SWEEP_S, server._sweep)
        return server

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def turn(self, timeout_s: float = TURN_S) -> None:
        """Serve for timeout_s, or until `wake`."""
        self.loop.turn(timeout_s)

    def wake(self) -> None:
        """End a `turn`; for other threads and signal handlers, at any time."""
        self.loop.stop()

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more, answer the requests that have begun to arrive, close the rest.

        Returns False if some were still unanswered after timeout_s.
        """
        self.turn(0)  # what the kernel has accepted already counts as begun
        self._is_draining = True
        if self._server is not None:
            self._server.close()
        deadline = self._clock() + timeout_s
        while True:
            busy = False
            for connection in tuple(self._connections):
                connection.is_draining = True
                if connection.is_busy:
                    busy = True
                else:
                    connection.close()
            if not busy:
                self.turn(0)
                return True
            remaining_s = deadline - self._clock()
            if remaining_s <= 0:
                return False
            self.turn(min(remaining_s, TURN_S))

    def close(self) -> None:
        """Close every socket and the loop."""
        if self.loop.events.is_closed():
            return
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        self.turn(0)
        self.loop.events.close()
        self._handler.close()

    def _welcome(self, connection: Connection) -> HttpAnswer | None:
        self._connections.add(connection)
        most = self._max_connections_per_client
        connection.is_counted = self.connections.take(connection.client)
        if not connection.is_counted:
            connection.abort()
            return None
        if most is not None and self.connections.taken[connection.client] > most:
            message = f"client {connection.client} has {most} connections here; use one of them"
            return answer_from_error(QueueFullError(message))
        if len(self._connections) <= MAX_CONNECTIONS:
            return None
        message = f"Service Unavailable: {MAX_CONNECTIONS} connections are open; retry later"
        return json_error(503, message)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection.is_counted:
            self.connections.give_back(connection.client)
        if self._is_draining:
            self.wake()

    def _sweep(self) -> None:
        now = self.loop.events.time()
        for connection in tuple(self._connections):
            connection.sweep(now)
        self.loop.events.call_later(SWEEP_S, self._sweep)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's where it is installed: a quarter faster here, otherwise the same."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


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
