"""Offered load beyond what the device can do: goodput, refusals, memory.

    python -m tests.bench_overload BUNDLE KEYS       a bundle that tests.minilm packed

An open loop: requests leave when a Poisson process says so, whatever became of those before. First
at 0.5 of the rate that 32 waiting clients reach, then at 1, then at 2 and, for comparison, at 4.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np
import psutil

from edge.bundle import open_bundle
from edge.trust import trusted_keys_in
from tests.bench_batching import agent_server, sentence
from tests.bench_client import Connection
from tests.bench_serving import load_with, running

FACTORS = (0.5, 1.0, 2.0, 4.0)
SECONDS = 20.0
CONNECTIONS = 500


def main(root: Path, keys: Path) -> None:
    model = open_bundle(root, trusted_keys_in(keys)).manifest.models[0]
    server = agent_server(root, keys)
    port = server.port
    request = sentence(model.name)
    with running(server, request):
        agent = next(p for p in psutil.process_iter() if str(port) in cmdline(p))
        capacity = load_with(port, request, 32, SECONDS / 4, tolerance=0.02)["rps"]
        print(f"32 waiting clients: {capacity:.0f} requests/s", flush=True)
        for factor in FACTORS:
            before = agent.memory_info().rss
            command = [sys.executable, "-m", "tests.bench_overload", "client", str(port)]
            done = subprocess.run(
                [*command, str(factor * capacity)], input=request, stdout=subprocess.PIPE,
                check=True,
            )  # fmt: skip
            figures = json.loads(done.stdout)
            grown = (agent.memory_info().rss - before) / 1e6
            print(
                f"offered {factor} x: {figures['offered']:.0f} requests/s, answered "
                f"{figures['good']:.0f} ({figures['good'] / capacity:.2f} of capacity), p50 "
                f"{figures['good_p50']:.0f} ms, p99 {figures['good_p99']:.0f} ms; refused "
                f"{figures['refused']:.0f}, p99 {figures['refused_p99']:.1f} ms; other "
                f"{figures['other']}; memory {grown:+.1f} MB",
                flush=True,
            )


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def client(port: int, rate: float, request: bytes) -> dict[str, float]:
    """Offer requests at a rate and return what became of them."""
    rng = np.random.default_rng(0)
    selector = selectors.EpollSelector()
    idle: deque[Connection] = deque()
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock)
        selector.register(sock, selectors.EVENT_READ, connection)
        idle.append(connection)
    times: dict[int, list[float]] = {}
    statuses: Counter[int] = Counter()
    begun = time.perf_counter()
    due, sent = begun, 0
    while (now := time.perf_counter()) - begun < SECONDS:
        while due <= now:
            if idle:  # with all connections busy a request is lost on the client's side
                connection = idle.popleft()
                connection.started = due
                connection.sock.sendall(request)
            sent += 1
            due += rng.exponential(1 / rate)
        for key, _ in selector.select(max(0.0, due - time.perf_counter())):
            connection = key.data
            connection.received += connection.sock.recv(1 << 18)
            answer = connection.answer()
            if answer is not None:
                statuses[answer[0]] += 1
                times.setdefault(answer[0], []).append(time.perf_counter() - connection.started)
                idle.append(connection)
    elapsed = time.perf_counter() - begun
    good, refused = (1e3 * np.array(times.get(status, [0.0])) for status in (200, 429))
    return {
        "offered": sent / elapsed,
        "good": statuses[200] / elapsed,
        "good_p50": float(np.percentile(good, 50)),
        "good_p99": float(np.percentile(good, 99)),
        "refused": statuses[429] / elapsed,
        "refused_p99": float(np.percentile(refused, 99)),
        "other": sum(count for status, count in statuses.items() if status not in {200, 429}),
    }


if __name__ == "__main__":
    if sys.argv[1] == "client":
        print(json.dumps(client(int(sys.argv[2]), float(sys.argv[3]), sys.stdin.buffer.read())))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
