"""Sends a load of HTTP requests and times the answers: raw sockets and epoll, little CPU.

    python -m edge.bench.load_client < Load in msgpack > Outcome in msgpack

Closed loop: every connection sends its next request when it has its answer. Open loop: requests
fall due by a Poisson process whatever became of those before, and their latency counts from that
moment, so a server that stalls cannot hide the requests it kept from being sent.
"""

from __future__ import annotations

import math
import re
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from edge.errors import InferenceError, NoAgentError
from edge.http_client import Address, no_agent
from edge.latency import Latency, latency_from_seconds

DRAIN_S = 30.0  # how long answers are awaited after the last request
TAIL_BYTES = 64
_CHUNK_BYTES = 1 << 18
_STARTED = b"s"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send, and how.

    requests: whole HTTP requests, sent in turn. connections: of a closed loop; of an open loop,
    which `rate` (requests per second) makes it, the most that are opened. tolerance: an answer is
    wrong unless it ends like the first one to its request, or with an FP32 so near to that one's,
    since int8 rounds differently in other batches; None compares nothing.
    """

    host: str
    port: int
    requests: tuple[bytes, ...]
    seconds: float
    connections: int
    rate: float | None = None
    tolerance: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a load.

    seconds: of sending; elapsed_s: until the last answer. due: requests that were to be sent in
    that time. in_time: answers of status 200 that came in it. latency: by status. lost:
    connections that ended in the place of an answer. unanswered: requests without one DRAIN_S
    later. wrong: see `Load.tolerance`. client_share: of a processor, that this client took; near 1
    it measures itself.
    """

    seconds: float
    elapsed_s: float
    due: int
    in_time: int
    latency: dict[int, Latency]
    lost: int
    unanswered: int
    wrong: int
    client_share: float


def run_load_in_child(load: Load, *, started: Callable[[], object] = lambda: None) -> Outcome:
    """Run a load in a process of its own, so that this one does not disturb it.

    started: called when the first requests are about to be sent. Raises NoAgentError if nobody
    listens there or no HTTP/1 answers.
    """
    command = [sys.executable, "-m", "edge.bench.load_client"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(msgspec.msgpack.encode(load))
            process.stdin.close()
            if process.stdout.read(1):
                started()
            content = process.stdout.read()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise InferenceError(f"the load client ended with {process.returncode}; see above")
    outcome = msgspec.msgpack.decode(content, type=Outcome | str)
    if isinstance(outcome, str):
        raise NoAgentError(outcome)
    return outcome


def run_load(load: Load, *, clock: Callable[[], float] = time.perf_counter) -> Outcome:
    """Run a load in this thread; see `run_load_in_child`."""
    client = _Client(load, clock)
    try:
        return client.run()
    finally:
        client.close()


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection.

    request: the number of the one under way, None while idle. is_blocked: whether its unsent rest
    waits for the socket.
    """

    sock: socket.socket
    request: int | None = None
    started: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    is_blocked: bool = False

    def answer(self) -> tuple[int, bytes, bool] | None:
        """Return status, end of the body, and whether the server will close; None so far."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self.received, 0, end + 2)
        if length is None or not self.received.startswith(b"HTTP/1."):
            head = bytes(self.received[:80])
            raise NoAgentError(f"the answer is not HTTP/1 with a Content-Length: {head!r}")
        if len(self.received) < end + 4 + int(length[1]):
            return None
        closes = _CLOSE.search(self.received, 0, end + 2) is not None
        status, tail = int(self.received[9:12]), bytes(self.received[-TAIL_BYTES:])
        self.received.clear()
        return status, tail, closes


class _Client:
    """The loop around all connections."""

    def __init__(self, load: Load, clock: Callable[[], float]) -> None:
        self._load = load
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        self._opened = 0
        self._busy = 0
        self._due = 0
        self._seconds: dict[int, list[float]] = {}
        self._expected: dict[int, bytes] = {}
        self._in_time = self._lost = self._wrong = 0
        self._end = 0.0

    def run(self) -> Outcome:
        load = self._load
        for _ in range(load.connections if load.rate is None else 1):
            self._idle.append(self._connected())
        busy_s, begun = time.process_time(), self._clock()
        self._end = begun + load.seconds
        unsent = self._closed_loop() if load.rate is None else self._open_loop(begun, load.rate)
        elapsed_s = max(self._clock() - begun, load.seconds)
        return Outcome(
            seconds=load.seconds,
            elapsed_s=elapsed_s,
            client_share=(time.process_time() - busy_s) / elapsed_s,
            due=self._due,
            in_time=self._in_time,
            latency={
                status: latency_from_seconds(values)
                for status, values in sorted(self._seconds.items())
            },
            lost=self._lost,
            unanswered=self._busy + unsent,
            wrong=self._wrong,
        )

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr] # only sockets are registered
        self._selector.close()

    def _closed_loop(self) -> int:
        while (now := self._clock()) < self._end:
            while self._idle:
                self._send(self._idle.popleft(), now)
                self._due += 1
            self._turn(self._end - now)
        self._drain()
        return 0

    def _open_loop(self, begun: float, rate: float) -> int:
        rng = np.random.default_rng(self._load.seed)
        waiting: deque[float] = deque()  # due, but without a free connection
        due = begun + rng.exponential(1 / rate)
        while (now := self._clock()) < self._end or (waiting and now < self._end + DRAIN_S):
            while due <= min(now, self._end):
                waiting.append(due)
                self._due += 1
                due += rng.exponential(1 / rate)
            while waiting and (self._idle or self._opened < self._load.connections):
                connection = self._idle.popleft() if self._idle else self._connected()
                self._send(connection, waiting.popleft())
            limit = due if due <= self._end else (self._end if now < self._end else math.inf)
            self._turn(limit - self._clock())
        self._drain()
        return len(waiting)

    def _drain(self) -> None:
        while self._busy and (now := self._clock()) < self._end + DRAIN_S:
            self._turn(self._end + DRAIN_S - now)

    def _turn(self, timeout_s: float) -> None:
        for key, events in self._selector.select(min(1.0, max(0.0, timeout_s))):
            connection: _Connection = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    self._push(connection)
                if events & selectors.EVENT_READ:
                    self._receive(connection)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                self._drop(connection)

    def _send(self, connection: _Connection, started: float) -> None:
        number = self._due % len(self._load.requests)
        connection.request, connection.started = number, started
        connection.unsent = memoryview(self._load.requests[number])
        self._busy += 1
        try:
            self._push(connection)
        except OSError:
            self._drop(connection)

    def _push(self, connection: _Connection) -> None:
        while connection.unsent:
            try:
                sent = connection.sock.send(connection.unsent)
            except BlockingIOError:
                break
            connection.unsent = connection.unsent[sent:]
        if connection.is_blocked != bool(connection.unsent):
            connection.is_blocked = bool(connection.unsent)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE * connection.is_blocked)
            self._selector.modify(connection.sock, events, connection)

    def _receive(self, connection: _Connection) -> None:
        chunk = connection.sock.recv(_CHUNK_BYTES)
        if not chunk:
            self._drop(connection)
            return
        connection.received += chunk
        answer = connection.answer()
        if answer is None or connection.request is None:
            return
        status, tail, closes = answer
        now, number = self._clock(), connection.request
        self._seconds.setdefault(status, []).append(now - connection.started)
        self._in_time += status == 200 and now < self._end
        if self._load.tolerance is not None:
            expected = self._expected.setdefault(number, tail)
            self._wrong += status != 200 or not agree(tail, expected, self._load.tolerance)
        connection.request = None
        self._busy -= 1
        if closes or connection.unsent:  # it was refused before it was sent
            connection = self._replaced(connection)
        self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        """Count what was under way on a connection that ended, and put another in its place."""
        if connection.request is None:
            self._idle.remove(connection)
        else:
            self._lost += 1
            self._busy -= 1
        self._idle.append(self._replaced(connection))

    def _replaced(self, connection: _Connection) -> _Connection:
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._opened -= 1
        return self._connected()

    def _connected(self) -> _Connection:
        host, port = self._load.host, self._load.port
        try:
            sock = socket.create_connection((host, port), timeout=DRAIN_S)
        except OSError as error:
            raise no_agent(Address(host=host, port=port), error) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = _Connection(sock)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._opened += 1
        return connection


def agree(tail: bytes, expected: bytes, tolerance: float) -> bool:
    """Whether two answers end alike, or with an FP32 so near."""
    if not tolerance:
        return tail == expected
    last, first = (np.frombuffer(text[-4:], np.float32)[0] for text in (tail, expected))
    return bool(abs(last - first) <= tolerance)


def main() -> None:
    """Read a Load from standard input, run it, write the Outcome or what is wrong."""
    load = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Load)
    out = sys.stdout.buffer
    out.write(_STARTED)
    out.flush()
    answer: Outcome | str
    try:
        answer = run_load(load)
    except NoAgentError as error:
        answer = str(error)
    out.write(msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
