"""A folder served by HTTP, by a server that does as it is told: honestly, badly, slowly."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Handler = BaseHTTPRequestHandler
Trick = Callable[[Handler, bytes], None]


@dataclass(kw_only=True)
class Served:
    """A folder served by HTTP, and what was asked of it.

    tricks: what to do instead for paths that a pattern matches, with the file's content.
    """

    folder: Path
    url: str = ""
    has_ranges: bool = True
    tls: ssl.SSLContext | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    sent_bytes: int = 0
    tricks: dict[str, Trick] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


def answer(handler: Handler, status: int, headers: dict[str, object], body: bytes = b"") -> None:
    """Send an answer."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Served]:
    """Serve a folder on a free port until the block ends."""
    served = Served(folder=folder, **options)

    class FileHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            file = served.folder / path
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            offset = int(found[1]) if found else 0
            served.asked.append((path, offset))
            self.close_connection = True
            content = file.read_bytes() if file.is_file() else b""
            trick = next((t for p, t in served.tricks.items() if re.search(p, path)), None)
            try:
                if trick is not None:
                    trick(self, content)
                elif not file.is_file():
                    answer(self, 404, {"Content-Length": 0})
                else:
                    self._give(content, offset if served.has_ranges else 0)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                pass  # a client may go at any time

        def _give(self, content: bytes, offset: int) -> None:
            headers: dict[str, object] = {"Content-Length": len(content) - offset}
            if offset:
                headers["Content-Range"] = f"bytes {offset}-{len(content) - 1}/{len(content)}"
            served.sent_bytes += len(content) - offset
            answer(self, 206 if offset else 200, headers, content[offset:])

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), FileHandler)
    server.daemon_threads = False
    if served.tls is not None:
        server.socket = served.tls.wrap_socket(server.socket, server_side=True)
    served.url = f"http{'s' if served.tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="files")
    thread.start()
    try:
        yield served
    finally:
        served.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
