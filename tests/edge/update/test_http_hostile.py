"""Whatever a server sends: bytes of the file, or FreshnessError, and nothing else."""

import contextlib
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import FreshnessError
from edge.update.http_origin import Patience, _Exchange

PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 206 Partial Content\r\n", b"HTTP/1.0 302 Found\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/9.9 999 x\r\n", b"HTTP/1.1 -1 x\r\n",
        b"Content-Length: 5\r\n", b"Content-Length: -5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length: 3\r\nContent-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Range: bytes 1-2/3\r\n", b"Upgrade: h2c\r\n",
        b"Connection: upgrade\r\n", b"\r\n", b"\n", b"\r", b"5\r\nhello\r\n", b"0\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"hello", b"X: " + b"y" * 20_000 + b"\r\n", b"\0", b"\xff\xfe",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=40), max_size=12), st.integers(1, 40_000))
def test_an_answer_is_bytes_or_refused(pieces: list[bytes], split: int) -> None:
    server, client = socket.socketpair()
    content = b"".join(pieces)
    with server, contextlib.closing(client):
        server.settimeout(5)
        server.sendall(content[:split])
        server.sendall(content[split:])
        server.shutdown(socket.SHUT_WR)
        exchange = _Exchange(client, Patience(), lambda: 0.0, "x")
        with contextlib.suppress(FreshnessError):
            exchange.ask(b"GET / HTTP/1.1\r\n\r\n")
            assert isinstance(exchange.status, int)
            assert sum(map(len, exchange.chunks())) <= len(content)
