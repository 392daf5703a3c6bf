"""One small document over HTTP, from a device that may be away, slow or hostile.

A client of its own, on the parser that the agent serves with: it takes a fifth of the CPU that
httpx takes (tests/bench_fleet_poll.py). Redirects are not followed, nothing is unpacked, proxies of
the environment are not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import httptools

from edge.http_client import Address
from host_tools.flash.ssh import SSH_OPTIONS

# All that an answer may have, its head included. A report of 64 models with drift has 300 kB.
MAX_ANSWER_BYTES = 512 << 10
MAX_NAMES_AT_ONCE = 64
MAX_SSH_WORDS_BYTES = 4096

FailureKind = Literal["unreachable", "timeout", "malformed"]
SocketAddress: TypeAlias = Any  # a tuple whose form depends on the family


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that came whole. content_type: without its parameters, in lower case."""

    status: int
    content_type: str
    body: bytes


class FetchError(Exception):
    """There is no answer, or none that can be read. may_pass: another try may do better."""

    def __init__(self, kind: FailureKind, reason: str, *, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.kind: FailureKind = kind
        self.reason = reason
        self.may_pass = may_pass


@dataclass(slots=True)
class Stage:
    """How far a fetch has come, for who has to say why it took too long."""

    is_connected: bool = False
    received_bytes: int = 0


async def fetch(
    address: Address, path: str, *, stage: Stage, by_ssh: tuple[str, ...] | None = None
) -> Answer:
    """Return the answer to GET path; raises FetchError. Whoever calls it sets a deadline.

    by_ssh: words for ssh that name a device, through which the address is reached; it is then what
    the device takes it for.
    """
    connecting = _connected(address) if by_ssh is None else _through_ssh(address, by_ssh)
    async with connecting as sock:
        loop = asyncio.get_running_loop()
        tls = _tls() if address.scheme == "https" else None
        name = None if tls is None else address.host.partition("%")[0]
        try:
            transport, exchange = await loop.create_connection(
                lambda: _Exchange(_request(address, path), stage),
                sock=sock,
                ssl=tls,
                server_hostname=name,
            )
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise FetchError("unreachable", f"TLS: {reason}".lower()) from error
        except OSError as error:
            raise FetchError("unreachable", _words_of(error), may_pass=True) from error
        try:
            return await exchange.answer
        finally:
            transport.abort()


class _Exchange(asyncio.Protocol):
    """One request and its answer; also what httptools calls back."""

    def __init__(self, request: bytes, stage: Stage) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # Who has given up does not ask for the error, which asyncio would then print.
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        self._request = request
        self._stage = stage
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._is_headed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - never a datagram
        self._stage.is_connected = True
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read on; what comes behind the end concerns nobody."""
        if self.answer.done():
            return
        self._stage.received_bytes += len(data)
        if self._stage.received_bytes > MAX_ANSWER_BYTES:
            self._fail("malformed", f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("malformed", f"its answer is not HTTP ({error})")

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the connection for the end of an answer that tells no length."""
        if self._stage.received_bytes == 0:
            reason = "it closed the connection without an answer"
            self._fail("unreachable", reason, may_pass=True)
        elif self._is_headed and not self._headers.keys() & {
            b"content-length", b"transfer-encoding",
        }:  # fmt: skip
            self.on_message_complete()
        else:
            self._fail("malformed", "its answer was cut off")
        # Parser and callbacks hold each other, and what came, until the garbage collector looks.
        self._body.clear()
        del self._parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; those behind a body concern nobody."""
        if not self._is_headed:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Refuse a body that would be too large, or is packed, before it comes."""
        self._is_headed = True
        length = self._headers.get(b"content-length", b"0")
        if len(length) > 9 or (length.isdigit() and int(length) > MAX_ANSWER_BYTES):
            self._fail("malformed", f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
        if self._headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._fail("malformed", "its answer is compressed, which was not asked for")

    def on_body(self, content: bytes) -> None:
        """Keep a piece of the body."""
        if not self.answer.done():
            self._body.append(content)

    def on_message_complete(self) -> None:
        """Give the answer to who waits for it."""
        if not self.answer.done():
            kind = self._headers.get(b"content-type", b"").partition(b";")[0]
            self.answer.set_result(
                Answer(
                    status=self._parser.get_status_code(),
                    content_type=kind.strip().decode("latin-1").lower(),
                    body=b"".join(self._body),
                )
            )

    def _fail(self, kind: FailureKind, reason: str, *, may_pass: bool = False) -> None:
        self._body.clear()
        if not self.answer.done():
            self.answer.set_exception(FetchError(kind, reason, may_pass=may_pass))


def _request(address: Address, path: str) -> bytes:
    name = address.host.partition("%")[0]  # the zone of a link-local address is this desk's own
    host = f"[{name}]" if ":" in name else name
    return (
        f"GET {quote(address.prefix + path, safe='/._-~%')} HTTP/1.1\r\n"
        f"Host: {host}:{address.port}\r\n"
        "User-Agent: edge-kit\r\nAccept: application/json\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    ).encode("ascii", "replace")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextlib.asynccontextmanager
async def _connected(address: Address) -> AsyncIterator[socket.socket]:
    """Yield a socket that is connected to the first address of a name that takes it."""
    loop, failed = asyncio.get_running_loop(), OSError("the name has no address")
    for family, _, _, _, where in await _resolved(address):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise FetchError("unreachable", _words_of(error), may_pass=True) from error
        with contextlib.closing(sock):
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, where)
            except OSError as error:
                failed = error
                continue
            yield sock
            return
    raise FetchError("unreachable", _words_of(failed), may_pass=True) from failed


async def _resolved(address: Address) -> list[SocketAddress]:
    """Return where a name leads. The system's resolver may hang, so it gets a thread of its own."""
    arguments = (address.host, address.port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0)
    with contextlib.suppress(socket.gaierror, UnicodeError):
        return socket.getaddrinfo(*arguments, socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[SocketAddress]] = loop.create_future()

    def tell(result: list[SocketAddress] | OSError) -> None:
        if found.done():  # nobody waits for it any more
            return
        if isinstance(result, OSError):
            found.set_exception(result)
        else:
            found.set_result(result)

    def ask() -> None:
        result: list[SocketAddress] | OSError
        try:
            result = socket.getaddrinfo(*arguments)
        except (OSError, UnicodeError) as error:
            result = error if isinstance(error, OSError) else OSError(str(error))
        finally:
            _NAMES.release()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result)

    while not _NAMES.acquire(blocking=False):
        await asyncio.sleep(0.02)
    # A daemon, for nothing can end a resolver that waits; its result is dropped then.
    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        return await found
    except OSError as error:
        raise FetchError("unreachable", f"its name: {_words_of(error)}") from error


_NAMES = threading.BoundedSemaphore(MAX_NAMES_AT_ONCE)


@contextlib.asynccontextmanager
async def _through_ssh(address: Address, words: tuple[str, ...]) -> AsyncIterator[socket.socket]:
    """Yield a socket that ssh carries to an address as the device sees it."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    command = ["ssh", *SSH_OPTIONS, "-W", f"{host}:{address.port}", *words]
    ours, its = socket.socketpair()
    with contextlib.closing(ours), tempfile.TemporaryFile() as said:
        try:
            with contextlib.closing(its):
                end = its.fileno()
                process = subprocess.Popen(command, stdin=end, stdout=end, stderr=said)
        except FileNotFoundError as error:
            reason = "ssh is not installed; apt install openssh-client"
            raise FetchError("unreachable", reason) from error
        ours.setblocking(False)
        try:
            yield ours
        except FetchError as error:
            if error.kind == "unreachable":
                raise FetchError("unreachable", _last_words(said) or error.reason) from error
            raise
        finally:
            process.kill()
            process.wait()


def _words_of(error: OSError) -> str:
    """Return the system's words; asyncio's own name the address, which the caller has."""
    is_name = isinstance(error, socket.gaierror)
    words = None if error.errno is None or is_name else os.strerror(error.errno)
    return (words or error.strerror or str(error)).lower()


def _last_words(file: Any) -> str:
    """Return the last line in which ssh says why it could not reach an address, or a device."""
    file.seek(0)
    lines = file.read(MAX_SSH_WORDS_BYTES).decode("utf-8", "replace").split("\n")
    spoken = [line.strip() for line in lines if line.strip()]
    if spoken[-1:] == ["stdio forwarding failed"]:
        spoken.pop()
    if not spoken:
        return ""
    _, is_beyond, why = spoken[-1].partition(": open failed: ")
    return f"behind ssh: {why}" if is_beyond else spoken[-1].removeprefix("ssh: ")
