"""What every runtime of `tests.bench_chat` does: it opens a model, then runs rounds when told.

A round comes as a line of JSON on standard input and is answered with one on standard output, so
that runtimes in processes of their own take turns. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """One sequence on an opened model."""

    def prefill(self, prompt: list[int]) -> int:
        """Forget what was before, run a prompt and return the likeliest next token."""

    def step(self, token: int) -> int:
        """Run one token and return the likeliest next one."""


def serve(engine: Engine) -> None:
    """Answer rounds until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    opened_mb = resident_mb()
    for line in sys.stdin:
        round_ = json.loads(line)
        found = timed(engine, round_["prompt"], round_["tokens"])
        found |= {"opened_mb": opened_mb, "resident_mb": resident_mb()}
        print(json.dumps(found), file=answers, flush=True)


def timed(engine: Engine, prompt: list[int], count: int) -> dict[str, Any]:
    """Return the seconds until the first token, and those of each of the count that follow."""
    begun = time.perf_counter()
    tokens = [engine.prefill(prompt)]
    times = [time.perf_counter()]
    for _ in range(count):
        tokens.append(engine.step(tokens[-1]))
        times.append(time.perf_counter())
    steps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return {"first_s": times[0] - begun, "steps_s": steps, "tokens": tokens}


def resident_mb() -> float:
    """Return the memory of this process that is in RAM, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def argmax(row: Sequence[float]) -> int:
    """Return the place of the largest value of a numpy row."""
    return int(row.argmax())  # type: ignore[attr-defined]
