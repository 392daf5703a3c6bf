"""A server of streams that tests feed, on either event loop, and what reads them."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from edge import http_server
from edge.http_answer import HttpAnswer, json_error
from edge.http_handler import Cancel, Reply
from edge.http_request import HttpRequest
from edge.http_server import HttpServer, Loop
from edge.http_stream import HttpStream
from tests.fakes import DEADLINE_S, wait_until

EVENT_LOOPS = ["uvloop", "asyncio"]
HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
GET = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLIENTS = 400


class Streamer:
    """Begins a stream for /stream, keeps /held waiting; other paths are echoed."""

    def __init__(self) -> None:
        self.streams: list[HttpStream] = []
        self.cancelled: list[HttpStream] = []
        self.asked: list[str] = []
        self.held: list[Reply] = []

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        return json_error(429, "full") if path == "/full" else None

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        self.asked.append(request.path)
        if request.path == "/held":
            self.held.append(reply)
            return None
        if request.path != "/stream":
            reply(HttpAnswer(status=200, body=request.path.encode() + request.body))
            return None
        stream = HttpStream(headers=HEADERS)
        reply(stream)
        self.streams.append(stream)
        return lambda: self.cancelled.append(stream)

    def close(self) -> None:
        pass


class Running:
    """A server driven by a thread of its own, whose streams the tests feed."""

    def __init__(self) -> None:
        self.drained: bool | None = None
        self.drain_timeout_s = DEADLINE_S
        self._stop = threading.Event()
        self.loop = Loop()
        self.handler = Streamer()
        self.refusals: list[int] = []
        self.server = HttpServer.open(
            self.handler,
            self.loop,
            host="127.0.0.1",
            port=0,
            max_body_bytes=100_000,
            max_per_client=CLIENTS,
            on_refusal=self.refusals.append,
        )
        self.port = int(self.server.url.rsplit(":", 1)[1])
        self._thread = threading.Thread(target=self._run, name="http-main")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.server.turn()
        self.drained = self.server.drain(self.drain_timeout_s)
        self.server.close()

    def begin_stop(self) -> None:
        self._stop.set()
        self.server.wake()

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)

    def http(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def stream(self, number: int = 0) -> HttpStream:
        wait_until(lambda: len(self.handler.streams) > number)
        return self.handler.streams[number]

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call in the loop's thread, and wait until that, and what it wrote, is done."""
        done = threading.Event()
        self.loop.call(function, *args)
        self.loop.call(lambda: self.loop.events.call_soon(done.set))
        assert done.wait(DEADLINE_S)


@contextmanager
def running_on(event_loop: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Run a server on an event loop of EVENT_LOOPS; skips if it is not installed."""
    if event_loop == "asyncio":
        monkeypatch.setattr(http_server, "_new_event_loop", asyncio.new_event_loop)
    else:
        pytest.importorskip("uvloop")
    server = Running()
    yield server
    server.drain_timeout_s = 0.0
    server.begin_stop()
    server.join()


def read_all(connection: socket.socket) -> bytes:
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    content = b""
    while not content.endswith(end):
        chunk = connection.recv(65536)
        assert chunk, content
        content += chunk
    return content


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
