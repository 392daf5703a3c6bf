"""Exact latency percentiles: of a whole load, and over the last requests, cheap to record."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW_REQUESTS = 2048
STAGES = ("queue", "compute", "total")
_QUANTILES = (0.50, 0.95, 0.99)
_SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Latency of one stage; milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """The percentiles of each stage over `requests` answered requests, none if there are none."""

    requests: int
    stages: dict[str, Percentiles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latencies of answers; None is a percentile that so few of them cannot tell."""

    answers: int
    mean_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float


class LatencyWindow:
    """The stages of the last `size` requests. May be used from any thread."""

    def __init__(self, size: int = WINDOW_REQUESTS) -> None:
        self._seconds: deque[tuple[float, float, float]] = deque(maxlen=size)
        self._lock = threading.Lock()

    def record(self, *, queue_s: float, compute_s: float, total_s: float) -> None:
        """Add one answered request, replacing the oldest when full."""
        with self._lock:
            self._seconds.append((queue_s, compute_s, total_s))

    def summary(self) -> LatencySummary:
        """Return exact percentiles: the smallest value with at least that share below or equal."""
        with self._lock:
            seconds = np.array(self._seconds)
        if len(seconds) == 0:
            return LatencySummary(requests=0, stages={})
        table = np.quantile(seconds, _QUANTILES, axis=0, method="inverted_cdf") * 1e3
        stages = {
            stage: Percentiles(p50_ms=float(p50), p95_ms=float(p95), p99_ms=float(p99))
            for stage, (p50, p95, p99) in zip(STAGES, table.T, strict=True)
        }
        return LatencySummary(requests=len(seconds), stages=stages)


def latency_from_seconds(seconds: Sequence[float]) -> Latency:
    """Return exact percentiles: the smallest value with at least that share below or equal.

    seconds: at least one. A percentile needs so many values that one lies beyond it.
    """
    values = np.sort(np.asarray(seconds)) * 1e3
    found = {
        name: float(np.quantile(values, share, method="inverted_cdf"))
        if round(len(values) * (1 - share), 6) >= 1
        else None
        for name, share in _SHARES.items()
    }
    return Latency(
        answers=len(values), mean_ms=float(values.mean()), max_ms=float(values[-1]), **found
    )
