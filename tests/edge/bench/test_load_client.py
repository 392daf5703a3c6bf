from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from edge.bench.load_client import Load, run_load, run_load_in_child
from edge.errors import NoAgentError
from tests.agents import unused_port
from tests.fakes import DEADLINE_S

BODY = b"0123456789"
REQUEST = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"
Answer = Callable[[int], bytes | None]


def response(status: int = 200, body: bytes = BODY, extra: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%s\r\n" % (status, len(body), extra)
    return head + body


class Server:
    """A keep-alive server that answers request number n with answer(n); None hangs up."""

    def __init__(self, answer: Answer) -> None:
        self.requests = 0
        self.connections = 0
        self._answer = answer
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, name="server")]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(client,), name="connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            received = b""
            while True:
                while len(received) < len(REQUEST):
                    chunk = client.recv(65536)
                    if not chunk:
                        return
                    received += chunk
                assert received.startswith(REQUEST)
                received = received[len(REQUEST) :]
                with self._lock:
                    number = self.requests
                    self.requests += 1
                content = self._answer(number)
                if content is None:
                    return
                client.sendall(content)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    server._threads[0].start()
    try:
        yield server
    finally:
        server.close()


def load_on(server: Server, **changes: object) -> Load:
    load = Load(host="127.0.0.1", port=server.port, requests=(REQUEST,), seconds=0.2, connections=2)
    return replace(load, **changes)  # type: ignore[arg-type]


def test_a_closed_loop_counts_every_request_that_the_server_saw():
    with serving(lambda number: response()) as server:
        outcome = run_load(load_on(server, connections=3))
    assert server.connections == 3
    assert outcome.latency[200].answers == outcome.due == server.requests
    assert outcome.in_time <= server.requests
    assert (outcome.lost, outcome.unanswered, outcome.wrong) == (0, 0, 0)


def test_answers_are_counted_by_status():
    with serving(lambda number: response(429 if number % 4 == 0 else 200)) as server:
        outcome = run_load(load_on(server))
    refused, answered = outcome.latency[429].answers, outcome.latency[200].answers
    assert refused + answered == server.requests
    assert refused == (server.requests + 3) // 4


def test_an_answer_that_comes_after_the_end_still_counts_but_not_as_throughput():
    """A client that stops its clock at the end would lose just the slowest answers."""
    end = threading.Event()

    def clock() -> float:
        now = time.perf_counter()
        if now > begun + 0.4:
            end.set()
        return now

    def answer(number: int) -> bytes:
        assert end.wait(DEADLINE_S)
        return response()

    begun = time.perf_counter()
    with serving(answer) as server:
        outcome = run_load(load_on(server, connections=2, seconds=0.2), clock=clock)
    assert outcome.latency[200].answers == 2
    assert outcome.in_time == 0
    assert outcome.elapsed_s > 0.2


def test_an_open_loop_counts_the_requests_that_a_stall_kept_from_being_sent():
    """The server stalls once, for STALL_S; a closed loop would see one slow request.

    All that fall due meanwhile wait for the one connection, so their latencies, from the moment
    they are due, run from the stall's length down to nothing.
    """
    stall_s, rate = 0.4, 200.0
    release = threading.Event()
    begun: list[float] = []

    def clock() -> float:
        now = time.perf_counter()
        if begun and now > begun[0] + stall_s:
            release.set()
        return now

    def answer(number: int) -> bytes:
        if number == 0:
            begun.append(time.perf_counter())
            assert release.wait(DEADLINE_S)
        return response()

    with serving(answer) as server:
        load = load_on(server, connections=1, seconds=0.8, rate=rate)
        outcome = run_load(load, clock=clock)
        closed = server.requests
    latency = outcome.latency[200]
    assert latency.answers == outcome.due == closed
    assert latency.max_ms >= 1e3 * stall_s
    # Half of the load's time is stalled, so its latencies are spread evenly over 0 to STALL_S in
    # half of the requests: the upper tenth of all lies above 0.8 STALL_S. A bound far below it
    # leaves room for what the Poisson process and a slow machine do.
    assert latency.p90_ms is not None
    assert latency.p90_ms > 1e3 * stall_s * 0.4
    assert latency.mean_ms > 1e3 * stall_s * 0.1


def test_an_open_loop_offers_its_rate_whatever_the_answers_take():
    with serving(lambda number: response()) as server:
        outcome = run_load(load_on(server, seconds=1.0, rate=400.0, connections=64))
    # Poisson: a standard deviation of 20.
    assert 300 < outcome.due < 500
    assert outcome.latency[200].answers == outcome.due


def test_a_connection_that_ends_in_place_of_an_answer_is_lost_and_replaced():
    with serving(lambda number: None if number == 5 else response()) as server:
        outcome = run_load(load_on(server, connections=1))
    assert outcome.lost == 1
    assert server.connections == 2
    assert outcome.latency[200].answers == server.requests - 1


def test_a_server_that_closes_after_every_answer_loses_nothing():
    with serving(lambda number: response(extra=b"connection: close\r\n")) as server:
        outcome = run_load(load_on(server, connections=1, seconds=0.1))
    assert outcome.lost == 0
    assert outcome.latency[200].answers == server.requests


def test_answers_may_arrive_in_pieces():
    content = response(body=bytes(300_000))
    with serving(lambda number: content) as server:
        outcome = run_load(load_on(server))
    assert outcome.latency[200].answers == server.requests > 0


def test_an_answer_that_ends_otherwise_is_wrong():
    with serving(lambda number: response(body=b"%10d" % (number == 3))) as server:
        outcome = run_load(load_on(server, tolerance=0.0, connections=1))
    assert outcome.wrong == 1


def test_nobody_at_the_address_is_one_error_with_it():
    port = unused_port()
    load = Load(host="127.0.0.1", port=port, requests=(REQUEST,), seconds=0.1, connections=1)
    with pytest.raises(NoAgentError, match=f"http://127.0.0.1:{port}: connection refused"):
        run_load_in_child(load)


def test_what_is_no_http_is_said_to_be_none():
    with (
        serving(lambda number: b"220 ready\r\n\r\n") as server,
        pytest.raises(NoAgentError, match="not HTTP/1"),
    ):
        run_load(load_on(server))


def test_a_load_in_a_child_gives_the_same_outcome_and_tells_when_it_starts():
    started: list[bool] = []
    with serving(lambda number: response()) as server:
        outcome = run_load_in_child(load_on(server), started=lambda: started.append(True))
    assert started == [True]
    assert outcome.latency[200].answers == outcome.due == server.requests
