"""A request as PEP 3333 wants it."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import httptools

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def target_of(url: bytes) -> tuple[str, str]:
    """Return path and query of a request's target.

    Raises httptools.HttpParserInvalidURLError for a target that is none.
    """
    if not url.startswith(b"/"):
        parsed = httptools.parse_url(url)
        url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
    path, _, query = url.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query.decode("latin-1")


def environ_of(
    method: str,
    path: str,
    query: str,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    version: str,
    length: int,
    client: str,
    server: tuple[str, int],
) -> WSGIEnvironment:
    """Return the environ of a request, without its body.

    length: of the body that came, whatever the headers say. client: its address. server: host and
    port.
    """
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{version}",
        "REMOTE_ADDR": client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers:
        if b"_" in name:  # would look like the one with a dash
            continue
        key, text = name.decode("latin-1").upper().replace("-", "_"), value.decode("latin-1")
        if key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
            key = f"HTTP_{key}"
            if key in environ:
                text = f"{environ[key]},{text}"
        environ[key] = text
    environ["CONTENT_LENGTH"] = str(length)
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ


def with_input(environ: WSGIEnvironment, body: bytes) -> WSGIEnvironment:
    """Return an environ whose application can read the body."""
    environ["wsgi.input"] = io.BytesIO(body)
    return environ
