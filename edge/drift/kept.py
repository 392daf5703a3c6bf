"""Rows that were asked and answered, as bytes: each is a capture of one request."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timezone

import msgspec

from edge import __version__
from edge.capture.capture_file import VERSION as CAPTURE_VERSION
from edge.capture.capture_file import End, Exchange, Head, frame_bytes, read_capture
from edge.capture.redaction import redacted
from edge.errors import InputError
from edge.oip import JSON_LENGTH_HEADER, InferRequest, WantedOutput, encode_infer, parse_infer
from edge.oip_client import infer_request, outputs_from_answer
from edge.spec import Feeds, TensorSpec, datatype_from_numpy

MAX_ROW_BYTES = 8 << 20  # of the tensors of one row
MAX_FILE_BYTES = 2 * MAX_ROW_BYTES + (1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a request: arrays of shape (1, ...). when: Unix time.

    text: what was asked, if it was asked with a text. outputs: empty where they are not kept.
    """

    when: float
    feeds: Feeds
    outputs: Feeds
    text: str | None = None


class _Asked(msgspec.Struct, frozen=True):
    text: tuple[str]


_ASKED = msgspec.json.Decoder(_Asked)


def bytes_from_row(row: Row, model: str, *, redact: Collection[str]) -> bytes | None:
    """Return the file of a row, without the contents of some inputs.

    None if there is no telling that they are gone, as in a text.
    """
    request = infer_request(model, row.feeds)
    headers, body, path = request.headers, request.body, request.path
    if row.text is not None:
        path, headers = f"/predict/{model}", {"Content-Type": "application/json"}
        body = msgspec.json.encode({"text": [row.text]})
    answer_headers, answer = _answer(row.outputs)
    exchange = Exchange(
        offset_s=0.0,
        method="POST",
        path=path,
        headers=headers,
        body=body,
        status=200,
        answer_headers=answer_headers,
        answer=answer,
        latency_s=0.0,
    )
    head = Head(
        version=CAPTURE_VERSION,
        created=datetime.fromtimestamp(row.when, timezone.utc).isoformat(timespec="milliseconds"),
        agent=__version__,
        share=1.0,
        redact=(),
    )
    return _bytes_of(head, exchange, redact)


def redacted_bytes(content: bytes, *, redact: Collection[str]) -> bytes | None:
    """Return the file of a row without the contents of more inputs; None and errors as below."""
    head, exchange = _parts_of(content)
    return _bytes_of(head, exchange, {*head.redact, *redact})


def row_from_bytes(content: bytes, *, redact: Collection[str]) -> Row | None:
    """Return the row of a file, without the contents of some inputs; None as above.

    Raises EdgeError or ValueError for what is no such file.
    """
    head, whole = _parts_of(content)
    exchange = redacted(whole, redact, max_body_bytes=MAX_FILE_BYTES)
    if exchange is None:
        return None
    try:
        when = datetime.fromisoformat(head.created).timestamp()
    except ValueError as error:
        raise InputError(f"its time cannot be read: {error}") from error
    answered = {name.lower(): value for name, value in exchange.answer_headers.items()}
    outputs = outputs_from_answer(answered, exchange.answer) if exchange.answer else None
    length = exchange.headers.get(JSON_LENGTH_HEADER)
    if length is None:
        try:
            (text,) = _ASKED.decode(exchange.body).text
        except msgspec.MsgspecError as error:
            raise InputError(f"its text cannot be read: {error}") from error
        return Row(when=when, feeds={}, outputs=outputs or {}, text=text)
    parsed = parse_infer(exchange.body, int(length), outputs=(), check=lambda *_: None)
    return Row(when=when, feeds=parsed.feeds, outputs=outputs or {})


def _parts_of(content: bytes) -> tuple[Head, Exchange]:
    capture = read_capture(io.BytesIO(content))
    if capture.problem is not None or len(capture.exchanges) != 1:
        raise InputError(capture.problem or "it does not hold one request")
    return capture.head, capture.exchanges[0]


def _bytes_of(head: Head, exchange: Exchange, redact: Collection[str]) -> bytes | None:
    blank = redacted(exchange, redact, max_body_bytes=MAX_FILE_BYTES)
    if blank is None:
        return None
    head = msgspec.structs.replace(head, redact=tuple(sorted(redact)))
    end = End(reason="stopped", dropped=0, unredactable=0)
    return frame_bytes(head) + frame_bytes(blank) + frame_bytes(end)


def _answer(outputs: Feeds) -> tuple[dict[str, str], bytes]:
    if not outputs:
        return {}, b""
    specs = tuple(
        TensorSpec(name=name, datatype=datatype_from_numpy(array.dtype), shape=array.shape)
        for name, array in outputs.items()
    )
    wanted = tuple(WantedOutput(name=spec.name, binary=True) for spec in specs)
    response = encode_infer(
        outputs,
        InferRequest(id=None, feeds={}, wanted=wanted),
        model="",
        version="",
        outputs=specs,
    )
    return response.headers, response.body
