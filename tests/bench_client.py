"""A closed-loop HTTP client that costs little: sockets and epoll, requests made beforehand.

    python -m tests.bench_client HOST PORT CONNECTIONS SECONDS TOLERANCE < request

The request is sent as it is, over and over, on every connection; an answer is right if it is a 200
that ends like the first answer or, with a tolerance, whose last FP32 is so near to that one's:
int8 rounds differently in other batches. Prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from edge.spec import datatype_from_numpy

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TAIL_BYTES = 64


@dataclass(slots=True)
class Connection:
    """One connection, with a request under way."""

    sock: socket.socket
    started: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def answer(self) -> tuple[int, bytes] | None:
        """Return status and end of the body once it is complete."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self.received, 0, end + 2)
        if length is None:
            raise ValueError(f"no Content-Length: {bytes(self.received[:200])!r}")
        if len(self.received) < end + 4 + int(length[1]):
            return None
        status, tail = int(self.received[9:12]), bytes(self.received[-TAIL_BYTES:])
        self.received.clear()
        return status, tail


def binary_request(name: str, feeds: dict[str, np.ndarray]) -> bytes:
    """Return a whole request for a model, everything in binary."""
    inputs = [
        {
            "name": key,
            "shape": list(array.shape),
            "datatype": datatype_from_numpy(array.dtype),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for key, array in feeds.items()
    ]
    described = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    text = json.dumps(described).encode()
    body = text + b"".join(array.tobytes() for array in feeds.values())
    lines = [
        f"POST /v2/models/{name}/infer HTTP/1.1",
        "Host: x",
        f"Inference-Header-Content-Length: {len(text)}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def run(
    host: str, port: int, request: bytes, *, connections: int, seconds: float, tolerance: float
) -> dict[str, float]:
    """Return requests per second, percentiles in ms, and the number of wrong answers."""
    selector = selectors.EpollSelector()
    clients = []
    for _ in range(connections):
        sock = socket.create_connection((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Connection(sock)
        selector.register(sock, selectors.EVENT_READ, client)
        clients.append(client)
    expected: bytes | None = None
    latencies: list[float] = []
    wrong = 0
    begun = time.perf_counter()
    for client in clients:
        client.started = time.perf_counter()
        client.sock.sendall(request)
    while (now := time.perf_counter()) - begun < seconds:
        for key, _ in selector.select(1.0):
            client = key.data
            chunk = client.sock.recv(1 << 18)
            if not chunk:
                raise ConnectionError("the server closed a connection")
            client.received += chunk
            answer = client.answer()
            if answer is None:
                continue
            now = time.perf_counter()
            latencies.append(now - client.started)
            expected = expected or answer[1]
            wrong += answer[0] != 200 or not agree(answer[1], expected, tolerance)
            client.started = now
            client.sock.sendall(request)
    elapsed = time.perf_counter() - begun
    for client in clients:
        client.sock.close()
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3 if latencies else (0.0, 0.0)
    return {
        "rps": len(latencies) / elapsed, "p50_ms": float(p50), "p99_ms": float(p99),
        "wrong": wrong, "requests": len(latencies),
    }  # fmt: skip


def agree(tail: bytes, expected: bytes, tolerance: float) -> bool:
    """Whether two answers end alike."""
    if not tolerance:
        return tail == expected
    last, first = (np.frombuffer(text[-4:], np.float32)[0] for text in (tail, expected))
    return bool(abs(last - first) <= tolerance)


if __name__ == "__main__":
    print(
        json.dumps(
            run(
                sys.argv[1],
                int(sys.argv[2]),
                sys.stdin.buffer.read(),
                connections=int(sys.argv[3]),
                seconds=float(sys.argv[4]),
                tolerance=float(sys.argv[5]),
            )
        )
    )
