"""Streams over real sockets, on both event loops."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from edge.http_answer import json_error
from edge.http_stream import HttpStream
from tests.edge.running_streams import (
    CLIENTS,
    EVENT_LOOPS,
    GET,
    HEADERS,
    Running,
    read_all,
    read_until,
    running_on,
)
from tests.fakes import DEADLINE_S, wait_until


@pytest.fixture(params=EVENT_LOOPS)
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running_on(request.param, monkeypatch) as server:
        yield server


def test_every_byte_on_the_wire_is_as_rfc_9112_says(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(GET)
        stream = running.stream()
        running.call(stream.send, b"data: a\n\n")
        first = read_until(connection, b"\r\n9\r\ndata: a\n\n\r\n")  # it is there before the end
        running.call(stream.send, b"x" * 26)
        assert read_until(connection, b"x\r\n") == b"1a\r\n" + b"x" * 26 + b"\r\n"
        running.call(stream.send, b"")  # an empty chunk would be the last
        running.call(stream.end)
        assert read_until(connection, b"0\r\n\r\n") == b"0\r\n\r\n"
        connection.sendall(b"GET /next HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert read_all(connection).endswith(b"\r\n\r\n/next")
    head = re.sub(rb"Date: [^\r]+GMT", b"Date: -", first.partition(b"\r\n\r\n")[0])
    assert head == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"
        b"Transfer-Encoding: chunked\r\nDate: -"
    )


def test_the_head_comes_before_there_is_anything_to_send(running: Running) -> None:
    with closing(running.http()) as connection:
        connection.request("GET", "/stream")
        response = connection.getresponse()
        assert (response.status, response.getheader("Content-Type")) == (200, "text/event-stream")
        running.call(running.stream().end)
        assert response.read() == b""


def test_what_is_sent_in_one_turn_leaves_with_one_write(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_three_and_end() -> None:
        for piece in (b"one ", b"two ", b"three"):
            stream.send(piece)
        stream.end()

    with running.connect() as connection:
        connection.sendall(GET)
        stream = running.stream()
        read_until(connection, b"\r\n\r\n")
        writes: list[bytes] = []
        outlet = stream._outlet
        assert outlet is not None
        write = outlet.write
        monkeypatch.setattr(
            outlet, "write", lambda content: (writes.append(content), write(content))
        )
        running.call(send_three_and_end)
        assert read_until(connection, b"0\r\n\r\n") == b"d\r\none two three\r\n0\r\n\r\n"
        assert len(writes) == 1


def test_httpx_and_http_client_read_what_was_sent_as_it_comes(running: Running) -> None:
    pieces = [bytes([65 + n % 26]) * (1 + 997 * n % 5000) for n in range(40)]
    with httpx.Client(base_url=running.server.url, timeout=DEADLINE_S) as client:
        with client.stream("POST", "/stream", json={}) as response:
            stream = running.stream(0)
            raw = response.iter_raw()
            for piece in pieces:
                running.call(stream.send, piece)
                got = b""
                while len(got) < len(piece):
                    got += next(raw)
                assert got == piece
            running.call(stream.end)
            assert b"".join(raw) == b""
        with closing(running.http()) as connection:
            connection.request("POST", "/stream", b"{}")
            for piece in pieces:
                running.call(running.stream(1).send, piece)
            running.call(running.stream(1).end)
            assert connection.getresponse().read() == b"".join(pieces)
        assert client.get("/plain").content == b"/plain"
    assert running.handler.cancelled == []


def test_http_1_0_gets_the_bare_body_and_the_close_as_its_end(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        stream = running.stream()
        running.call(stream.send, b"bare ")
        running.call(stream.send, b"body")
        running.call(stream.end)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert body == b"bare body"
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head


def test_head_gets_the_head_alone_and_the_connection_goes_on(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(GET.replace(b"GET", b"HEAD"))
        stream = running.stream()
        running.call(stream.send, b"not for HEAD")
        running.call(stream.end)
        connection.sendall(b"GET /next HTTP/1.1\r\nConnection: close\r\n\r\n")
        first, second, body = read_all(connection).split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert second.startswith(b"HTTP/1.1 200 OK")
    assert body == b"/next"


def test_requests_behind_a_stream_wait_for_its_end(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(GET + b"GET /a HTTP/1.1\r\n\r\n" + GET + b"GET /b HTTP/1.1\r\n\r\n")
        running.call(running.stream(0).send, b"first")
        assert running.handler.asked == ["/stream"]
        running.call(running.stream(0).end)
        running.call(running.stream(1).send, b"second")
        assert running.handler.asked == ["/stream", "/a", "/stream"]
        running.call(running.stream(1).end)
        connection.shutdown(socket.SHUT_WR)
        content = read_all(connection)
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in content.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [
        b"5\r\nfirst\r\n0\r\n\r\n",
        b"/a",
        b"6\r\nsecond\r\n0\r\n\r\n",
        b"/b",
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_a_stream_that_is_broken_off_does_not_pass_for_whole(
    running: Running, turned: bool
) -> None:
    with closing(running.http()) as connection:
        connection.request("POST", "/stream", b"{}")
        response = connection.getresponse()
        stream = running.stream()
        if turned:
            running.call(stream.send, b"some")
            running.call(stream.break_off)
        else:
            running.call(lambda: (stream.send(b"some"), stream.break_off()))
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
        assert caught.value.partial == b"some"
    wait_until(lambda: not running.server._connections)
    assert running.server.requests.taken == {}
    assert running.handler.cancelled == []  # the handler has ended it itself


def test_what_is_broken_off_for_http_1_0_is_a_reset(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        stream = running.stream()
        running.call(stream.send, b"some")
        read_until(connection, b"some")
        running.call(stream.break_off)
        with pytest.raises(ConnectionResetError):
            connection.recv(100)


@pytest.mark.parametrize("garbage", [b"\0\0\0", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"])
def test_no_refusal_is_written_into_a_body(running: Running, garbage: bytes) -> None:
    with running.connect() as connection:
        connection.sendall(GET)
        running.call(running.stream().send, b"some")
        read_until(connection, b"some\r\n")
        connection.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            assert read_all(connection) == b""
    wait_until(lambda: not running.server._connections)
    assert running.handler.cancelled == running.handler.streams
    assert running.refusals == []  # nobody was told


def test_draining_waits_for_a_stream_and_then_closes(running: Running) -> None:
    with closing(running.http()) as connection, running.connect() as idle:
        connection.request("GET", "/stream")
        response = connection.getresponse()
        running.begin_stop()
        assert read_all(idle) == b""
        running.call(running.stream().send, b"before ")
        running.call(running.stream().send, b"the end")
        running.loop.call(running.stream().end)
        assert response.read() == b"before the end"
        assert connection.sock is not None
        assert connection.sock.recv(1) == b""  # closed, although the head did not say so
    running.join()
    assert running.drained is True
    assert running.handler.cancelled == []


def test_draining_gives_up_a_stream_after_its_time_and_cancels_it(running: Running) -> None:
    running.drain_timeout_s = 0.0
    with closing(running.http()) as connection:
        connection.request("GET", "/stream")
        response = connection.getresponse()
        running.begin_stop()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    running.join()
    assert running.drained is False
    assert running.handler.cancelled == running.handler.streams


def test_no_second_answer_is_written_into_a_stream(running: Running) -> None:
    refused: list[ValueError] = []

    def answer_twice() -> None:
        (reply,) = running.handler.held
        reply(stream)
        try:
            reply(json_error(500, "too late"))
        except ValueError as error:
            refused.append(error)

    with closing(running.http()) as connection:
        connection.request("GET", "/held")
        wait_until(lambda: bool(running.handler.held))
        stream = HttpStream(headers=HEADERS)
        running.call(answer_twice)
        running.call(stream.end)
        assert connection.getresponse().read() == b""
    assert len(refused) == 1


def test_400_open_streams_each_get_their_whole_body(running: Running) -> None:
    """All are open at once before the first token; tokens differ by stream and by number."""
    tokens = 30
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running.connect()) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            client.sendall(GET.replace(b"/stream", b"/stream?%d" % number))
        wait_until(lambda: len(running.handler.streams) == CLIENTS)
        peers = {
            connection._transport.get_extra_info("peername"): connection._stream
            for connection in running.server._connections
        }

        def step(turn: int) -> None:
            for (_, port), stream in peers.items():
                assert stream is not None
                stream.send(b"data: %d of %d\n\n" % (turn, port))

        for turn in range(tokens):
            running.call(step, turn)
        running.call(lambda: [stream.end() for stream in running.handler.streams])
        for client in clients:
            port = client.getsockname()[1]
            content = read_until(client, b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")[2]
            events = [b"data: %d of %d\n\n" % (turn, port) for turn in range(tokens)]
            assert content == b"".join(
                b"%x\r\n%b\r\n" % (len(event), event) for event in events
            ) + (b"0\r\n\r\n")
    assert running.handler.cancelled == []
