"""A client in a process of its own: sends samples to an agent, one a request, and keeps score.

    python -m host_tools.client http://127.0.0.1:8000 digits heldout.npz --connections 4

Prints one JSON object: accuracy (where the file has labels), latency and requests per second.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calibration.samples import open_samples
from edge.errors import EdgeError, InferenceError, UsageError
from edge.http_client import AgentClient
from edge.oip_client import infer
from edge.spec import Feeds

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
    with closing(AgentClient(url)) as client:
        for feeds in rows[:WARM_UP]:
            infer(client, model, feeds)
        times, answers = [], []
        for feeds in rows:
            start = time.perf_counter()
            outputs = infer(client, model, feeds)
            times.append(time.perf_counter() - start)
            answers.append(int(next(iter(outputs.values())).argmax()))
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
        try:
            with closing(AgentClient(url)) as client:
                infer(client, model, share[0])
                barrier.wait()
                for feeds in share:
                    infer(client, model, feeds)
        except (EdgeError, threading.BrokenBarrierError) as error:
            failures.append(error)
            barrier.abort()

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
