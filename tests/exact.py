"""Two served models whose answers are known to the last bit, and clients that check every one.

Both compute y = scale x + offset and s = the sum of each row of y, from whole numbers so small that
float arithmetic is exact in any order, in any batch.
"""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from calibration.model_file import save_model, set_facts
from edge.manifest import Provenance
from edge.oip import JSON_LENGTH_HEADER
from edge.oip_client import infer_request
from edge.spec import Profile, ShapeRange
from host_tools.combine import CombineRequest, combine
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.models import affine_model

MAX_ROWS = 1 << 13
COLUMNS = 4
MODELS = {"double": (2.0, 1.0), "triple": (3.0, -5.0)}  # scale and offset
_HEAD_BYTES = 64 << 10


def exact_bundle(folder: Path) -> tuple[Path, Path]:
    """Pack both models, combine them, and return (bundle, folder of the trusted key)."""
    keys = folder / "keys"
    private, _ = generate_keys("release", keys)
    rng = np.random.default_rng(0)
    np.savez(folder / "samples.npz", x=rng.normal(size=(20, COLUMNS)).astype(np.float32))
    bounds = ShapeRange(min=(1, COLUMNS), opt=(1, COLUMNS), max=(MAX_ROWS, COLUMNS))
    for name, (scale, offset) in MODELS.items():
        model = affine_model(scale=scale, offset=offset)
        provenance = Provenance(source="tests", opset=17, exporter="code", tools={})
        set_facts(model, Profile(ranges={"x": bounds}), provenance)
        save_model(model, folder / f"{name}.onnx")
        request = PackRequest(
            out=folder / name,
            name=name,
            version="1",
            fp32=folder / f"{name}.onnx",
            golden=folder / "samples.npz",
            key=private,
            threads=1,
        )
        pack(request, say=lambda _: None)
    combined = CombineRequest(
        bundles=tuple(folder / name for name in MODELS),
        out=folder / "bundle",
        name="exact",
        key=private,
        trusted_keys=keys,
    )
    return combine(combined).root, keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server sent back."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A whole inference request for one of MODELS, and the input it asks about."""

    model: str
    x: np.ndarray
    content: bytes

    def is_right(self, answer: Answer) -> bool:
        """Whether an answer holds exactly the two outputs that were asked for."""
        scale, offset = MODELS[self.model]
        y = (scale * self.x + offset).astype(np.float32)
        expected = {"y": y, "s": y.sum(axis=1, dtype=np.float32)}
        try:
            outputs = _outputs(answer)
        except (KeyError, TypeError, ValueError):
            return False
        return (
            answer.status == 200
            and outputs.keys() == expected.keys()
            and all(np.array_equal(outputs[name], value) for name, value in expected.items())
        )


def make_question(
    rng: np.random.Generator, model: str, *, rows: int = 1, binary: bool = False
) -> Question:
    """Return a request for this model with a new input of so many rows, in JSON or in binary."""
    x = rng.integers(-1000, 1000, (rows, COLUMNS)).astype(np.float32)
    if binary:
        return Question(model=model, x=x, content=infer_request(model, {"x": x}).whole())
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Question(model=model, x=x, content=http_request(f"/v2/models/{model}/infer", body))


def http_request(path: str, body: bytes, *, method: str = "POST") -> bytes:
    """Return the bytes of a request."""
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


class Connection:
    """One kept-alive connection; each client has an address of its own in 127.0.0.0/8.

    receive_bytes: the kernel's buffer for what was not read yet; None leaves it to the kernel.
    """

    def __init__(self, url: str, client: int, *, receive_bytes: int | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._remote = (parts.hostname, parts.port)
        self._local = (f"127.1.{client // 250}.{client % 250 + 1}", 0)
        self._receive_bytes = receive_bytes

    async def open(self) -> None:
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if self._receive_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
            sock.bind(self._local)
            await asyncio.get_running_loop().sock_connect(sock, self._remote)
        except BaseException:
            sock.close()
            raise
        self.reader, self.writer = await asyncio.open_connection(
            sock=sock, limit=self._receive_bytes or _HEAD_BYTES
        )

    async def ask(self, content: bytes) -> Answer:
        """Send a request and return its answer."""
        self.writer.write(content)
        await self.writer.drain()
        return await self.answer()

    async def answer(self, *, piece: int = 1 << 20, pause_s: float = 0.0) -> Answer:
        """Return the next answer, reading its body in pieces with a pause after each."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        left, body = int(headers["content-length"]), bytearray()
        while left:
            chunk = await self.reader.readexactly(min(left, piece))
            body += chunk
            left -= len(chunk)
            if pause_s:
                await asyncio.sleep(pause_s)
        return Answer(status=int(lines[0].split()[1]), headers=headers, body=bytes(body))

    def abort(self) -> None:
        """Go away at once, whatever is under way."""
        self.writer.transport.abort()


def _outputs(answer: Answer) -> dict[str, np.ndarray]:
    """Return the outputs by name; a tensor without a list is binary, in the order of the list."""
    length = int(answer.headers.get(JSON_LENGTH_HEADER.lower(), len(answer.body)))
    outputs, at = {}, length
    for tensor in json.loads(answer.body[:length])["outputs"]:
        if "data" in tensor:
            values = np.array(tensor["data"], np.float32)
        else:
            size = tensor["parameters"]["binary_data_size"]
            values = np.frombuffer(answer.body[at : at + size], np.float32)
            at += size
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
    return outputs
