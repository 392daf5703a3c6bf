"""A request while it arrives, and the refusal that ends it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.http_answer import HttpAnswer


@dataclass(slots=True)
class ArrivingRequest:
    """What has come of a request. refusal: its answer, known before its body has come."""

    url: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head_bytes: int = 0
    is_headed: bool = False
    method: str = ""
    path: str = ""
    query: str = ""
    version: str = "1.1"
    keeps_alive: bool = False
    refusal: HttpAnswer | None = None
    body: bytearray = field(default_factory=bytearray)
    body_bytes: int = 0  # that came, kept or not
    taken: int = 0  # of the budget
    has_place: bool = False  # among those of its client

    def fields(self) -> dict[bytes, bytes]:
        """Return the headers by name in lower case, the last of each."""
        return {name.lower(): value for name, value in self.headers}


class RefusedError(Exception):
    """A request that gets no further, nor does its connection; raised through the parser."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer
