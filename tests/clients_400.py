"""400 clients at once, each of which checks every answer of its own to the last bit.

    python -m tests.clients_400 [SECONDS [CLIENTS]]

Starts an agent with the two models of `exact` on loopback. Every client keeps one connection, sends
its next request when it has its answer, in JSON or in binary, to one model and the other. Exit
status 1 if a request failed or an answer was wrong.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from edge.agent_process import agent_process
from tests.exact import MODELS, Connection, exact_bundle, make_question

ANSWER_S = 30.0


async def client(url: str, number: int, until: float, counts: Counter[str]) -> list[float]:
    """Ask until the time is up and return the latencies in seconds; reconnects after a failure."""
    rng = np.random.default_rng(number)
    connection = Connection(url, number)
    latencies: list[float] = []
    names, turn, is_open = list(MODELS), number, False
    while time.perf_counter() < until:
        turn += 1
        question = make_question(rng, names[turn % 2], binary=number % 4 < 2)
        try:
            if not is_open:
                await asyncio.wait_for(connection.open(), ANSWER_S)
                is_open = True
            begun = time.perf_counter()
            answer = await asyncio.wait_for(connection.ask(question.content), ANSWER_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            counts[f"failed: {type(error).__name__}"] += 1
            if is_open:
                connection.abort()
            is_open = False
            continue
        latencies.append(time.perf_counter() - begun)
        if answer.status != 200:
            counts[f"failed: status {answer.status}"] += 1
        else:
            counts["right" if question.is_right(answer) else "wrong"] += 1
    if is_open:
        connection.abort()
    return latencies


async def run(url: str, *, clients: int, seconds: float) -> tuple[Counter[str], np.ndarray]:
    """Return what became of all requests, and the latencies in ms."""
    counts: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    tasks = [client(url, number, until, counts) for number in range(clients)]
    latencies = await asyncio.gather(*tasks)
    return counts, 1e3 * np.concatenate([np.array(one, np.float64) for one in latencies])


def main(seconds: float, clients: int) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle, keys = exact_bundle(folder)
        flags = ["--bundle", str(bundle), "--trusted-keys", str(keys), "--port", "0",
                 "--queue-size", str(clients), "--intra-op-threads", "1"]  # fmt: skip
        with agent_process(folder, flags) as (url, _):
            begun = time.perf_counter()
            counts, latencies = asyncio.run(run(url, clients=clients, seconds=seconds))
            elapsed = time.perf_counter() - begun
    total = sum(counts.values())
    print(f"{clients} clients, {elapsed:.0f} s: {total} requests, {total / elapsed:.0f} a second")
    for what, count in sorted(counts.items()):
        print(f"  {what:<24}{count:>9}")
    if latencies.size:
        p50, p99 = np.percentile(latencies, [50, 99])
        print(f"  p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {latencies.max():.1f} ms")
    return int(counts["right"] != total or total < clients)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(
        main(
            float(arguments[0]) if arguments else 60.0,
            int(arguments[1]) if len(arguments) > 1 else 400,
        )
    )
