"""The Open Inference Protocol v2 over HTTP as bytes and values: no socket, no framework.

A request is one JSON object, followed by raw tensors if the header
`Inference-Header-Content-Length` gives the length of the JSON part. Anything that cannot be
understood is an InputError whose text is meant for the client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, cast

import msgspec
import numpy as np

from edge.errors import InputError
from edge.oip_json import array_from_json, list_from_array
from edge.spec import NUMPY_FROM_DATATYPE, AnyArray, Datatype, TensorSpec
from edge.tensor_bytes import bytes_from_tensor, object_array, tensor_from_bytes

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
MAX_RANK = 32
MAX_TENSORS = 1024
NORMAL_PRIORITY = 5  # 1 is the most urgent; the protocol's 0 means this one
MAX_PRIORITY = 9
_MAX_LENGTH_DIGITS = 15


class WantedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An output to return, in binary or as JSON."""

    name: str
    binary: bool


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request. Feeds of binary numbers are read-only views of the body.

    timeout_s: how long the client waits, None if it does not say. priority: see `inbox`.
    """

    id: str | None
    feeds: dict[str, AnyArray]
    wanted: tuple[WantedOutput, ...]
    timeout_s: float | None = None
    priority: int = NORMAL_PRIORITY


class InferResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An encoded response; json_length is None when no output is binary."""

    body: bytes
    json_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that describe the body."""
        if self.json_length is None:
            return {"Content-Type": "application/json"}
        return {
            "Content-Type": "application/octet-stream",
            JSON_LENGTH_HEADER: str(self.json_length),
        }


CheckTensor = Callable[[str, str, tuple[int, ...]], None]

_NOT_A_NUMBER = re.compile(rb"\b(NaN|Infinity)\b")


# What a client may send; unknown fields and parameters are ignored, as the protocol asks.
class InputParameters(msgspec.Struct, frozen=True):
    """What is said of an input beside its data."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class RequestInput(msgspec.Struct, frozen=True):
    """One input; shared memory is refused, see `parse_infer`."""

    name: str
    datatype: str
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(max_length=MAX_RANK)
    ]
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: InputParameters = InputParameters()


class OutputParameters(msgspec.Struct, frozen=True):
    """How an output is wanted; classification and shared memory are refused."""

    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class RequestOutput(msgspec.Struct, frozen=True):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(msgspec.Struct, frozen=True):
    """How a request is to be answered; timeout in microseconds, 0 for none."""

    binary_data_output: bool = False
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0
    priority: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)] = 0


class RequestHead(msgspec.Struct, frozen=True):
    """The JSON part of an inference request."""

    inputs: Annotated[tuple[RequestInput, ...], msgspec.Meta(max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[RequestOutput, ...], msgspec.Meta(max_length=MAX_TENSORS)] = ()
    id: str | None = None
    parameters: RequestParameters = RequestParameters()


_REQUEST = msgspec.json.Decoder(RequestHead)


def json_length_from_header(value: str | None, *, body_bytes: int) -> int | None:
    """Return the length of the JSON part, None if the header is absent; 0 is `parse_raw`'s.

    Raises InputError unless the value is a decimal number in 0..body_bytes.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS):
        raise InputError(f"{JSON_LENGTH_HEADER} must be a decimal number of bytes")
    length = int(value)
    if length > body_bytes:
        raise InputError(
            f"{JSON_LENGTH_HEADER} is {length}, but the body has only {body_bytes} bytes"
        )
    return length


def parse_infer(
    body: bytes,
    json_length: int | None,
    *,
    outputs: tuple[TensorSpec, ...],
    check: CheckTensor,
) -> InferRequest:
    """Return the request that body spells.

    outputs: what the model gives; a request that names none of them gets all.
    check: called with name, datatype and shape of every input before its data is decoded, and
    raises InputError for what the model does not take: JSON numbers cost 32 bytes each.
    Raises InputError.
    """
    view = memoryview(body)
    head = view if json_length is None else view[:json_length]
    try:
        request = _REQUEST.decode(head)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, msgspec.DecodeError) and _NOT_A_NUMBER.search(head):
            reason += "; JSON has no NaN or Infinity, send such a tensor in binary"
        raise InputError(f"the request is not a valid inference request: {reason}") from error
    feeds: dict[str, AnyArray] = {}
    tail = None if json_length is None else view[json_length:]
    offset = 0
    for tensor in request.inputs:
        if tensor.name in feeds:
            raise InputError(f"input {tensor.name!r} is given twice")
        check(tensor.name, _datatype(tensor), tensor.shape)
        size = tensor.parameters.binary_data_size
        if size is None:
            feeds[tensor.name] = _json_tensor(tensor)
        else:
            feeds[tensor.name] = _binary_tensor(tensor, size, tail, offset)
            offset += size
    if tail is not None and offset != len(tail):
        raise InputError(
            f"the body has {len(tail)} bytes after its JSON part, the inputs account for {offset}; "
            "check binary_data_size and Content-Length"
        )
    parameters = request.parameters
    return InferRequest(
        id=request.id,
        feeds=feeds,
        wanted=_wanted(request, outputs),
        timeout_s=parameters.timeout / 1e6 or None,
        priority=parameters.priority or NORMAL_PRIORITY,
    )


def parse_raw(
    body: bytes, *, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> InferRequest:
    """Return the request whose body is nothing but one row of the only input.

    One dimension behind the batch may vary: it follows from the length. For BYTES the body is the
    only element, without its length. All outputs are binary.
    Raises InputError.
    """
    if len(inputs) != 1 or not inputs[0].shape:
        raise InputError(
            f"a body without JSON needs a model with one input; this one takes "
            f"{[spec.name for spec in inputs]}"
        )
    spec = inputs[0]
    row = [1, *spec.shape[1:]]
    if spec.datatype == "BYTES":
        if row.count(1) != len(row):
            raise InputError(
                f"a body without JSON is one string, input {spec.name!r} takes {spec.wire_shape} "
                "of BYTES; describe it in JSON"
            )
        return _raw_request({spec.name: object_array([body], (1,) * len(row))}, outputs)
    varying = [axis for axis, dim in enumerate(row) if isinstance(dim, str)]
    known = math.prod(dim for dim in row if isinstance(dim, int)) * spec.dtype.itemsize
    if len(varying) > 1 or len(body) % known or not body or (not varying and len(body) != known):
        raise InputError(
            f"a body of {len(body)} bytes is no row of input {spec.name!r}, which is "
            f"{spec.wire_shape} of {spec.datatype}; describe it in JSON"
        )
    shape = tuple(dim if isinstance(dim, int) else len(body) // known for dim in row)
    feeds = {spec.name: tensor_from_bytes(spec.name, spec.datatype, shape, body)}
    return _raw_request(feeds, outputs)


def _raw_request(feeds: dict[str, AnyArray], outputs: tuple[TensorSpec, ...]) -> InferRequest:
    wanted = tuple(WantedOutput(name=output.name, binary=True) for output in outputs)
    return InferRequest(id=None, feeds=feeds, wanted=wanted)


def encode_infer(
    results: Mapping[str, AnyArray],
    request: InferRequest,
    *,
    model: str,
    version: str,
    outputs: tuple[TensorSpec, ...],
) -> InferResponse:
    """Return the response to a request.

    Raises InputError if an output that was asked for as JSON holds NaN or an infinity, which JSON
    cannot carry: the client can have it in binary.
    """
    specs = {spec.name: spec for spec in outputs}
    described: list[dict[str, object]] = []
    chunks: list[bytes] = []
    for wanted in request.wanted:
        spec = specs[wanted.name]
        array = np.asarray(results[wanted.name], dtype=spec.dtype)
        description: dict[str, object] = {
            "name": spec.name,
            "shape": array.shape,
            "datatype": spec.datatype,
        }
        if wanted.binary:
            chunk = bytes_from_tensor(array)
            description["parameters"] = {"binary_data_size": len(chunk)}
            chunks.append(chunk)
        else:
            description["data"] = list_from_array(spec.name, array)
        described.append(description)
    head: dict[str, object] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        head["id"] = request.id
    encoded = msgspec.json.encode(head)
    if not chunks:
        return InferResponse(body=encoded, json_length=None)
    return InferResponse(body=b"".join([encoded, *chunks]), json_length=len(encoded))


def _json_tensor(tensor: RequestInput) -> AnyArray:
    if tensor.parameters.shared_memory_region is not None:
        raise InputError(f"input {tensor.name!r}: shared memory is not supported; send the data")
    if tensor.data is msgspec.UNSET:
        raise InputError(
            f"input {tensor.name!r} has neither data nor the parameter binary_data_size"
        )
    datatype = _datatype(tensor)
    if datatype == "FP16":
        raise InputError(
            f"input {tensor.name!r}: FP16 cannot be sent as JSON; send it as a binary tensor"
        )
    return array_from_json(tensor.name, datatype, tensor.shape, tensor.data)


def _binary_tensor(
    tensor: RequestInput, size: int, tail: memoryview | None, offset: int
) -> AnyArray:
    if tail is None:
        raise InputError(
            f"input {tensor.name!r} is announced as binary, but the header {JSON_LENGTH_HEADER} "
            "is missing"
        )
    if tensor.data is not msgspec.UNSET:
        raise InputError(f"input {tensor.name!r} has both data and binary_data_size; send one")
    if size < 0:
        raise InputError(f"input {tensor.name!r}: binary_data_size is {size}")
    chunk = tail[offset : offset + size]
    if len(chunk) != size:
        raise InputError(
            f"input {tensor.name!r}: binary_data_size is {size}, but the body ends after "
            f"{len(chunk)} bytes of it"
        )
    return tensor_from_bytes(tensor.name, _datatype(tensor), tensor.shape, chunk)


def _datatype(tensor: RequestInput) -> Datatype:
    if tensor.datatype in NUMPY_FROM_DATATYPE:
        return cast(Datatype, tensor.datatype)
    raise InputError(
        f"input {tensor.name!r}: datatype {tensor.datatype!r} is not supported; models here take "
        f"{', '.join(NUMPY_FROM_DATATYPE)}"
    )


def _wanted(request: RequestHead, outputs: tuple[TensorSpec, ...]) -> tuple[WantedOutput, ...]:
    default = request.parameters.binary_data_output
    if not request.outputs:
        return tuple([_wanted_as(spec, default) for spec in outputs])
    specs = {spec.name: spec for spec in outputs}
    wanted: dict[str, WantedOutput] = {}
    for output in request.outputs:
        name, parameters = output.name, output.parameters
        if name not in specs:
            known = ", ".join(repr(known) for known in specs)
            raise InputError(f"output {name!r} is unknown; the model gives {known}")
        if name in wanted:
            raise InputError(f"output {name!r} is asked for twice")
        if parameters.classification is not None or parameters.shared_memory_region is not None:
            raise InputError(
                f"output {name!r}: classification and shared memory are not supported; ask for "
                "the tensor"
            )
        binary = default if parameters.binary_data is None else parameters.binary_data
        wanted[name] = _wanted_as(specs[name], binary)
    return tuple(wanted.values())


def _wanted_as(spec: TensorSpec, binary: bool) -> WantedOutput:
    if spec.datatype == "FP16" and not binary:
        raise InputError(
            f"output {spec.name!r} is FP16, which JSON cannot carry; ask for it with binary_data"
        )
    return WantedOutput(name=spec.name, binary=binary)
