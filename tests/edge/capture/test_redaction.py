"""Redaction: the contents are gone, all else is as it was."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from edge.capture.capture_file import Exchange, frame_bytes
from edge.capture.redaction import redacted
from edge.oip import JSON_LENGTH_HEADER
from tests.edge.capture.test_capture_file import exchange

CAP = 1 << 20
SECRET = np.array([[1234.5678, 8765.4321]], np.float32)
OPEN = np.array([[7, 8]], np.int64)


def asked(body: bytes, length: int | None = None, **headers: str) -> Exchange:
    if length is not None:
        headers[JSON_LENGTH_HEADER] = str(length)
    return exchange(body=body, headers=headers, answer=b'{"outputs": "1234.5678"}')


def by_triton(*, binary: bool, texts: bool = False) -> Exchange:
    """Return a request as Triton's client writes it, with inputs "x" and "n"."""
    if texts:
        secret = triton.InferInput("x", [1, 2], "BYTES")
        secret.set_data_from_numpy(np.array([[b"hush", b""]], object), binary_data=binary)
    else:
        secret = triton.InferInput("x", [1, 2], "FP32")
        secret.set_data_from_numpy(SECRET, binary_data=binary)
    public = triton.InferInput("n", [1, 2], "INT64")
    public.set_data_from_numpy(OPEN, binary_data=True)
    body, length = triton.InferenceServerClient.generate_request_body([secret, public])
    return asked(body, length)


def parts(kept: Exchange) -> tuple[Any, bytes]:
    length = int(kept.headers.get(JSON_LENGTH_HEADER, len(kept.body)))
    return json.loads(kept.body[:length]), kept.body[length:]


def test_without_names_nothing_is_touched() -> None:
    made = asked(b"anything")
    assert redacted(made, (), max_body_bytes=CAP) is made


def test_a_binary_tensor_becomes_zeros_of_its_size() -> None:
    made = by_triton(binary=True)
    kept = redacted(made, {"x"}, max_body_bytes=CAP)
    assert kept is not None
    assert parts(kept)[0] == parts(made)[0]
    assert parts(kept)[1] == bytes(SECRET.nbytes) + OPEN.tobytes()
    assert SECRET.tobytes() not in frame_bytes(kept)
    assert (kept.is_redacted, kept.answer, kept.status) == (True, b"", 200)


def test_a_json_tensor_becomes_zeros_of_its_shape() -> None:
    made = by_triton(binary=False)
    kept = redacted(made, {"x"}, max_body_bytes=CAP)
    assert kept is not None
    head, tail = parts(kept)
    assert head["inputs"][0]["data"] == [0.0, 0.0]
    assert tail == OPEN.tobytes()
    assert b"1234" not in frame_bytes(kept)


@pytest.mark.parametrize("binary", [True, False])
def test_texts_keep_their_lengths(binary: bool) -> None:
    made = by_triton(binary=binary, texts=True)
    kept = redacted(made, {"x"}, max_body_bytes=CAP)
    assert kept is not None
    head, tail = parts(kept)
    if binary:
        assert tail == b"\4\0\0\0xxxx" + b"\0\0\0\0" + OPEN.tobytes()
    else:
        assert head["inputs"][0]["data"] == ["xxxx", ""]
    assert b"hush" not in frame_bytes(kept)


def test_nested_data_of_every_kind_keeps_its_form() -> None:
    data = [[1, 2.5], [True, "no"]]
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "data": data}]}).encode()
    kept = redacted(asked(body), {"x"}, max_body_bytes=CAP)
    assert kept is not None
    assert parts(kept)[0]["inputs"][0]["data"] == [[0, 0.0], [False, "xx"]]


def test_a_packed_body_is_unpacked_first() -> None:
    made = by_triton(binary=True)
    packed = asked(
        zlib.compress(made.body),
        int(made.headers[JSON_LENGTH_HEADER]),
        **{"Content-Encoding": "deflate"},
    )
    kept = redacted(packed, {"x"}, max_body_bytes=CAP)
    assert kept is not None
    assert "Content-Encoding" not in kept.headers
    assert parts(kept)[1] == bytes(SECRET.nbytes) + OPEN.tobytes()
    assert redacted(packed, {"x"}, max_body_bytes=16) is None


def test_a_request_without_the_input_keeps_its_answer_and_its_numbers() -> None:
    body = b'{"inputs":[{"name":"n","datatype":"FP64","shape":[1],"data":[0.10000000000000001]}]}'
    kept = redacted(asked(body), {"x"}, max_body_bytes=CAP)
    assert kept is not None
    assert kept.body == body
    assert not kept.is_redacted
    assert kept.answer


def test_a_second_key_of_the_same_name_hides_nothing() -> None:
    first = b'{"inputs":[{"name":"x","datatype":"FP32","data":[1234.5678]}],'
    kept = redacted(asked(first + b'"inputs":[]}'), {"x"}, max_body_bytes=CAP)
    assert kept is not None
    assert b"1234" not in kept.body


TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    "made",
    [
        asked(b"1234.5678"),
        asked(b'{"inputs": "1234.5678"}'),
        asked(b'{"inputs": [{"name": 1234.5678}]}'),
        asked(b'{"inputs": [{"name": "x", "datatype": "FP32", "data": {"a": 1234.5678}}]}'),
        asked(b'{"inputs": [{"name": "x", "data": [1234.5678]}]}'),
        asked(b'{"a":1234.5678}'),
        asked(b'{"inputs":' + b"[" * 100_000),
        asked(SECRET.tobytes(), 0),
        asked(b"{}1234.5678", 999),
        asked(b'{"inputs": []}1234.5678', 14),
        asked(json.dumps({"inputs": [TENSOR]}).encode() + b"1234567", 94),
        asked(
            json.dumps({"inputs": [{**TENSOR, "parameters": {"binary_data_size": -8}}]}).encode()
        ),
        asked(
            json.dumps({"inputs": [{**TENSOR, "datatype": "BYTES"}]}).encode() + b"\xff" * 8,
            len(json.dumps({"inputs": [{**TENSOR, "datatype": "BYTES"}]})),
        ),
        exchange(path="/predict/affine", body=b"1234.5678"),
        asked(b"1234.5678", **{"Content-Encoding": "gzip"}),
        asked(b"1234.5678", **{"Content-Encoding": "br"}),
    ],
)
def test_what_cannot_be_redacted_for_certain_is_not_passed_on(made: Exchange) -> None:
    assert redacted(made, {"x"}, max_body_bytes=CAP) is None
