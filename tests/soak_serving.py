"""A mixed soak of the agent: good, bad, slow and vanishing clients, and reloads, over loopback.

    python -m tests.soak_serving [MINUTES]        20 by default

An agent serves the two models of `exact`, whose every answer is checked to the last bit. A tenth of
the time is warm-up: then everybody leaves, and the threads and descriptors that stay are the level
that must be there again at the end. Exit status 1 if a good request failed, an answer was wrong,
a bad request was not refused as it should be, or something grew.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.agent_process import agent_process
from tests.exact import (
    COLUMNS,
    MAX_ROWS,
    MODELS,
    Answer,
    Connection,
    exact_bundle,
    http_request,
    make_question,
)

MINUTES = 20.0
MAX_BODY_BYTES = 1 << 20
SLOW_READER_BYTES = 16 << 10  # of its receive buffer: most of an answer waits at the agent
ANSWER_S = 30.0
RELOAD_EVERY_S = 3.0
SAMPLE_EVERY_S = 1.0
SETTLED_S, SETTLE_LIMIT_S = 5.0, 100.0  # a refused body may linger 30 s, an idle client 60 s
# Over the second half of the soak, by Theil-Sen: below what 20 minutes can tell from noise.
MAX_GROWTH_BYTES = 2 << 20
MIN_SECONDS_FOR_GROWTH = 300.0
CLIENT_ERRORS = (OSError, EOFError, asyncio.TimeoutError)

Counts = Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What the agent's process holds at one moment."""

    at_s: float
    resident_bytes: int
    threads: int
    descriptors: int

    def __str__(self) -> str:
        return (
            f"{self.resident_bytes / 1e6:.1f} MB, {self.threads} threads, "
            f"{self.descriptors} descriptors"
        )


def level_of(pid: int) -> Level:
    """Return the level of a process now."""
    status = Path(f"/proc/{pid}/status").read_text()
    facts = dict(line.split(":", 1) for line in status.splitlines())
    return Level(
        at_s=time.monotonic(),
        resident_bytes=int(facts["VmRSS"].split()[0]) << 10,
        threads=int(facts["Threads"]),
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
    )


def theil_sen(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the median of the slopes between all pairs of points: a few jumps do not move it."""
    t, v = np.asarray(times, np.float64), np.asarray(values, np.float64)
    first, second = np.triu_indices(len(t), 1)
    return float(np.median((v[second] - v[first]) / (t[second] - t[first])))


class Soak:
    """Clients of one agent, what became of their requests, and when they stop."""

    def __init__(self, url: str, counts: Counts, seconds: float) -> None:
        self._url = url
        self._counts = counts
        self._until = time.monotonic() + seconds
        self._rng = np.random.default_rng(int(1e3 * seconds))
        self._clients = 0

    async def run(self) -> None:
        """Let everybody in, and return when the last one has left."""
        clients = [
            *(self.client(self.good, pause_s=0.05, keeps=True) for _ in range(8)),
            *(self.client(self.bad, pause_s=0.2, keeps=False) for _ in range(2)),
            *(self.client(self.trickled, pause_s=0.1, keeps=True) for _ in range(2)),
            *(self.client(self.read_slowly, pause_s=0.1, keeps=True) for _ in range(2)),
            *(self.client(self.vanish, pause_s=0.2, keeps=False) for _ in range(2)),
            self.client(self.watch, pause_s=2.0, keeps=True),
            self.client(self.reload, pause_s=RELOAD_EVERY_S, keeps=False),
        ]
        await asyncio.gather(*clients)

    async def client(
        self, act: Callable[[Connection, int], Awaitable[None]], *, pause_s: float, keeps: bool
    ) -> None:
        """Act over and over with random pauses, on one connection or on a new one each time."""
        self._clients += 1
        buffer = SLOW_READER_BYTES if act == self.read_slowly else None
        connection, is_open = Connection(self._url, self._clients, receive_bytes=buffer), False
        turn = self._clients
        while time.monotonic() < self._until:
            turn += 1
            try:
                if not is_open:
                    await asyncio.wait_for(connection.open(), ANSWER_S)
                    is_open = True
                await asyncio.wait_for(act(connection, turn), ANSWER_S)
            except CLIENT_ERRORS as error:
                self._count(act.__name__, f"FAILED {type(error).__name__}")
                keeps_now = False
            else:
                keeps_now = keeps
            if is_open and not keeps_now:
                connection.abort()
                is_open = False
            await asyncio.sleep(float(self._rng.exponential(pause_s)))
        if is_open:
            connection.abort()

    async def good(self, connection: Connection, turn: int) -> None:
        """One inference, in JSON or in binary."""
        question = make_question(
            self._rng, _model(turn), rows=1 + turn % 7, binary=turn // 2 % 2 == 0
        )
        self._judge("good", question.is_right, await connection.ask(question.content))

    async def trickled(self, connection: Connection, turn: int) -> None:
        """The same, sent in eight pieces over a second."""
        question = make_question(self._rng, _model(turn), rows=64, binary=turn // 2 % 2 == 0)
        size = -(-len(question.content) // 8)
        for at in range(0, len(question.content), size):
            connection.writer.write(question.content[at : at + size])
            await connection.writer.drain()
            await asyncio.sleep(0.125)
        self._judge("trickled", question.is_right, await connection.answer())

    async def read_slowly(self, connection: Connection, turn: int) -> None:
        """A large answer, taken in pieces over a second or two."""
        question = make_question(self._rng, _model(turn), rows=MAX_ROWS, binary=turn // 2 % 2 == 0)
        connection.writer.write(question.content)
        answer = await connection.answer(piece=16 << 10, pause_s=0.1)
        self._judge("read_slowly", question.is_right, answer)

    async def bad(self, connection: Connection, turn: int) -> None:
        """A request that must be refused, with a reason."""
        name, content, status = bad_requests()[turn % len(bad_requests())]
        answer = await connection.ask(content)
        is_right = answer.status == status and "error" in json.loads(answer.body)
        self._count(
            "bad", f"{name}: {answer.status}" if is_right else f"WRONG {name}: {answer.status}"
        )

    async def vanish(self, connection: Connection, turn: int) -> None:
        """Leave in the middle of a head, in the middle of a body, or while an answer is due."""
        content = make_question(self._rng, _model(turn), rows=MAX_ROWS, binary=True).content
        how, sent = (("in the head", 20), ("in the body", 9000), ("waiting", len(content)))[
            turn % 3
        ]
        connection.writer.write(content[:sent])
        await connection.writer.drain()
        await asyncio.sleep(0.002 * (turn % 5))
        self._count("vanish", how)

    async def watch(self, connection: Connection, turn: int) -> None:
        """What an operator's tools read."""
        for path in ("/v2/health/ready", "/metrics", "/telemetry", "/v2/models/stats"):
            answer = await connection.ask(http_request(path, b"", method="GET"))
            self._judge(f"watch {path}", lambda a: a.status == 200, answer)

    async def reload(self, connection: Connection, turn: int) -> None:
        """Load one of the models anew, under load; an agent without the route answers 404."""
        path = f"/v2/repository/models/{_model(turn)}/load"
        answer = await connection.ask(http_request(path, b"{}"))
        known = {200: "loaded", 404: "no such route (404): RELOADS NOT TESTED"}
        self._count("reload", known.get(answer.status, f"FAILED status {answer.status}"))

    def _judge(self, who: str, is_right: Callable[[Answer], bool], answer: Answer) -> None:
        if answer.status != 200:
            self._count(who, f"FAILED status {answer.status}")
        else:
            self._count(who, "right" if is_right(answer) else "WRONG")

    def _count(self, who: str, what: str) -> None:
        self._counts[who, what] += 1


def _model(turn: int) -> str:
    return list(MODELS)[turn % len(MODELS)]


def bad_requests() -> tuple[tuple[str, bytes, int], ...]:
    """Return (name, bytes, status that must come back)."""
    path = "/v2/models/double/infer"

    def asking(shape: list[int], datatype: str, values: list[object], model: str = path) -> bytes:
        tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": values}
        return http_request(model, json.dumps({"inputs": [tensor]}).encode())

    return (
        ("not JSON", http_request(path, b'{"inputs": [}'), 400),
        ("wrong shape", asking([1, COLUMNS + 1], "FP32", [0.0] * (COLUMNS + 1)), 400),
        ("shape and list differ", asking([1, COLUMNS], "FP32", [0.0]), 400),
        ("wrong datatype", asking([1, COLUMNS], "INT64", [0] * COLUMNS), 400),
        ("too many rows", asking([MAX_ROWS + 1, 0], "FP32", []), 400),
        ("no input", http_request(path, b'{"inputs": []}'), 400),
        ("nothing", http_request(path, b""), 400),
        ("unknown model", asking([1], "FP32", [0.0], "/v2/models/none/infer"), 404),
        ("unknown version", http_request("/v2/models/double/versions/9/infer", b"{}"), 404),
        ("unknown path", http_request("/v3", b"", method="GET"), 404),
        ("oversize body", http_request(path, b" " * (MAX_BODY_BYTES + 1)), 413),
        ("not HTTP", b"GET\r\n\r\n", 400),
    )


async def sample_levels(pid: int, levels: list[Level]) -> None:
    """Take a level every second, until cancelled."""
    while True:
        levels.append(level_of(pid))
        await asyncio.sleep(SAMPLE_EVERY_S)


async def settled(pid: int, goal: Level | None = None) -> Level:
    """Return the level once it no longer changes, or is down at the goal, or time is up."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    last = level_of(pid)
    while time.monotonic() < deadline:
        await asyncio.sleep(SETTLED_S if goal is None else SAMPLE_EVERY_S)
        now = level_of(pid)
        is_still = (now.threads, now.descriptors) == (last.threads, last.descriptors)
        if is_still if goal is None else not leaks(goal, now):
            return now
        last = now
    return last


def leaks(before: Level, after: Level) -> list[str]:
    """Return what there is more of than before."""
    pairs = (
        ("threads", before.threads, after.threads),
        ("descriptors", before.descriptors, after.descriptors),
    )
    return [f"{name} grew from {old} to {new}" for name, old, new in pairs if new > old]


def growth_problem(levels: Sequence[Level]) -> str | None:
    """Judge the memory of the second half, print the figure, and return what is wrong with it."""
    half = levels[len(levels) // 2 :]
    length_s = half[-1].at_s - half[0].at_s
    slope = theil_sen([level.at_s for level in half], [level.resident_bytes for level in half])
    grown = slope * length_s
    words = f"{grown / 1e6:+.2f} MB over the last {length_s:.0f} s ({slope * 60 / 1e3:+.1f} kB/min)"
    if 2 * length_s < MIN_SECONDS_FOR_GROWTH:
        print(f"memory: {words}; too short a soak to judge it")
        return None
    print(f"memory: {words}; {MAX_GROWTH_BYTES / 1e6:.1f} MB allowed")
    return f"memory grew by {words}" if grown > MAX_GROWTH_BYTES else None


async def soak(url: str, pid: int, seconds: float) -> tuple[Counts, list[str]]:
    """Run warm-up and soak; return the counts of both, and what is wrong."""
    counts: Counts = Counter()
    levels: list[Level] = []
    await Soak(url, counts, seconds / 10).run()
    before = await settled(pid)
    print(f"after warm-up: {before}", flush=True)
    sampler = asyncio.create_task(sample_levels(pid, levels))
    await Soak(url, counts, 0.9 * seconds).run()
    sampler.cancel()
    await asyncio.gather(sampler, return_exceptions=True)
    print(f"under load, at most: {max(x.threads for x in levels)} threads, "
          f"{max(x.descriptors for x in levels)} descriptors, "
          f"{max(x.resident_bytes for x in levels) / 1e6:.1f} MB")  # fmt: skip
    after = await settled(pid, before)
    print(f"after everybody left: {after}")
    problems = [*leaks(before, after), growth_problem(levels)]
    return counts, [problem for problem in problems if problem is not None]


def main(minutes: float) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle, keys = exact_bundle(folder)
        flags = ["--bundle", str(bundle), "--trusted-keys", str(keys), "--port", "0",
                 "--max-body-bytes", str(MAX_BODY_BYTES), "--intra-op-threads", "1"]  # fmt: skip
        with agent_process(folder, flags) as (url, process):
            counts, problems = asyncio.run(soak(url, process.pid, 60 * minutes))
            if process.poll() is not None:
                problems.append(f"the agent ended with status {process.returncode}")
    for (who, what), count in sorted(counts.items()):
        print(f"  {who:<24}{what:<44}{count:>9}")
        if what.startswith(("FAILED", "WRONG")):
            problems.append(f"{who}: {count} x {what}")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("no problem found" if not problems else f"{len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
