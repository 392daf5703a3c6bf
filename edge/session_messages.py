"""What an agent and the process of a session say to each other; tensors go through shared memory.

Messages are msgpack over a socket that keeps their borders; nothing in them is code.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import msgspec
import numpy as np

from edge.errors import InferenceError
from edge.manifest import Backend
from edge.shared_buffer import SharedBuffer
from edge.spec import NUMPY_FROM_DATATYPE, AnyArray, Datatype, Profile, TensorSpec
from edge.tensor_bytes import bytes_from_tensor, tensor_from_bytes

MAX_MESSAGE_BYTES = 64 << 10
_ALIGNMENT = 64

_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """What to open: an engine by descriptor on the GPU `device`, or a graph by path.

    buffers: descriptors of shared memory, to the session and back, a pair for each run that may
    have begun.
    """

    backend: Backend
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile
    device: int | None
    engine: int | None = None
    graph: str | None = None
    intra_op_threads: int | None = None
    buffers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The session is open, or why not. depth: as of a PipelinedSession."""

    depth: int = 1
    memory_bytes: int | None = None
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A tensor in shared memory, at offset and of so many bytes."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run what lies in a pair of buffers; no tensors: forget all state."""

    pair: int
    tensors: tuple[Placed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The end of the oldest run: outputs in its pair of buffers, or the error."""

    tensors: tuple[Placed, ...] = ()
    code: str | None = None
    error: str | None = None


def send(connection: socket.socket, message: object) -> None:
    """Send one message; raises OSError if nobody is there."""
    connection.sendall(msgspec.msgpack.encode(message))


def receive(connection: socket.socket, kind: type[_Message]) -> _Message | None:
    """Return the next message, None at the end; raises OSError, or InferenceError for nonsense."""
    content = connection.recv(MAX_MESSAGE_BYTES)
    if not content:
        return None
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise InferenceError(f"the process of a session wrote nonsense: {error}") from error


def placed(
    buffer: SharedBuffer, tensors: dict[str, AnyArray], specs: tuple[TensorSpec, ...]
) -> tuple[Placed, ...]:
    """Copy tensors into shared memory and return where they are."""
    places, contents, offset = [], [], 0
    for spec in specs:
        array = tensors[spec.name]
        text = bytes_from_tensor(array) if spec.datatype == "BYTES" else None
        size = prod(array.shape) * spec.dtype.itemsize if text is None else len(text)
        places.append(
            Placed(
                name=spec.name, datatype=spec.datatype, shape=array.shape, offset=offset, size=size
            )
        )
        contents.append(array if text is None else text)
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    view = buffer.for_writing(offset)
    for place, content in zip(places, contents, strict=True):
        part = view[place.offset : place.offset + place.size]
        if isinstance(content, bytes):
            part[:] = content
        else:
            target = np.frombuffer(part, NUMPY_FROM_DATATYPE[place.datatype])
            np.copyto(target.reshape(place.shape), content, casting="same_kind")
    return tuple(places)


def tensors_from(buffer: SharedBuffer, places: tuple[Placed, ...]) -> dict[str, AnyArray]:
    """Return tensors that lie in shared memory, as views; raises InferenceError if they cannot."""
    end = max((place.offset + place.size for place in places), default=0)
    try:
        if any(place.offset < 0 or place.size < 0 for place in places):
            raise ValueError("a tensor lies before the start")
        view = buffer.for_reading(end)
        return {
            place.name: tensor_from_bytes(
                place.name,
                place.datatype,
                place.shape,
                view[place.offset : place.offset + place.size],
            )
            for place in places
        }
    except Exception as error:
        raise InferenceError(
            f"the process of a session placed a tensor wrongly: {error}"
        ) from error
