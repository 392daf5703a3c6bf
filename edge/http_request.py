"""A request while it arrives, what it is when it is whole, and the refusal that ends it."""

from __future__ import annotations

import msgspec

from edge.http_answer import HttpAnswer


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A whole request.

    headers: by name in lower case; those that came more than once are joined with a comma (RFC
    9110, 5.3). client: its address. server: host and port where it came in.
    """

    method: str
    path: str
    query: str = ""
    headers: dict[bytes, bytes] = {}
    body: bytes = b""
    version: str = "1.1"
    client: str = ""
    server: tuple[str, int] = ("", 0)

    def header(self, name: bytes) -> str:
        """Return a header by its name in lower case; empty if it did not come."""
        return self.headers.get(name, b"").decode("latin-1")


class ArrivingRequest(msgspec.Struct):
    """What has come of a request. refusal: its answer, known before its body has come."""

    url: bytes = b""
    headers: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    head_bytes: int = 0
    is_headed: bool = False
    method: str = ""
    path: str = ""
    query: str = ""
    version: str = "1.1"
    keeps_alive: bool = False
    refusal: HttpAnswer | None = None
    body: list[bytes] = msgspec.field(default_factory=list)
    body_bytes: int = 0  # that came, kept or not
    taken: int = 0  # of the budget
    has_place: bool = False  # among those of its client

    def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header; the further ones of its name follow after a comma."""
        name = name.lower()
        before = self.headers.get(name)
        self.headers[name] = value if before is None else before + b"," + value

    def whole(self, *, client: str, server: tuple[str, int]) -> HttpRequest:
        """Return the request, all of which has come, and let go of its body."""
        body, self.body = b"".join(self.body), []  # what came in one piece is not copied
        return HttpRequest(
            method=self.method,
            path=self.path,
            query=self.query,
            headers=self.headers,
            body=body,
            version=self.version,
            client=client,
            server=server,
        )


class RefusedError(Exception):
    """A request that gets no further, nor does its connection; raised through the parser."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer
