"""Streams over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from edge import http_connection, http_server, http_stream
from edge.http_answer import HttpAnswer, json_error
from edge.http_handler import Cancel, Reply
from edge.http_outlet import Outlet
from edge.http_request import HttpRequest
from edge.http_server import HttpServer, Loop
from edge.http_stream import HttpStream
from tests.edge.test_http_limits import StillLoop
from tests.fakes import DEADLINE_S, wait_until

HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
GET = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
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


@pytest.fixture(params=["uvloop", "asyncio"])
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    if request.param == "asyncio":
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
