"""One kept connection to an agent, for the commands that speak to a running one."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edge.errors import NoAgentError, UsageError

MAX_ANSWER_BYTES = 256 << 20
TIMEOUT_S = 30.0
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an agent listens. prefix: the path before its own, where a proxy adds one, or ""."""

    host: str
    port: int
    scheme: str = "http"
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class AgentClient:
    """Not thread-safe; connects when first used, and again when the agent had closed.

    timeout_s: of silence. whole_s: for one answer, however much of it arrives; None has no end.
    """

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, whole_s: float | None = None
    ) -> None:
        """Raises UsageError for what is no http or https address."""
        self._whole_s = whole_s
        self.address = address_from_url(url)
        is_tls = self.address.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        self._connection = kind(self.address.host, self.address.port, timeout=timeout_s)

    def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Received:
        """Return the answer, whatever its status; raises NoAgentError if there is none."""
        is_new = self._connection.sock is None
        try:
            try:
                return self._exchange(method, path, headers or {}, body)
            except (http.client.RemoteDisconnected, ConnectionError):
                if is_new:
                    raise
                self._connection.close()  # kept open, and closed by the agent meanwhile
                return self._exchange(method, path, headers or {}, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise no_agent(self.address, error) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Received:
        self._connection.request(method, self.address.prefix + path, body, dict(headers))
        with _cut_off(self._connection.sock, self._whole_s):
            response = self._connection.getresponse()
            content = response.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"it is longer than {MAX_ANSWER_BYTES} bytes")
        named = {name.lower(): value for name, value in response.getheaders()}
        return Received(status=response.status, headers=named, body=content)


@contextlib.contextmanager
def _cut_off(connection: socket.socket, after_s: float | None) -> Iterator[None]:
    """Shut a connection down after that time; a timeout of its own counts from each byte anew."""
    if after_s is None:
        yield
        return
    is_late = threading.Event()

    def cut() -> None:
        is_late.set()
        with contextlib.suppress(OSError):  # it was closed meanwhile
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(after_s, cut)
    timer.name = "cut-off"
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if is_late.is_set():
            raise _late(after_s) from error
        raise
    finally:
        timer.cancel()
        timer.join()
    if is_late.is_set():
        raise _late(after_s)


def _late(after_s: float) -> TimeoutError:
    return TimeoutError(f"its answer took longer than {after_s:g} s")


def address_from_url(url: str) -> Address:
    """Return the address that a URL names; raises UsageError for what is no http or https one."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in _PORTS or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no address of an agent; write http://HOST:PORT")
    return Address(
        host=host,
        port=_PORTS[parts.scheme] if port is None else port,
        scheme=parts.scheme,
        prefix=parts.path.rstrip("/"),
    )


def no_agent(address: Address, error: BaseException) -> NoAgentError:
    """Return the error of an address that gives no answer, or none that is HTTP."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    hint = "; start an agent there, or give the --url of one" if isinstance(error, OSError) else ""
    return NoAgentError(f"no answer from {address}: {reason.lower()}{hint}")
