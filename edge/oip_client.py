"""The client's side of the Open Inference Protocol: whole requests as bytes, and what an agent tells.

Plain `http.client`: what is measured goes through `load_client`, the rest is a few GETs.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from dataclasses import dataclass
from typing import Any

from edge.errors import InferenceError, UnknownModelError, UsageError
from edge.load_client import NoAgentError
from edge.oip_json import list_from_array
from edge.spec import Feeds, datatype_from_numpy

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


def get_json(address: Address, path: str) -> Any:
    """Return the JSON of a GET.

    Raises NoAgentError if nobody listens, UnknownModelError for a 404, InferenceError for any
    other answer that is not 200 with JSON.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NoAgentError(
            f"no agent answers at {address} ({reason.lower()}); start one, or give its --url"
        ) from error
    finally:
        connection.close()
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if response.status == 200 and isinstance(answer, dict | list):
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    message = f"{address}{path} answers {response.status}: {told or 'no JSON'}"
    raise UnknownModelError(message) if response.status == 404 else InferenceError(message)


def infer_request(model: str, feeds: Feeds, *, binary: bool = True) -> bytes:
    """Return a whole HTTP request for inference, with tensors and answers in binary or in JSON."""
    inputs, tensors = [], []
    for name, array in feeds.items():
        tensor: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_from_numpy(array.dtype),
        }
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tensors.append(array.tobytes())
        else:
            tensor["data"] = list_from_array(name, array)
        inputs.append(tensor)
    described: dict[str, Any] = {"inputs": inputs}
    if binary:
        described["parameters"] = {"binary_data_output": True}
    text = json.dumps(described).encode()
    lines = [
        f"POST /v2/models/{urllib.parse.quote(model)}/infer HTTP/1.1",
        "Host: edge",
        f"Content-Length: {len(text) + sum(map(len, tensors))}",
    ]
    if binary:
        lines.append(f"Inference-Header-Content-Length: {len(text)}")
    else:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + text + b"".join(tensors)
