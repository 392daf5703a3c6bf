"""The client's side of the Open Inference Protocol: requests and answers as bytes and values.

What is measured goes through `load_client`; the rest may take its time.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import numpy as np

from edge.errors import EdgeError, InferenceError, InputError, UnknownModelError
from edge.http_client import Address, AgentClient, Received
from edge.oip import JSON_LENGTH_HEADER, MAX_RANK, MAX_TENSORS, json_length_from_header
from edge.oip_json import array_from_json, list_from_array
from edge.routes import TEST_HEADER
from edge.spec import AnyArray, Datatype, Feeds, datatype_from_numpy
from edge.tensor_bytes import bytes_from_tensor, tensor_from_bytes


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: Datatype
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=MAX_RANK)
    ]
    data: msgspec.Raw = msgspec.Raw()
    parameters: _Parameters = _Parameters()


class _Answer(msgspec.Struct, frozen=True):
    outputs: Annotated[tuple[_Output, ...], msgspec.Meta(max_length=MAX_TENSORS)] | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A POST."""

    path: str
    headers: dict[str, str]
    body: bytes

    def whole(self) -> bytes:
        """Return all its bytes, as a socket takes them."""
        headers = {"Host": "localhost", "Content-Length": str(len(self.body)), **self.headers}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"POST {self.path} HTTP/1.1", *lines, "", ""])
        return head.encode() + self.body


def get_json(address: Address, path: str) -> Any:
    """Return the JSON of a GET.

    Raises NoAgentError if nobody listens, UnknownModelError for a 404, InferenceError for any
    other answer that is not 200 with JSON.
    """
    with closing(AgentClient(str(address))) as client:
        received = client.send("GET", path)
    try:
        answer = json.loads(received.body)
    except ValueError:
        answer = None
    if received.status == HTTPStatus.OK and isinstance(answer, dict | list):
        return answer
    raise _refusal(address, path, received)


def try_request(address: Address, request: HttpRequest) -> None:
    """Send one request; raises as `get_json`, but a busy agent (429, 503) is none of its errors."""
    with closing(AgentClient(str(address))) as client:
        received = _answer(client, request)
    busy = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    if received.status != HTTPStatus.OK and received.status not in busy:
        raise _refusal(address, request.path, received)


def infer(
    client: AgentClient, model: str, feeds: Feeds, *, is_test: bool = False
) -> dict[str, AnyArray]:
    """Return the outputs for one set of feeds, in binary both ways.

    model: its name, or "NAME/versions/VERSION". is_test: see TEST_HEADER. Raises as
    `get_json`, InputError for an answer that cannot be read.
    """
    request = infer_request(model, feeds)
    if is_test:
        request.headers[TEST_HEADER] = "1"
    received = _answer(client, request)
    if received.status != HTTPStatus.OK:
        raise _refusal(client.address, request.path, received)
    outputs = outputs_from_answer(received.headers, received.body)
    if outputs is None:
        raise InferenceError(f"{client.address}{request.path} answers without outputs")
    return outputs


def infer_request(model: str, feeds: Feeds, *, binary: bool = True) -> HttpRequest:
    """Return a request for inference, with tensors and answers in binary or in JSON."""
    inputs, tensors = [], []
    for name, array in feeds.items():
        tensor: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_from_numpy(array.dtype),
        }
        if binary:
            content = bytes_from_tensor(array)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tensors.append(content)
        else:
            tensor["data"] = list_from_array(name, array)
        inputs.append(tensor)
    described: dict[str, Any] = {"inputs": inputs}
    headers = {"Content-Type": "application/json"}
    if binary:
        described["parameters"] = {"binary_data_output": True}
    text = json.dumps(described).encode()
    if binary:
        headers = {
            "Content-Type": "application/octet-stream",
            JSON_LENGTH_HEADER: str(len(text)),
        }
    path = f"/v2/models/{urllib.parse.quote(model)}/infer"
    return HttpRequest(path=path, headers=headers, body=text + b"".join(tensors))


def outputs_from_answer(headers: Mapping[str, str], body: bytes) -> dict[str, AnyArray] | None:
    """Return the tensors of an answer by name, None if it is a JSON object without outputs.

    headers: by name in lower case. body: without Content-Encoding. Raises InputError for what is
    neither.
    """
    length = json_length_from_header(headers.get(JSON_LENGTH_HEADER.lower()), body_bytes=len(body))
    offset = len(body) if length is None else length
    try:
        outputs = _ANSWER.decode(memoryview(body)[:offset]).outputs
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"the answer cannot be read: {error}") from error
    if outputs is None:
        return None
    tensors = {}
    for output in outputs:
        size = output.parameters.binary_data_size
        if size is None:
            tensors[output.name] = _array_from_json(output)
            continue
        content = memoryview(body)[offset : offset + size]
        tensors[output.name] = tensor_from_bytes(
            output.name, output.datatype, output.shape, content
        )
        offset += size
    if offset != len(body):
        raise InputError(f"the answer has {len(body)} bytes, its outputs end at {offset}")
    return tensors


def _array_from_json(output: _Output) -> AnyArray:
    if output.datatype == "FP16":  # requests cannot have it in JSON, answers can
        array = array_from_json(output.name, "FP32", output.shape, output.data)
        return array.astype(np.float16)
    return array_from_json(output.name, output.datatype, output.shape, output.data)


def _answer(client: AgentClient, request: HttpRequest) -> Received:
    return client.send("POST", request.path, headers=request.headers, body=request.body)


def _refusal(address: Address, path: str, received: Received) -> EdgeError:
    try:
        told = json.loads(received.body)["error"]
    except (ValueError, KeyError, TypeError):
        told = "no JSON with an error"
    message = f"{address}{path} answers {received.status}: {told}"
    if received.status == HTTPStatus.NOT_FOUND:
        return UnknownModelError(message)
    return InferenceError(message)
