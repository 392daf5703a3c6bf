"""Whatever clients do, what they held is given back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.access import Access
from edge.http_answer import HttpAnswer, json_error
from edge.http_connection import ARRIVAL_S, Connection, Rules
from edge.http_handler import Reply
from edge.http_limits import Budget, ClientPlaces, client_from_address
from edge.http_request import HttpRequest
from edge.http_stream import HttpStream

MAX_BODY_BYTES = 100
MOST = 2
CLIENTS = ("10.0.0.1", "10.0.0.2")
POST = b"POST /slow HTTP/1.1\r\nContent-Length: 40\r\n\r\n"
CHUNKED = b"POST /slow HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECES = (
    POST + b"x" * 40,
    POST + b"x" * 39,
    b"x",
    POST * 2,
    CHUNKED,
    CHUNKED + b"a\r\n0123456789\r\n0\r\n\r\n",
    b"5a\r\n" + b"y" * 90 + b"\r\n",
    b"zz\r\n",
    b"POST /full HTTP/1.1\r\nContent-Length: 30\r\n\r\n" + b"x" * 30,
    b"POST /full HTTP/1.1\r\nContent-Length: 30\r\n\r\n" + b"x" * 10,
    b"POST /full HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"POST /slow HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\n12",
    b"POST /slow HTTP/1.1\r\nContent-Length: 4000\r\n\r\n",
    b"POST nonsense HTTP/1.1\r\nContent-Length: 1\r\n\r\n1",
    b"GET /slow HTTP/1.1\r\n\r\n",
    b"POST /slow HT",
    b"\0",
)


class StillLoop:
    """As much of an event loop as a connection uses; its time moves when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], object]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[[], object]) -> None:
        self.soon.append(function)

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class Wire(asyncio.Transport):
    """A transport whose client reads at once; a close is told to the connection later."""

    def __init__(self, loop: StillLoop, address: str) -> None:
        super().__init__({"peername": (address, 1)})
        self._loop = loop
        self.sent = b""
        self.connection: Any = None
        self.is_lost = False
        self.is_told = False
        self.reads = True

    def write(self, data: Any) -> None:
        assert not self.is_told
        self.sent += data

    def writelines(self, chunks: Any) -> None:
        self.write(b"".join(chunks))

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_lost

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self.is_told = True
        self.connection.connection_lost(None)


class SlowHandler:
    """Answers when told; refuses what is sent to /full."""

    def __init__(self) -> None:
        self.waiting: list[Reply] = []
        self.streams: dict[Reply, HttpStream] = {}  # begun and not ended
        self.over: list[HttpStream] = []  # cancelled or ended

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        return json_error(429, "full") if path == "/full" else None

    def __call__(self, request: HttpRequest, reply: Reply) -> Any:
        def cancel() -> None:  # called once at most, and only for what is not over
            if reply in self.streams:
                self.over.append(self.streams.pop(reply))
            else:
                self.waiting.remove(reply)

        assert request.path != "/full"
        self.waiting.append(reply)
        return cancel

    def close(self) -> None:
        pass


class Clients(RuleBasedStateMachine):
    """Clients that send anything at any time, vanish, wait too long; a handler that is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = StillLoop()
        self.handler = SlowHandler()
        self.budget, self.places = Budget(8 * MAX_BODY_BYTES), ClientPlaces(MOST)
        self.wires: list[Wire] = []
        self.refused: Counter[int] = Counter()

    @rule(address=st.sampled_from(CLIENTS))
    def connect(self, address: str) -> None:
        rules = Rules(
            handler=self.handler,
            loop=self.loop,  # type: ignore[arg-type]
            address=("10.0.0.9", 80),
            max_body_bytes=MAX_BODY_BYTES,
            access=Access(),
            arriving=self.budget,
            per_client=self.places,
            on_refusal=lambda status: self.refused.update([status]),
            on_open=lambda connection: None,
            on_close=lambda connection: None,
        )
        wire = Wire(self.loop, address)
        wire.connection = Connection(rules)
        wire.connection.connection_made(wire)
        self.wires.append(wire)

    def wire(self, number: int) -> Wire:
        return self.wires[number % len(self.wires)]

    @precondition(lambda self: self.wires)
    @rule(number=st.integers(0, 7), piece=st.sampled_from(PIECES), cut=st.integers(1, 120))
    def send(self, number: int, piece: bytes, cut: int) -> None:
        wire = self.wire(number)
        for part in (piece[:cut], piece[cut:]):
            if part and wire.reads and not wire.is_lost:
                wire.connection.data_received(part)

    @precondition(lambda self: self.wires)
    @rule(number=st.integers(0, 7))
    def half_close(self, number: int) -> None:
        wire = self.wire(number)
        if not wire.is_lost and not wire.connection.eof_received():
            wire.close()

    @precondition(lambda self: self.wires)
    @rule(number=st.integers(0, 7))
    def vanish(self, number: int) -> None:
        self.wire(number).abort()

    @precondition(lambda self: self.handler.waiting)
    @rule(number=st.integers(0, 7))
    def answer(self, number: int) -> None:
        reply = self.handler.waiting.pop(number % len(self.handler.waiting))
        reply(HttpAnswer(status=200, body=b"{}"))

    @precondition(lambda self: self.handler.waiting)
    @rule(number=st.integers(0, 7))
    def begin_to_answer(self, number: int) -> None:
        reply = self.handler.waiting.pop(number % len(self.handler.waiting))
        self.handler.streams[reply] = stream = HttpStream(headers={})
        reply(stream)

    @precondition(lambda self: self.handler.streams)
    @rule(number=st.integers(0, 7), end=st.sampled_from(["end", "break off", "not yet"]))
    def go_on(self, number: int, end: str) -> None:
        streams = self.handler.streams
        reply = list(streams)[number % len(streams)]
        streams[reply].send(b"token")
        if end != "not yet":
            stream = streams.pop(reply)
            self.handler.over.append(stream)
            (stream.end if end == "end" else stream.break_off)()

    @precondition(lambda self: self.handler.over)
    @rule(number=st.integers(0, 7), end=st.booleans())
    def go_on_with_what_is_over(self, number: int, end: bool) -> None:
        stream = self.handler.over[number % len(self.handler.over)]
        stream.send(b"for nobody")
        (stream.end if end else stream.break_off)()

    @rule()
    def wait_too_long(self) -> None:
        self.loop.now += ARRIVAL_S + 1
        for wire in self.wires:
            if not wire.is_lost:
                wire.connection.sweep(self.loop.now)

    @rule()
    def settle(self) -> None:
        self.loop.run()
        self.wires = [wire for wire in self.wires if not wire.is_lost]

    @invariant()
    def nobody_has_more_than_its_places(self) -> None:
        assert all(0 < taken <= MOST for taken in self.places.taken.values())
        assert self.budget.used >= 0

    @invariant()
    def only_who_is_connected_holds_something(self) -> None:
        assert set(self.places.taken) <= {wire.connection.client for wire in self.wires}

    def teardown(self) -> None:
        for wire in self.wires:
            wire.abort()
        self.settle()
        assert self.places.taken == {}
        assert self.budget.used == 0
        assert self.handler.waiting == []
        assert self.handler.streams == {}


Clients.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestClients = Clients.TestCase


def test_without_a_limit_nothing_is_counted() -> None:
    places = ClientPlaces(None)
    assert all(places.take("10.0.0.1") for _ in range(1000))
    places.give_back("10.0.0.1")
    assert places.taken == {}


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(address: str, client: str) -> None:
    assert client_from_address(address) == client


def test_a_request_whose_answer_nobody_will_get_is_cancelled_once() -> None:
    machine = Clients()
    machine.connect(CLIENTS[0])
    whole = PIECES[0]
    machine.send(0, whole, len(whole))
    (reply,) = machine.handler.waiting
    machine.send(0, b"\0", 1)  # no HTTP: the connection ends, and with it the request before
    assert machine.handler.waiting == []
    reply(HttpAnswer(status=200, body=b"{}"))
    assert b"200" not in machine.wires[0].sent
    machine.teardown()
