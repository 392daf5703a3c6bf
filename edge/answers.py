"""Two answers to one request, compared as numbers: how far apart is each output?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edge.errors import EdgeError, InputError
from edge.http_answer import unpacked
from edge.oip import JSON_LENGTH_HEADER, MAX_TENSORS, json_length_from_header
from edge.oip_json import array_from_json
from edge.self_test import relative_error
from edge.spec import NUMPY_FROM_DATATYPE, AnyArray, Datatype

WHOLE = "(whole answer)"
# Who answered is no part of the answer: another bundle is what one compares with.
_NOT_COMPARED = {"model_name", "model_version", "id"}


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw = msgspec.Raw()
    parameters: _Parameters = _Parameters()


class _Response(msgspec.Struct, frozen=True):
    outputs: tuple[_Output, ...]


def errors_between(
    got: tuple[Mapping[str, str], bytes],
    reference: tuple[Mapping[str, str], bytes],
    *,
    max_bytes: int,
) -> dict[str, float]:
    """Return the relative error of every output, by `self_test.relative_error`.

    got, reference: headers (lower case) and body of two answers with status 200. An output that
    only one of them has, or in another shape or type, or whose texts differ, has an infinite error.
    Answers without tensors are compared as one document: its numbers as one tensor, all else must
    be equal.
    """
    if got[1] == reference[1] and _form(got[0]) == _form(reference[0]):
        try:
            return dict.fromkeys(_outputs(*got, max_bytes=max_bytes), 0.0)
        except EdgeError:
            return {WHOLE: 0.0}
    try:
        ours, theirs = (_outputs(*answer, max_bytes=max_bytes) for answer in (got, reference))
    except EdgeError:
        return {WHOLE: math.inf}
    return {name: _error(ours.get(name), theirs.get(name)) for name in {**theirs, **ours}}


def _error(got: object, reference: object) -> float:
    if isinstance(got, np.ndarray) and isinstance(reference, np.ndarray):
        if got.shape != reference.shape or got.dtype != reference.dtype:
            return math.inf
        if got.tobytes() == reference.tobytes():  # NaN is what it was
            return 0.0
        error = relative_error(got, reference)
        return math.inf if math.isnan(error) else error
    if isinstance(got, _Document) and isinstance(reference, _Document):
        if got.rest != reference.rest:
            return math.inf
        return relative_error(np.array(got.numbers), np.array(reference.numbers))
    is_same = type(got) is type(reference) and not isinstance(got, np.ndarray) and got == reference
    return 0.0 if is_same else math.inf


def _form(headers: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(headers.get(name) for name in ("content-encoding", JSON_LENGTH_HEADER.lower()))


class _Document:
    """A JSON value as its numbers, in order, and what is left without them."""

    def __init__(self, value: object) -> None:
        self.numbers: list[float] = []
        self.rest = self._take(value)

    def _take(self, value: object) -> object:
        if isinstance(value, dict):
            return {key: self._take(item) for key, item in sorted(value.items())}
        if isinstance(value, list):
            return [self._take(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.numbers.append(float(value))
            return 0
        return value


def _outputs(headers: Mapping[str, str], body: bytes, *, max_bytes: int) -> dict[str, object]:
    """Return tensors by name, or the whole document; raises EdgeError for what is neither."""
    body = unpacked(body, headers.get("content-encoding", ""), max_body_bytes=max_bytes)
    length = json_length_from_header(headers.get(JSON_LENGTH_HEADER.lower()), body_bytes=len(body))
    size = len(body) if length is None else length
    try:
        document: Any = msgspec.json.decode(body[:size], type=dict[str, msgspec.Raw])
        if "outputs" not in document:
            rest = {k: v for k, v in document.items() if k not in _NOT_COMPARED}
            return {WHOLE: _Document(msgspec.json.decode(msgspec.json.encode(rest)))}
        outputs = msgspec.json.decode(body[:size], type=_Response).outputs
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise InputError(f"the answer cannot be read: {error}") from error
    if len(outputs) > MAX_TENSORS:
        raise InputError(f"the answer has more than {MAX_TENSORS} outputs")
    tensors: dict[str, object] = {}
    offset = size
    for output in outputs:
        count = output.parameters.binary_data_size
        if count is None:
            tensors[output.name] = _from_json(output)
        else:
            if not 0 <= count <= len(body) - offset:
                raise InputError(f"output {output.name!r} is cut off")
            tensors[output.name] = _from_bytes(output, body[offset : offset + count])
            offset += count
    return tensors


def _from_json(output: _Output) -> object:
    datatype = _datatype(output)
    if datatype is None:
        return output.datatype, output.shape, msgspec.json.decode(output.data)
    return array_from_json(output.name, datatype, output.shape, output.data)


def _from_bytes(output: _Output, chunk: bytes) -> object:
    datatype = _datatype(output)
    if datatype is None:
        return output.datatype, output.shape, chunk
    dtype = NUMPY_FROM_DATATYPE[datatype]
    if min(output.shape, default=1) < 0 or math.prod(output.shape) * dtype.itemsize != len(chunk):
        raise InputError(f"output {output.name!r} has other bytes than its shape says")
    array: AnyArray = np.frombuffer(chunk, dtype=dtype).reshape(output.shape)
    return array


def _datatype(output: _Output) -> Datatype | None:
    """Return the type of the numbers of an output, None if it holds texts."""
    return next((known for known in NUMPY_FROM_DATATYPE if known == output.datatype), None)
