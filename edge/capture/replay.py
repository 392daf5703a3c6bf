"""Recorded requests sent again: at their pace, or as fast as the agent answers.

At a pace the loop is open: a request is due when the recording says so, whatever became of those
before, and its latency counts from then, so that waiting for a free connection is not hidden.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from edge.capture.capture_file import RECORDED_HEADERS, Exchange
from edge.errors import CaptureError, NoAgentError
from edge.http_client import AgentClient, Received
from edge.routes import TEST_HEADER, Route

LEAD_S = 0.05  # until the threads stand ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of one request: an answer, or the reason why there is none."""

    answer: Received | None
    problem: str | None
    latency_s: float


def replay(
    exchanges: Sequence[Exchange],
    url: str,
    *,
    speed: float,
    connections: int,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Sent]:
    """Send every request once and return what became of each, in the order of the recording.

    speed: 2.0 sends in half the time; 0 sends the next as soon as a connection is free, and then
    latency counts from there.
    Raises CaptureError if the recording holds what is no inference, UsageError for a bad url.
    """
    check_inference(exchanges)
    ordered = sorted(range(len(exchanges)), key=lambda index: exchanges[index].offset_s)
    turns = itertools.count()
    results: dict[int, Sent] = {}
    stop = threading.Event()
    clients = [AgentClient(url, timeout_s=timeout_s) for _ in range(connections)]
    begun = clock() + LEAD_S
    first_s = exchanges[ordered[0]].offset_s if ordered else 0.0

    def work(client: AgentClient) -> None:
        with closing(client):
            while not stop.is_set() and (turn := next(turns)) < len(ordered):
                exchange = exchanges[ordered[turn]]
                due = clock()
                if speed:
                    due = begun + (exchange.offset_s - first_s) / speed
                    if stop.wait(max(0.0, due - clock())):
                        return
                answer, problem = _answer(client, exchange)
                results[ordered[turn]] = Sent(
                    answer=answer, problem=problem, latency_s=clock() - due
                )

    with ThreadPoolExecutor(connections, thread_name_prefix="replay") as pool:
        try:
            for done in [pool.submit(work, client) for client in clients]:
                done.result()
        finally:
            stop.set()
    return [results[index] for index in range(len(exchanges))]


def check_inference(exchanges: Sequence[Exchange]) -> None:
    """Raise CaptureError if a recording holds what is no inference."""
    for number, exchange in enumerate(exchanges, 1):
        if exchange.method != "POST" or Route.of(exchange.path) is None:
            raise CaptureError(
                f"request {number} is {exchange.method} {exchange.path[:80]!r}, which is no "
                "inference; it is not sent"
            )


def _answer(client: AgentClient, exchange: Exchange) -> tuple[Received | None, str | None]:
    headers = {
        name: exchange.headers[name] for name in RECORDED_HEADERS if name in exchange.headers
    }
    headers[TEST_HEADER] = "1"
    try:
        sent = client.send(exchange.method, exchange.path, headers=headers, body=exchange.body)
    except NoAgentError as error:
        return None, str(error)
    return sent, None
