"""Offered load beyond what the device can do: goodput, refusals, memory.

    python -m tests.bench_overload BUNDLE KEYS       a bundle that tests.minilm packed

An open loop: requests leave when a Poisson process says so, whatever became of those before. First
at 0.5 of the rate that 32 waiting clients reach, then at 1, then at 2 and, for comparison, at 4.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge.bench.load_client import Load, run_load_in_child
from edge.bundle import open_bundle
from edge.latency import Latency
from edge.trust import trusted_keys_in
from tests.bench_batching import agent_server, sentence
from tests.bench_serving import load_with, process_on, running

SECONDS = {0.5: 20.0, 1.0: 20.0, 2.0: 60.0, 4.0: 20.0}  # of each load, by its factor
CAPACITY_S = 6.0
CONNECTIONS = 500


def main(root: Path, keys: Path) -> None:
    model = open_bundle(root, trusted_keys_in(keys)).manifest.models[0]
    server = agent_server(root, keys)
    port = server.port
    request = sentence(model.name)
    with running(server, request):
        agent = process_on(port)
        capacity = load_with(port, request, 32, CAPACITY_S, tolerance=0.02)["rps"]
        print(f"32 waiting clients: {capacity:.0f} requests/s", flush=True)
        for factor, seconds in SECONDS.items():
            before = agent.memory_info().rss
            load = Load(
                host="127.0.0.1", port=port, requests=(request,), seconds=seconds,
                connections=CONNECTIONS, rate=factor * capacity,
            )  # fmt: skip
            outcome = run_load_in_child(load)
            grown = (agent.memory_info().rss - before) / 1e6
            good, refused = outcome.latency.get(200), outcome.latency.get(429)
            other = (
                outcome.lost
                + outcome.unanswered
                + sum(
                    latency.answers
                    for status, latency in outcome.latency.items()
                    if status not in {200, 429}
                )
            )
            print(
                f"offered {factor} x: {outcome.due / seconds:.0f} requests/s, answered "
                f"{outcome.in_time / seconds:.0f} ({outcome.in_time / seconds / capacity:.2f} of "
                f"capacity), {described(good)}; refused {described(refused)}; other {other}; "
                f"memory {grown:+.1f} MB",
                flush=True,
            )


def described(latency: Latency | None) -> str:
    if latency is None:
        return "none"
    p50, p99 = (value or latency.max_ms for value in (latency.p50_ms, latency.p99_ms))
    return f"{latency.answers}, p50 {p50:.1f} ms, p99 {p99:.1f} ms"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
