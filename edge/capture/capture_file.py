"""Recorded requests as a file: frames, each readable alone, so that a file cut off is still useful.

A frame is the word EKCP, four bytes of length, most significant first, then msgpack: one Head, then
Exchanges, then an End if the recording was not cut off.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import IO, Annotated, Literal

import msgspec

from edge.errors import CaptureError

VERSION = 1
MAX_FRAME_BYTES = 128 << 20
MAX_CAPTURE_BYTES = 1 << 30
MAX_SECONDS = 3600.0
CAPTURE_PATH = "/capture"
STATE_HEADER = "Edge-Capture-State"  # "recording", or "over" with the last frame
# Of a request and of its answer; nothing else is kept, tokens and cookies least of all.
RECORDED_HEADERS = (
    "Content-Type",
    "Content-Encoding",
    "Inference-Header-Content-Length",
    "Edge-Timeout-Ms",
)
_MAGIC = b"EKCP"
_FRAME_HEAD = struct.Struct(">4sI")

EndReason = Literal["time", "bytes", "stopped"]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=2 * MAX_SECONDS)]


class Head(msgspec.Struct, frozen=True, kw_only=True, tag="head"):
    """How a recording was made. created: UTC. share: of the requests that came, in (0, 1]."""

    version: int
    created: str
    agent: str
    share: float
    redact: tuple[str, ...]


class Exchange(msgspec.Struct, frozen=True, kw_only=True, tag="exchange"):
    """One request and its answer.

    offset_s: from the begin of the recording until the request was whole. latency_s: from there
    until its answer was handed to the socket. is_redacted: the answer is not kept then.
    """

    offset_s: Seconds
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    answer_headers: dict[str, str]
    answer: bytes
    latency_s: Seconds
    is_redacted: bool = False

    @property
    def size(self) -> int:
        """Bytes of its bodies."""
        return len(self.body) + len(self.answer)


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Why the recording ended, and what is missing from it.

    dropped: requests for which the agent had no memory left. unredactable: requests that could
    hold what was to be redacted, in a form in which it is not found. streamed: requests whose
    answers came as streams, which are not recorded.
    """

    reason: EndReason
    dropped: int
    unredactable: int
    streamed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What a file holds. problem: why the rest of it was not read, None if all was."""

    head: Head
    exchanges: tuple[Exchange, ...]
    end: End | None
    problem: str | None


_DECODER: msgspec.msgpack.Decoder[Head | Exchange | End] = msgspec.msgpack.Decoder(
    Head | Exchange | End
)


def frame_bytes(frame: Head | Exchange | End) -> bytes:
    """Return one frame."""
    content = msgspec.msgpack.encode(frame)
    return _FRAME_HEAD.pack(_MAGIC, len(content)) + content


def read_capture(reader: IO[bytes]) -> Capture:
    """Return what can be read of a capture, up to the first damage.

    Raises CaptureError if it does not begin as one of this version, or is larger than
    MAX_CAPTURE_BYTES.
    """
    head: Head | None = None
    end: End | None = None
    problem: str | None = None
    exchanges: list[Exchange] = []
    total = 0
    while end is None:
        try:
            frame = _read_frame(reader)
        except ValueError as error:
            problem = f"request {len(exchanges) + 1} cannot be read: {error}"
            break
        if frame is None:
            problem = "the recording was cut off"
            break
        if head is None:
            if not isinstance(frame, Head) or frame.version != VERSION:
                break
            head = frame
        elif isinstance(frame, Exchange):
            total += frame.size
            if total > MAX_CAPTURE_BYTES:
                raise CaptureError(f"the capture holds more than {MAX_CAPTURE_BYTES} bytes")
            exchanges.append(frame)
        elif isinstance(frame, End):
            end = frame
        else:
            problem = f"a second head follows request {len(exchanges)}"
            break
    if head is None:
        raise CaptureError(
            f"this is no capture of version {VERSION}; `edge-agent capture FILE` makes one"
        )
    return Capture(head=head, exchanges=tuple(exchanges), end=end, problem=problem)


def _read_frame(reader: IO[bytes]) -> Head | Exchange | End | None:
    """Return the next frame, None at the end; raises ValueError for what is none."""
    start = reader.read(_FRAME_HEAD.size)
    if not start:
        return None
    if len(start) < _FRAME_HEAD.size:
        raise ValueError("the file ends inside it")
    magic, size = _FRAME_HEAD.unpack(start)
    if magic != _MAGIC or size > MAX_FRAME_BYTES:
        raise ValueError("it does not begin like one")
    content = reader.read(size)
    if len(content) < size:
        raise ValueError("the file ends inside it")
    try:
        frame = _DECODER.decode(content)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if isinstance(frame, Exchange) and not math.isfinite(frame.offset_s + frame.latency_s):
        raise ValueError("its times are no numbers")
    return frame
