"""Answers as status, body and headers: what an error becomes, and what is packed on the way."""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

import msgspec

from edge.errors import BodyTooLargeError, EdgeError, InputError, UnsupportedEncodingError

RETRY_AFTER_S = 1
# The only place that turns an error into a status; a code that is not here is a 500.
STATUS_FROM_CODE = {
    "input": 400,
    "context-length": 400,
    "body-too-large": 413,
    "unsupported-encoding": 415,
    "unknown-model": 404,
    "queue-full": 429,
    "not-ready": 503,
    "bundle": 409,
    "trust": 409,
    "unknown-key": 409,
    "storage": 409,
    "backend-unavailable": 409,
    "model": 409,
    "self-test": 409,
    "deadline": 504,
}
MODEL_FAILED = "the model failed to run this request; the agent's log says why"
AGENT_FAILED = "the agent failed to answer this request; its log says why"
# zlib's wbits: "deflate" of HTTP is a zlib stream.
_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL = 1  # tensors of floats hardly shrink; a higher level costs more than a LAN
SMALLEST_COMPRESSED = 1024


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back to a client."""

    status: int
    body: bytes
    headers: dict[str, str] = msgspec.field(
        default_factory=lambda: {"Content-Type": "application/json"}
    )


def answer_from_error(error: EdgeError) -> HttpAnswer:
    """Return the JSON answer for an error; what the model did wrong stays in the log."""
    status = STATUS_FROM_CODE.get(error.code, 500)
    answer = json_error(status, MODEL_FAILED if status == 500 else str(error))
    if status in {429, 503}:
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


def answer_head(answer: HttpAnswer, *, closes: bool) -> bytes:
    """Return the status line and the headers of an answer. closes: whether it is the last."""
    headers = answer.headers
    if "Content-Length" not in headers:
        headers = {**headers, "Content-Length": str(len(answer.body))}
    return head_bytes(answer.status, headers, closes=closes)


def head_bytes(status: int, headers: Mapping[str, str], *, closes: bool) -> bytes:
    """Return a status line and headers, with those that every answer has."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Date: {_date()}")
    if closes:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def json_error(status: int, message: str) -> HttpAnswer:
    """Return `{"error": message}`."""
    return HttpAnswer(status=status, body=msgspec.json.encode({"error": message}))


def wrong_method(method: str, path: str, allowed: str) -> HttpAnswer:
    """Return the answer to a method that a path does not take. allowed: those that it does."""
    answer = json_error(405, f"{path} does not take {method}")
    answer.headers["Allow"] = allowed
    return answer


def too_large(max_body_bytes: int) -> BodyTooLargeError:
    """Return the error of a body above the cap."""
    return BodyTooLargeError(
        f"the request body exceeds {max_body_bytes} bytes; send fewer rows at once, or raise "
        "max_body_bytes"
    )


def unpacked(body: bytes, encoding: str, *, max_body_bytes: int) -> bytes:
    """Return a body without its Content-Encoding.

    Raises UnsupportedEncodingError, InputError for damage, BodyTooLargeError as soon as the
    contents pass the cap.
    """
    kind = encoding.strip().lower()
    if kind in {"", "identity"}:
        return body
    if kind not in _WBITS:
        raise UnsupportedEncodingError(
            f"Content-Encoding {encoding!r} is not supported; send gzip, deflate, or no encoding"
        )
    stream = zlib.decompressobj(_WBITS[kind])
    try:
        content = stream.decompress(body, max_body_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {kind}: {error}") from error
    if len(content) > max_body_bytes:
        raise too_large(max_body_bytes)
    if not stream.eof or stream.unused_data:
        raise InputError(f"the {kind} body ends early, or something follows it")
    return content


def packed(answer: HttpAnswer, accepted: str) -> HttpAnswer:
    """Return an answer compressed if the client asks for it and there is something to gain."""
    if not accepted or len(answer.body) < SMALLEST_COMPRESSED:
        return answer
    wanted = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
    kind = next((kind for kind in _WBITS if kind in wanted), None)
    if kind is None:
        return answer
    stream = zlib.compressobj(_LEVEL, wbits=_WBITS[kind])
    body = stream.compress(answer.body) + stream.flush()
    headers = {**answer.headers, "Content-Encoding": kind, "Vary": "Accept-Encoding"}
    return HttpAnswer(status=answer.status, body=body, headers=headers)


@functools.cache
def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


_dates: dict[int, str] = {}


def _date() -> str:
    now = int(time.time())
    if now not in _dates:
        _dates.clear()
        _dates[now] = formatdate(now, usegmt=True)
    return _dates[now]
