"""The seam between connections and what answers their requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge.http_answer import HttpAnswer
from edge.http_request import HttpRequest
from edge.http_stream import HttpStream

Cancel = Callable[[], None]
Reply = Callable[[HttpAnswer | HttpStream], None]


class CancelAtEof:
    """A Cancel that is also called when the client ends its side: of answers that take long.

    Whoever ends it in the middle of one has given up, but for the rare client that half-closes;
    for answers that are quick, that one is served.
    """

    def __init__(self, cancel: Cancel) -> None:
        self._cancel = cancel

    def __call__(self) -> None:
        """Forget the request."""
        self._cancel()


class Handler(Protocol):
    """Answers requests: `reply` is called once, in the loop's thread, now or later."""

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        """Return why a request whose head has come is refused; its body is then thrown away.

        Called in the loop's thread. Nothing is held for a request that may come: until its body
        is whole it holds no place, so that clients who trickle keep nobody out.
        """

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        """Begin to answer; what is returned is called if the client goes away before the end."""

    def close(self) -> None:
        """Stop what was started for it."""
