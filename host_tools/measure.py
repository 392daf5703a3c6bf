"""Latency of variants on this machine: the measurement that chooses what a backend serves."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from edge.manifest import Measurement
from edge.spec import AnyArray, Feeds

MAX_RUNS = 220
MIN_RUNS = 10
BUDGET_S = 15.0
WARM_UP_SHARE = 0.1


class Runs(Protocol):
    """What can be measured: a Session, or a step of a chat model."""

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Run once."""


def measure(
    sessions: Mapping[str, Runs],
    feeds: Feeds,
    *,
    threads: int,
    runtime: str,
    clock: Callable[[], float] = time.perf_counter,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Measurement]:
    """Return one Measurement per session for the same feeds.

    The sessions take turns run by run, so that a disturbance hits all of them alike. Slow models
    get fewer runs, BUDGET_S in all; the first tenth of the runs is warm-up and does not count.
    tick: called after every round with (rounds done, rounds at most).
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    begun = clock()
    for run in range(1, MAX_RUNS + 1):
        for name, session in sessions.items():
            start = clock()
            session.run(feeds)
            times[name].append(clock() - start)
        tick(run, MAX_RUNS)
        if run >= MIN_RUNS and clock() - begun > BUDGET_S:
            break
    rows = len(next(iter(feeds.values())))
    return {
        name: _measurement(values[int(len(values) * WARM_UP_SHARE) :], rows, threads, runtime)
        for name, values in times.items()
    }


def _measurement(times: list[float], rows: int, threads: int, runtime: str) -> Measurement:
    return Measurement(
        device=cpu_name(),
        runtime=runtime,
        threads=threads,
        batch=rows,
        runs=len(times),
        p50_ms=round(1e3 * float(np.percentile(times, 50)), 4),
        p99_ms=round(1e3 * float(np.percentile(times, 99)), 4),
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model name and architecture, such as "AMD EPYC (x86_64)"."""
    machine = platform.machine()
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return machine
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return f"{value.strip()} ({machine})"
    return machine


def cpu_threads() -> int:
    """Return the number of CPUs this process may use."""
    return len(os.sched_getaffinity(0))
