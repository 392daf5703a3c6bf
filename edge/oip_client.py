"""The client's side of the Open Inference Protocol: whole requests as bytes, and GETs.

Plain `http.client`: what is measured goes through `load_client`, the rest may take its time.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from edge.errors import EdgeError, InferenceError, UnknownModelError, UsageError
from edge.load_client import no_agent
from edge.oip_json import list_from_array
from edge.spec import Feeds, datatype_from_numpy
from edge.tensor_bytes import bytes_from_tensor

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an agent listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


def address_from_url(url: str) -> Address:
    """Return the address of "http://HOST:PORT"; raises UsageError for any other URL."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port or parts.path not in {"", "/"}:
        raise UsageError(f"--url {url!r} is not http://HOST:PORT")
    return Address(host=parts.hostname, port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A POST."""

    path: str
    headers: dict[str, str]
    body: bytes

    def whole(self) -> bytes:
        """Return all its bytes, as a socket takes them."""
        headers = {"Host": "edge", "Content-Length": str(len(self.body)), **self.headers}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"POST {self.path} HTTP/1.1", *lines, "", ""])
        return head.encode() + self.body


def get_json(address: Address, path: str) -> Any:
    """Return the JSON of a GET.

    Raises NoAgentError if nobody listens, UnknownModelError for a 404, InferenceError for any
    other answer that is not 200 with JSON.
    """
    status, content = _answer(address, "GET", path)
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if status == HTTPStatus.OK and isinstance(answer, dict | list):
        return answer
    raise _refusal(address, path, status, content)


def try_request(address: Address, request: HttpRequest) -> None:
    """Send one request; raises as `get_json`, but a busy agent (429, 503) is none of its errors."""
    status, content = _answer(address, "POST", request.path, request)
    busy = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    if status != HTTPStatus.OK and status not in busy:
        raise _refusal(address, request.path, status, content)


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
            "Inference-Header-Content-Length": str(len(text)),
        }
    path = f"/v2/models/{urllib.parse.quote(model)}/infer"
    return HttpRequest(path=path, headers=headers, body=text + b"".join(tensors))


def _answer(
    address: Address, method: str, path: str, request: HttpRequest | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    try:
        if request is None:
            connection.request(method, path)
        else:
            connection.request(method, path, request.body, request.headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise no_agent(address.host, address.port, error) from error
    finally:
        connection.close()


def _refusal(address: Address, path: str, status: int, content: bytes) -> EdgeError:
    try:
        told = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        told = "no JSON with an error"
    message = f"{address}{path} answers {status}: {told}"
    return UnknownModelError(message) if status == HTTPStatus.NOT_FOUND else InferenceError(message)
