"""Clients of streams that go away, read slowly or not at all, on both event loops."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from edge import http_connection, http_stream
from edge.http_outlet import Outlet
from edge.http_stream import HttpStream
from tests.edge.running_streams import (
    EVENT_LOOPS,
    GET,
    HEADERS,
    Running,
    read_all,
    read_until,
    reset,
    running_on,
)
from tests.edge.test_http_limits import StillLoop
from tests.fakes import wait_until


@pytest.fixture(params=EVENT_LOOPS)
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running_on(request.param, monkeypatch) as server:
        yield server


@pytest.mark.parametrize("goes", ["resets", "closes", "closes in the middle of its next request"])
def test_a_client_that_goes_away_cancels_once_and_gives_its_place_back(
    running: Running, goes: str
) -> None:
    connection = running.connect()
    connection.sendall(GET.replace(b"GET", b"POST"))
    stream = running.stream()
    read_until(connection, b"\r\n\r\n")
    assert sum(running.server.requests.taken.values()) == 1
    if goes == "resets":
        reset(connection)
    else:
        if goes != "closes":
            connection.sendall(b"POST /more HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
        connection.close()

    def is_noticed() -> bool:  # a client that closes is known from what it sends back
        running.call(stream.send, b"token")
        return bool(running.handler.cancelled)

    wait_until(is_noticed)
    wait_until(lambda: not running.server._connections)
    running.call(stream.end)
    running.call(stream.break_off)
    assert running.handler.cancelled == [stream]
    assert running.server.requests.taken == {}


def test_a_client_that_has_said_all_still_gets_its_whole_stream(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(GET)
        connection.shutdown(socket.SHUT_WR)
        stream = running.stream()
        for _ in range(20):
            running.call(stream.send, b"token")
        running.call(stream.end)
        content = read_all(connection)
    assert content.endswith(b"5\r\ntoken\r\n" * 20 + b"0\r\n\r\n")
    assert running.handler.cancelled == []


def test_a_client_that_reads_too_slowly_is_cut_off_and_holds_no_memory(running: Running) -> None:
    piece = b"x" * 10_000
    with running.connect() as connection:
        connection.sendall(GET)
        stream, most = running.stream(), 0
        (serving,) = running.server._connections
        while not running.handler.cancelled:
            running.call(stream.send, piece)
            most = max(most, serving._outlet.unsent_bytes)
        assert http_stream.MAX_UNSENT_BYTES - len(piece) < most
        assert most < http_stream.MAX_UNSENT_BYTES + 3 * len(piece)
        wait_until(lambda: not running.server._connections)
        with contextlib.suppress(ConnectionError):
            assert not read_all(connection).endswith(b"0\r\n\r\n")
    assert running.handler.cancelled == [stream]


def test_a_large_answer_in_one_piece_is_no_slow_client(running: Running) -> None:
    body = bytes(n % 251 for n in range(5_000_000))
    with closing(running.http()) as connection:
        connection.request("GET", "/stream")
        running.loop.call(running.stream().send, body)
        running.loop.call(running.stream().end)
        assert connection.getresponse().read() == body


def sweep(running: Running, *, after_s: float) -> None:
    """Have all connections swept as if so much time had passed."""

    def look() -> None:
        for connection in tuple(running.server._connections):
            connection.sweep(running.loop.events.time() + after_s)

    running.call(look)


def test_a_quiet_stream_is_waited_for(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(GET + b"POST /half HTTP/1.1\r\nContent-Le")
        stream = running.stream()
        read_until(connection, b"\r\n\r\n")
        for hours in range(1, 4):
            sweep(running, after_s=3600.0 * hours)
        running.call(stream.send, b"thought")
        read_until(connection, b"thought\r\n")
    assert running.handler.cancelled == []


def test_a_client_that_takes_nothing_is_cut_after_its_time_although_more_comes(
    running: Running,
) -> None:
    with running.connect() as connection:
        connection.sendall(GET)
        stream = running.stream()
        (serving,) = running.server._connections
        while not serving._outlet.unsent_bytes:  # the kernel's buffers are full
            running.call(stream.send, b"x" * 50_000)
        running.call(stream.send, b"x" * 500_000)
        limit_s = http_connection.IDLE_S
        for part in (0.1, 0.5, 0.9):
            sweep(running, after_s=limit_s * part)
            running.call(stream.send, b"more")
        assert running.handler.cancelled == []
        later_s = itertools.count(2.0, 2.0)

        def is_cut() -> bool:  # the kernel may have moved a last bit of it to the other side
            sweep(running, after_s=limit_s * next(later_s))
            return bool(running.handler.cancelled)

        wait_until(is_cut)


class Full:
    """A transport whose client takes as much as the test says."""

    def __init__(self) -> None:
        self.unsent = 0

    def write(self, content: bytes) -> None:
        self.unsent += len(content)

    def get_write_buffer_size(self) -> int:
        return self.unsent


def test_a_client_that_takes_less_than_comes_is_not_stalled_and_one_that_takes_nothing_is() -> None:
    transport = Full()
    outlet = Outlet(transport, StillLoop())  # type: ignore[arg-type]
    for now in range(1, 100):  # ever more waits, and yet it moves
        outlet.write(b"x" * 10)
        transport.unsent -= 1
        assert outlet.has_moved(now)
        assert outlet.stalled_s(now) == 0
    for now in range(100, 200):
        outlet.write(b"x")
        assert not outlet.has_moved(now)
        assert outlet.stalled_s(now) == now - 99
    transport.unsent = 0
    assert outlet.has_moved(200)
    for now in range(201, 300):  # nothing waits, and nothing is missing
        assert not outlet.has_moved(now)
        assert outlet.stalled_s(now) == 0


def test_a_stream_for_a_client_that_has_gone_takes_everything_and_does_nothing() -> None:
    stream = HttpStream(headers=HEADERS)
    for _ in range(3):
        stream.send(b"x" * 1000)
    stream.end()
    stream.break_off()
    assert stream._pieces == []
