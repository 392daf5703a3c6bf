"""Files over HTTP from one server, with a deadline on everything that the server could draw out.

A client of its own, on the parser that serves requests too: ready-made ones bound the pause
between two bytes but not a head that comes byte by byte, follow redirects, or ask the environment
for proxies.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import httptools

from edge.errors import FreshnessError, UsageError
from edge.http_client import address_from_url
from edge.update.origin import Body, Clock

MAX_HEAD_BYTES = 16 << 10
RECEIVE_BYTES = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)")
_ABSENT = {403, 404, 410}  # stores hide what is not there behind 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server may take: to connect, to send a head, and for window_bytes each window."""

    connect_s: float = 10.0
    head_s: float = 20.0
    window_s: float = 20.0
    window_bytes: int = 20 << 10


class HttpOrigin:
    """Gives files of one server; one connection a file, because updates are rare. Not thread-safe.

    Raises UsageError for an address that is none, or that carries a user name.
    """

    def __init__(
        self, url: str, *, patience: Patience = Patience(), clock: Clock = time.monotonic
    ) -> None:
        if "@" in urlsplit(url).netloc:
            raise UsageError("the channel's address holds a user name; channels are public files")
        self._address = address_from_url(url)
        self._patience, self._clock = patience, clock
        self._open: _Exchange | None = None

    def open(self, path: str, *, offset: int = 0) -> Body | None:
        """Return a file's bytes."""
        self.close()
        exchange = _Exchange(
            self._connect(), self._patience, self._clock, f"{self._address}/{path}"
        )
        self._open = exchange
        exchange.ask(self._request(path, offset))
        status = exchange.status
        if status == 200:
            return Body(offset=0, chunks=exchange.chunks())
        if status == 206 and offset > 0:
            found = _CONTENT_RANGE.fullmatch(exchange.headers.get("content-range", ""))
            if found is not None and int(found[1]) == offset:
                return Body(offset=offset, chunks=exchange.chunks())
            raise exchange.failure("it answered with another range than it was asked for")
        if status == 416 and offset > 0:  # the file is shorter than what is here: begin anew
            return self.open(path)
        if status in _ABSENT:
            exchange.close()
            return None
        if 300 <= status < 400:
            raise exchange.failure("it redirects elsewhere, which a channel must not")
        raise exchange.failure(f"it answered with status {status}")

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _request(self, path: str, offset: int) -> bytes:
        target = quote(f"{self._address.prefix}/{path}", safe="/._-~%")
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}:{self._address.port}",
            "User-Agent: edge-agent",
            "Accept-Encoding: identity",
            "Connection: close",
            *((f"Range: bytes={offset}-",) if offset else ()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def _connect(self) -> socket.socket:
        address = (self._address.host, self._address.port)
        try:
            plain = socket.create_connection(address, timeout=self._patience.connect_s)
        except (OSError, UnicodeError) as error:
            raise _away(str(self._address), error) from error
        if self._address.scheme == "http":
            return plain
        try:
            return ssl.create_default_context().wrap_socket(plain, server_hostname=address[0])
        except (OSError, ValueError) as error:
            plain.close()
            raise _away(str(self._address), error) from error


@dataclass(slots=True)
class _Exchange:
    """One request and its answer, on a connection of its own; also what httptools calls back."""

    sock: socket.socket
    patience: Patience
    clock: Clock
    place: str
    headers: dict[str, str] = field(default_factory=dict)
    body: list[bytes] = field(default_factory=list)
    is_headed: bool = False
    is_complete: bool = False
    parser: httptools.HttpResponseParser | None = None

    @property
    def status(self) -> int:
        """The answer's status."""
        assert self.parser is not None  # noqa: S101 - `ask` makes it
        return int(self.parser.get_status_code())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; those behind a body concern nobody."""
        if self.is_headed:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note that the body begins."""
        self.is_headed = True

    def on_body(self, content: bytes) -> None:
        """Keep a piece of the body until it is asked for."""
        self.body.append(content)

    def on_message_complete(self) -> None:
        """Note the end; that of an answer such as 100 Continue is none."""
        self.is_complete = True

    def ask(self, request: bytes) -> None:
        """Send the request and return when the head is here."""
        self.parser = httptools.HttpResponseParser(self)
        deadline, taken = self.clock() + self.patience.head_s, 0
        self.sock.settimeout(self.patience.head_s)
        try:
            self.sock.sendall(request)
        except OSError as error:
            raise self.failure(_words(error)) from error
        while not self.is_headed:
            content = self._receive(deadline)
            taken += len(content)
            if not content:
                raise self.failure("it closed the connection")
            self._feed(content)
            if not self.is_headed and taken > MAX_HEAD_BYTES:
                raise self.failure(f"its head is larger than {MAX_HEAD_BYTES} bytes")
        if self.headers.get("content-encoding", "identity") != "identity":
            raise self.failure("it sent a compressed body, which was not asked for")

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes, and close.

        Marks of chunks and headers behind them may be as large as the body, and MAX_HEAD_BYTES.
        """
        with contextlib.closing(self):
            left, in_window, received, given = self.patience.window_s, 0, 0, 0
            while True:
                pieces, self.body = self.body, []
                yield from pieces
                given += sum(map(len, pieces))
                if self.is_complete:
                    return
                asked = self.clock()  # what the taker of a piece does with it is not waiting
                content = self._receive(asked + left)
                left -= self.clock() - asked
                if not content:
                    self._end()
                    return
                self._feed(content)
                came = sum(map(len, self.body))
                received, in_window = received + len(content), in_window + came
                if received > 2 * (given + came) + MAX_HEAD_BYTES:
                    raise self.failure("it sends much that is not the file")
                if in_window >= self.patience.window_bytes:
                    left, in_window = self.patience.window_s, 0

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def failure(self, what: str) -> FreshnessError:
        """Close, and return the error that names the file."""
        self.close()
        return FreshnessError(f"{self.place}: {what}; what is served stays, try again later")

    def _end(self) -> None:
        # Without a length the end of the connection is the end; the digest will tell.
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            raise self.failure("the connection was cut")

    def _feed(self, content: bytes) -> None:
        assert self.parser is not None  # noqa: S101 - `ask` makes it
        if self.is_complete:
            return
        try:
            self.parser.feed_data(content)
        except httptools.HttpParserError as error:
            if not self.is_complete:  # bytes behind the end concern nobody
                raise self.failure(f"its answer is not HTTP ({error})") from error

    def _receive(self, deadline: float) -> bytes:
        left = deadline - self.clock()
        if left <= 0:
            raise self.failure("it sends too slowly")
        self.sock.settimeout(left)
        try:
            return self.sock.recv(RECEIVE_BYTES)
        except TimeoutError as error:
            raise self.failure("it sends too slowly") from error
        except OSError as error:
            raise self.failure(_words(error)) from error


def _words(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _away(address: str, error: BaseException) -> FreshnessError:
    return FreshnessError(
        f"no answer from {address}: {_words(error)}; what is served stays, try again later"
    )
