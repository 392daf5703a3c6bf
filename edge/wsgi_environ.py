"""A request as PEP 3333 wants it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import httptools

from edge.http_request import HttpRequest

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


def environ_of(request: HttpRequest) -> WSGIEnvironment:
    """Return the environ of a request, body included."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": request.server[0],
        "SERVER_PORT": str(request.server[1]),
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
        "REMOTE_ADDR": request.client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input": io.BytesIO(request.body),
    }
    for name, value in request.headers.items():
        if b"_" in name:  # would look like the one with a dash
            continue
        key, text = name.decode("latin-1").upper().replace("-", "_"), value.decode("latin-1")
        environ[key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"] = text
    environ["CONTENT_LENGTH"] = str(len(request.body))  # that came, whatever the headers say
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ
