"""The file of recorded requests: what is written is read, and nothing in it can do harm."""

from __future__ import annotations

import io
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.capture.capture_file import (
    MAX_FRAME_BYTES,
    VERSION,
    Capture,
    End,
    Exchange,
    Head,
    frame_bytes,
    read_capture,
)
from edge.errors import CaptureError

HEAD = Head(version=VERSION, created="2026-01-01T00:00:00+00:00", agent="1", share=0.5, redact=())
END = End(reason="time", dropped=1, unredactable=2, streamed=3)


def exchange(number: int = 0, **changes: Any) -> Exchange:
    made = Exchange(
        offset_s=0.5 * number,
        method="POST",
        path="/v2/models/affine/infer",
        headers={"Content-Type": "application/json"},
        body=b"body %d" % number,
        status=200,
        answer_headers={},
        answer=b"\x00\xff",
        latency_s=0.01,
    )
    return msgspec.structs.replace(made, **changes)


def read(content: bytes) -> Capture:
    return read_capture(io.BytesIO(content))


WHOLE = b"".join(map(frame_bytes, (HEAD, exchange(0), exchange(1), END)))


def test_what_is_written_is_read() -> None:
    assert read(WHOLE) == Capture(
        head=HEAD, exchanges=(exchange(0), exchange(1)), end=END, problem=None
    )


def test_a_frame_is_what_the_module_says_it_is() -> None:
    frame = frame_bytes(END)
    assert frame[:4] == b"EKCP"
    assert struct.unpack(">I", frame[4:8])[0] == len(frame) - 8
    assert msgspec.msgpack.decode(frame[8:]) == {
        "type": "end",
        "reason": "time",
        "dropped": 1,
        "unredactable": 2,
        "streamed": 3,
    }


def test_a_file_cut_off_anywhere_gives_all_that_is_whole_and_says_so() -> None:
    ends = [len(frame_bytes(HEAD))]
    ends += [ends[0] + len(frame_bytes(exchange(0))), len(WHOLE) - len(frame_bytes(END))]
    for length in range(ends[0], len(WHOLE)):
        capture = read(WHOLE[:length])
        assert capture.exchanges == (exchange(0), exchange(1))[: sum(e <= length for e in ends) - 1]
        assert capture.end is None
        assert capture.problem is not None
    for length in range(ends[0]):
        with pytest.raises(CaptureError, match="no capture of version 1"):
            read(WHOLE[:length])


@pytest.mark.parametrize(
    "damage",
    [
        b"EKCP" + struct.pack(">I", MAX_FRAME_BYTES + 1),
        b"EKCP" + struct.pack(">I", MAX_FRAME_BYTES) + b"short",
        b"NOPE" + struct.pack(">I", 1) + b"\xc0",
        b"EKCP" + struct.pack(">I", 1) + b"\xc0",
        b"EKCP" + struct.pack(">I", 4) + b"\xdd\xff\xff\xff",  # a list of 4 billion items
        frame_bytes(exchange(1, offset_s=float("nan"))),
        frame_bytes(exchange(1, latency_s=float("inf"))),
        frame_bytes(exchange(1, offset_s=-1.0)),
        frame_bytes(exchange(1, status=7)),
        frame_bytes(HEAD),
    ],
)
def test_damage_ends_the_reading_and_keeps_what_was_before(damage: bytes) -> None:
    capture = read(frame_bytes(HEAD) + frame_bytes(exchange(0)) + damage)
    assert capture.exchanges == (exchange(0),)
    assert capture.problem is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no capture at all",
        frame_bytes(exchange(0)),
        frame_bytes(msgspec.structs.replace(HEAD, version=VERSION + 1)),
    ],
)
def test_what_is_no_capture_of_this_version_is_refused(content: bytes) -> None:
    with pytest.raises(CaptureError, match="no capture of version"):
        read(content)


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)), st.integers(0, 20))
def test_no_bytes_break_the_reader(noise: bytes, start: int, cut: int) -> None:
    try:
        capture = read(WHOLE[:start] + noise + WHOLE[start + cut :])
    except CaptureError:
        return
    assert capture.end is not None or capture.problem is not None
