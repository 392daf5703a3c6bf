"""Requests without the contents of some inputs: same names, shapes and sizes, nothing to read.

A request in which such contents cannot be found for certain is not passed on at all.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any

import msgspec

from edge.capture.capture_file import Exchange
from edge.errors import EdgeError
from edge.http_answer import unpacked
from edge.oip import JSON_LENGTH_HEADER
from edge.routes import Route

_LENGTH = struct.Struct("<I")


def redacted(exchange: Exchange, names: Collection[str], *, max_body_bytes: int) -> Exchange | None:
    """Return an exchange with zeros for the inputs of these names, "x" for each letter of texts.

    The answer follows from the inputs: where one was redacted, it is left out too. Returns None if
    the request is of another kind, or cannot be taken apart.
    """
    if not names:
        return exchange
    length, route = exchange.headers.get(JSON_LENGTH_HEADER), Route.of(exchange.path)
    if route is None or route.kind != "infer" or length == "0":
        return None
    try:
        encoding = exchange.headers.get("Content-Encoding", "")
        body = unpacked(exchange.body, encoding, max_body_bytes=max_body_bytes)
        json_length = len(body) if length is None else int(length)
        if not 0 < json_length <= len(body):
            return None
        head, tail, found = _without(body[:json_length], bytearray(body[json_length:]), names)
    except (EdgeError, msgspec.MsgspecError, ValueError, KeyError, RecursionError):
        return None
    headers = {k: v for k, v in exchange.headers.items() if k != "Content-Encoding"}
    if length is not None:
        headers[JSON_LENGTH_HEADER] = str(len(head))
    # Always what was read, never what came: of two equal keys only the last was seen.
    exchange = msgspec.structs.replace(exchange, headers=headers, body=head + tail)
    if not found:
        return exchange
    return msgspec.structs.replace(exchange, answer=b"", answer_headers={}, is_redacted=True)


def _without(head: bytes, tail: bytearray, names: Collection[str]) -> tuple[bytes, bytes, bool]:
    request = msgspec.json.decode(head, type=dict[str, msgspec.Raw])
    inputs = msgspec.json.decode(request["inputs"], type=list[dict[str, msgspec.Raw]])
    found, offset = False, 0
    for tensor in inputs:
        is_wanted = msgspec.json.decode(tensor["name"], type=str) in names
        found |= is_wanted
        parameters = msgspec.json.decode(tensor.get("parameters", b"{}"), type=dict[str, Any])
        size = parameters.get("binary_data_size", 0)
        if type(size) is not int or not 0 <= size <= len(tail) - offset:
            raise ValueError("the sizes do not match the body")
        if is_wanted and "data" in tensor:
            blank = _blank(msgspec.json.decode(tensor["data"]))
            tensor["data"] = msgspec.Raw(msgspec.json.encode(blank))
        if is_wanted and msgspec.json.decode(tensor["datatype"], type=str) == "BYTES":
            tail[offset : offset + size] = _blank_texts(tail[offset : offset + size])
        elif is_wanted:
            tail[offset : offset + size] = bytes(size)
        offset += size
    if offset != len(tail):
        raise ValueError("the sizes do not match the body")
    request["inputs"] = msgspec.Raw(msgspec.json.encode(inputs))
    return msgspec.json.encode(request), bytes(tail), found


def _blank(value: object) -> object:
    if isinstance(value, list):
        return [_blank(item) for item in value]
    if isinstance(value, str):
        return "x" * len(value)
    if isinstance(value, bool | int | float):
        return type(value)()
    raise ValueError("data holds what no tensor holds")


def _blank_texts(chunk: bytearray) -> bytes:
    """Return a binary BYTES tensor with the length of every element kept."""
    texts, offset = [], 0
    while offset < len(chunk):
        if len(chunk) - offset < _LENGTH.size:
            raise ValueError("a length is cut off")
        (size,) = _LENGTH.unpack_from(chunk, offset)
        offset += _LENGTH.size + size
        if offset > len(chunk):
            raise ValueError("an element is cut off")
        texts.append(_LENGTH.pack(size) + b"x" * size)
    return b"".join(texts)
