"""One kept connection to an agent, for the commands that speak to a running one."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edge.errors import CaptureError, UsageError

MAX_ANSWER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class AgentClient:
    """Not thread-safe; connects when first used, and again when the agent had closed."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises UsageError for what is no http or https address."""
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
            raise UsageError(f"{url!r} is no address of an agent; write http://127.0.0.1:8000")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._url = url
        self._prefix = parts.path.rstrip("/")
        self._connection = kind(host, port, timeout=timeout_s)

    def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Received:
        """Return the answer, whatever its status; raises CaptureError if there is none."""
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
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CaptureError(f"no answer from {self._url}: {reason.lower()}") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Received:
        self._connection.request(method, self._prefix + path, body, dict(headers))
        response = self._connection.getresponse()
        content = response.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"it is longer than {MAX_ANSWER_BYTES} bytes")
        named = {name.lower(): value for name, value in response.getheaders()}
        return Received(status=response.status, headers=named, body=content)
