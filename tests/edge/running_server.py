"""The agent's HTTP server in a thread of its own, and clients that speak in bytes."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, Response, request

from edge.http_server import AppHandler, HttpServer, Loop
from tests.fakes import DEADLINE_S, Gate

MAX_BODY_BYTES = 100_000


class Running:
    """A server driven by a thread of its own, with an app that echoes, waits and fails."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.drained: bool | None = None
        self._stop = threading.Event()
        self.loop = Loop()
        self.handler = AppHandler(self._app(), self.loop)
        self.refusals: list[int] = []
        self.server = HttpServer.open(
            self.handler,
            self.loop,
            host="127.0.0.1",
            port=0,
            max_body_bytes=MAX_BODY_BYTES,
            on_refusal=self.refusals.append,
        )
        self.port = int(self.server.url.rsplit(":", 1)[1])
        self.drain_timeout_s = DEADLINE_S
        self._thread = threading.Thread(target=self._run, name="http-main")
        self._thread.start()

    def _app(self) -> Flask:
        app = Flask("test")

        @app.post("/echo")
        def echo() -> Response:
            return Response(request.get_data(), content_type="application/octet-stream")

        @app.post("/wait")
        def wait() -> Response:
            self.gate()
            return Response(b"w" * 3_000_000)

        @app.post("/headers")
        def headers() -> Response:
            return Response(json.dumps({k: str(v) for k, v in request.environ.items()}))

        return app

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


def read_all(connection: socket.socket) -> bytes:
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def exchange(running: Running, sent: bytes, *, half_close: bool = False) -> tuple[int, str]:
    """Send bytes as they are and return the status and the error text of a JSON answer."""
    with running.connect() as connection:
        connection.sendall(sent)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert "Content-Type: application/json" in lines
    assert "Connection: close" in lines
    return int(lines[0].split()[1]), json.loads(body)["error"]


@contextmanager
def running_server() -> Iterator[Running]:
    server = Running()
    yield server
    server.gate.open()
    server.begin_stop()
    server.join()
