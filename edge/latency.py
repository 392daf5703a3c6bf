"""Exact latency percentiles over the last requests, cheap to record."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

WINDOW_REQUESTS = 2048
STAGES = ("queue", "compute", "total")
_QUANTILES = (0.50, 0.95, 0.99)


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
