"""An answer whose body comes bit by bit, for as long as it takes.

A client that goes away, or reads too slowly, makes the connection call what the handler returned;
from then on nothing that is sent arrives, and nobody needs to ask for it.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.http_answer import head_bytes
from edge.http_outlet import Outlet

# More waits for a client only if it hardly reads: a chat answer of 8,000 tokens has as many bytes.
MAX_UNSENT_BYTES = 1 << 20

_LAST_CHUNK = b"0\r\n\r\n"


class HttpStream:
    """Passed to `reply` in place of an HttpAnswer; used in the loop's thread.

    What is sent in one turn of the loop leaves as one chunk, with one write. headers: neither
    Content-Length nor Transfer-Encoding, which are the server's.
    """

    def __init__(self, *, status: int = 200, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._outlet: Outlet | None = None
        self._on_end: Callable[[bool], None] = lambda closes: None
        self._head = b""
        self._pieces: list[bytes] = []
        self._is_chunked = True
        self._has_body = True
        self._closes = False
        self._is_due = False  # a flush

    def send(self, content: bytes) -> None:
        """Send a piece of the body; nothing if the client has gone."""
        if self._outlet is None or not self._has_body:
            return
        self._pieces.append(content)
        if not self._is_due:
            self._is_due = True
            self._outlet.loop.call_soon(self._flush)

    def end(self) -> None:
        """End the body; the connection goes on, or closes, as after an HttpAnswer."""
        if self._outlet is None:
            return
        content = self._take()
        if self._is_chunked and self._has_body:
            content += _LAST_CHUNK
        if content:
            self._outlet.write(content)
        on_end = self._on_end
        self.let_go()
        on_end(self._closes)

    def break_off(self) -> None:
        """End so that the client knows that something is missing; closes the connection.

        Chunks lack the last one. HTTP/1.0 has none: there the connection is reset, and what the
        client has not read yet may be lost.
        """
        if self._outlet is not None:
            on_end = self._on_end
            self.cut()
            on_end(True)

    # The connection's side.

    def begin(
        self,
        outlet: Outlet,
        *,
        version: str,
        closes: bool,
        has_body: bool,
        on_end: Callable[[bool], None],
    ) -> None:
        """Send the head. closes: whether the connection does, after the body.

        on_end: called when the handler has ended the body, with whether the connection must close.
        """
        self._outlet, self._on_end, self._has_body = outlet, on_end, has_body
        self._is_chunked = version not in {"0.9", "1.0"}
        self._closes = closes or not self._is_chunked
        coding = {"Transfer-Encoding": "chunked"} if self._is_chunked else {}
        self._head = head_bytes(self.status, {**self.headers, **coding}, closes=self._closes)
        self._is_due = True
        outlet.loop.call_soon(self._flush)

    def cut(self) -> None:
        """Close the connection in the middle of the body."""
        outlet = self._outlet
        if outlet is None:
            return
        if content := self._take():
            outlet.write(content)
        self.let_go()
        if self._is_chunked:
            outlet.close()
        else:
            outlet.reset()

    def let_go(self) -> None:
        """Forget the connection, which has gone or serves another end."""
        self._outlet, self._on_end = None, lambda closes: None
        self._pieces.clear()

    def _flush(self) -> None:
        self._is_due = False
        outlet = self._outlet
        if outlet is None:
            return
        if outlet.unsent_bytes > MAX_UNSENT_BYTES:
            outlet.abort()  # and with the connection's end the handler hears of it
        elif content := self._take():
            outlet.write(content)

    def _take(self) -> bytes:
        """Return what is to be written, in the coding of the transfer."""
        pieces = self._pieces
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if content and self._is_chunked:
            content = b"%x\r\n%b\r\n" % (len(content), content)
        if self._head:
            content, self._head = self._head + content, b""
        return content
