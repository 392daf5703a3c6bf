"""A client in a process of its own: sends samples to an agent, one a request, and keeps score.

    python -m host_tools.client http://127.0.0.1:8000 digits heldout.npz --connections 4

Prints one JSON object: accuracy (where the file has labels), latency and requests per second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from calibration.samples import open_samples
from edge.errors import EdgeError, InferenceError, UsageError
from edge.oip import JSON_LENGTH_HEADER
from edge.spec import AnyArray, Feeds, datatype_from_numpy
from edge.tensor_bytes import bytes_from_tensor, tensor_from_bytes

WARM_UP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the client saw. latencies: one connection; requests_per_s: all connections at once."""

    requests: int
    accuracy_percent: float | None
    p50_ms: float
    p99_ms: float
    connections: int
    requests_per_s: float


class OipConnection:
    """One kept-alive HTTP connection that speaks the binary tensor extension."""

    def __init__(self, url: str, model: str, *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s
        )
        self._path = f"/v2/models/{model}/infer"

    def infer(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return the outputs for one set of feeds; raises InferenceError with the agent's text."""
        head, tail = _encode(feeds)
        self._http.request("POST", self._path, head + tail, {JSON_LENGTH_HEADER: str(len(head))})
        response = self._http.getresponse()
        body = response.read()
        if response.status != 200:
            raise InferenceError(f"agent answered {response.status}: {body[:500].decode()}")
        return _decode(body, int(response.headers[JSON_LENGTH_HEADER]))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def run(url: str, model: str, data: Path, *, connections: int) -> Score:
    """Send every sample twice: one by one for latency and accuracy, then over all connections.

    Raises UsageError if there is no sample, InferenceError with the agent's text for a refusal.
    """
    samples = open_samples(data)
    rows = list(samples.batches(1, 0, samples.count))
    if not rows:
        raise UsageError(f"{data} holds no samples")
    connections = min(connections, len(rows))
    labels = samples.labels()
    connection = OipConnection(url, model)
    for feeds in rows[:WARM_UP]:
        connection.infer(feeds)
    times, answers = [], []
    for feeds in rows:
        start = time.perf_counter()
        outputs = connection.infer(feeds)
        times.append(time.perf_counter() - start)
        answers.append(int(next(iter(outputs.values())).argmax()))
    connection.close()
    right = None if labels is None else 100.0 * float((np.array(answers) == labels).mean())
    return Score(
        requests=len(rows),
        accuracy_percent=right,
        p50_ms=1e3 * float(np.percentile(times, 50)),
        p99_ms=1e3 * float(np.percentile(times, 99)),
        connections=connections,
        requests_per_s=_throughput(url, model, rows, connections),
    )


def _throughput(url: str, model: str, rows: Sequence[Feeds], connections: int) -> float:
    failures: list[Exception] = []
    barrier = threading.Barrier(connections + 1)

    def send(share: Sequence[Feeds]) -> None:
        connection = OipConnection(url, model)
        try:
            connection.infer(share[0])
            barrier.wait()
            for feeds in share:
                connection.infer(feeds)
        except (EdgeError, OSError, threading.BrokenBarrierError) as error:
            failures.append(error)
            barrier.abort()
        finally:
            connection.close()

    shares = [rows[i::connections] for i in range(connections)]
    threads = [threading.Thread(target=send, args=(share,), daemon=True) for share in shares]
    for thread in threads:
        thread.start()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        raise InferenceError(f"a client connection failed: {failures[0]}") from failures[0]
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if failures:
        raise InferenceError(f"a client connection failed: {failures[0]}") from failures[0]
    return len(rows) / seconds


def _encode(feeds: Feeds) -> tuple[bytes, bytes]:
    inputs, tail = [], []
    for name, array in feeds.items():
        content = bytes_from_tensor(array)
        inputs.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_from_numpy(array.dtype),
                "parameters": {"binary_data_size": len(content)},
            }
        )
        tail.append(content)
    head = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    return json.dumps(head).encode(), b"".join(tail)


def _decode(body: bytes, head_length: int) -> dict[str, AnyArray]:
    outputs, offset = {}, head_length
    for tensor in json.loads(body[:head_length])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        name, content = tensor["name"], body[offset : offset + size]
        outputs[name] = tensor_from_bytes(name, tensor["datatype"], tuple(tensor["shape"]), content)
        offset += size
    return outputs


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main() -> None:
    """Run the client from the command line."""
    parser = argparse.ArgumentParser(description="Send samples to an agent and keep score.")
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("data", type=Path, help=".npz file, one array per input, maybe labels")
    parser.add_argument("--connections", type=_positive, default=4)
    arguments = parser.parse_args()
    try:
        score = run(
            arguments.url, arguments.model, arguments.data, connections=arguments.connections
        )
    except (EdgeError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(json.dumps(asdict(score)) + "\n")


if __name__ == "__main__":
    main()
