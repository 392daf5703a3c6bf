"""A Handler of the agent's server as a WSGI application, so that werkzeug's client can ask it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from werkzeug.test import Client
from werkzeug.wrappers import Request

from edge.http_answer import HttpAnswer
from edge.http_handler import Handler
from edge.http_request import HttpRequest
from edge.http_server import Loop
from tests.fakes import DEADLINE_S


@contextlib.contextmanager
def turning(loop: Loop) -> Iterator[None]:
    """Drive an event loop in a thread of its own."""
    stop = threading.Event()

    def turn() -> None:
        while not stop.is_set():
            loop.turn(DEADLINE_S)

    thread = threading.Thread(target=turn, name="loop")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        loop.stop()
        thread.join(DEADLINE_S)
        loop.events.close()


def client_of(handler: Handler, loop: Loop) -> Client:
    """Return a client whose requests the handler answers in the loop's thread."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        answer: Future[HttpAnswer] = Future()
        asked = Request(environ)
        request = HttpRequest(
            method=asked.method,
            path=asked.path,
            query=asked.query_string.decode(),
            headers={k.lower().encode(): v.encode() for k, v in asked.headers.items()},
            body=asked.get_data(),
        )
        loop.call(handler, request, answer.set_result)
        given = answer.result(DEADLINE_S)
        start_response(f"{given.status} x", list(given.headers.items()))
        return [given.body]

    return Client(app)
