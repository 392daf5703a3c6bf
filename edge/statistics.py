"""Counters of one model, as Triton's statistics extension has them.

Source of names and meanings: triton-inference-server/server docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

_NS = 1_000_000_000
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class ModelStatistics:
    """Requests and runs of one model. May be used from any thread."""

    def __init__(self, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._answers = self._rows = 0
        self._parse_s = self._queue_s = self._compute_s = self._encode_s = 0.0
        self._failed, self._failed_s = 0, 0.0
        self._last_s = 0.0
        self._runs: dict[int, list[float]] = {}  # rows of a run: count, seconds
        self._failures: dict[str, int] = {}

    def record_answer(
        self, *, rows: int, parse_s: float, queue_s: float, compute_s: float, encode_s: float
    ) -> None:
        """Count one answered request; its success time is that of all its stages."""
        with self._lock:
            self._answers += 1
            self._parse_s += parse_s
            self._queue_s += queue_s
            self._compute_s += compute_s
            self._encode_s += encode_s
            self._rows += rows
            self._last_s = self._wall_clock()

    def record_failure(self, code: str, total_s: float) -> None:
        """Count one request that ended with an error of this code."""
        with self._lock:
            self._failed += 1
            self._failed_s += total_s
            self._failures[code] = self._failures.get(code, 0) + 1

    def record_run(self, rows: int, run_s: float) -> None:
        """Count one run of the engine."""
        with self._lock:
            run = self._runs.setdefault(rows, [0, 0.0])
            run[0] += 1
            run[1] += run_s

    def failures(self) -> dict[str, int]:
        """Return how many requests ended with each error code."""
        with self._lock:
            return dict(self._failures)

    def seconds(self, name: str) -> float:
        """Return the time of all requests in one of DURATIONS."""
        with self._lock:
            return self._durations()[name][1]

    def count(self, name: str) -> int:
        """Return the number of requests in one of DURATIONS."""
        with self._lock:
            return self._durations()[name][0]

    @property
    def inference_count(self) -> int:
        """Rows that were answered."""
        with self._lock:
            return self._rows

    @property
    def execution_count(self) -> int:
        """Runs of the engine."""
        with self._lock:
            return int(sum(run[0] for run in self._runs.values()))

    def run_rows(self) -> dict[int, int]:
        """Return how many runs of the engine had so many rows."""
        with self._lock:
            return {rows: int(run[0]) for rows, run in sorted(self._runs.items())}

    def report(self, name: str, version: str) -> dict[str, Any]:
        """Return the entry of `model_stats` in the protocol's JSON."""
        with self._lock:
            durations = {key: _duration(*value) for key, value in self._durations().items()}
            return {
                "name": name,
                "version": version,
                "last_inference": int(1000 * self._last_s),
                "inference_count": self._rows,
                "execution_count": int(sum(run[0] for run in self._runs.values())),
                "inference_stats": {
                    **durations,
                    "cache_hit": _duration(0, 0.0),
                    "cache_miss": _duration(0, 0.0),
                },
                "response_stats": {},
                "batch_stats": [
                    {
                        "batch_size": rows,
                        "compute_input": _duration(run[0], 0.0),
                        "compute_infer": _duration(*run),
                        "compute_output": _duration(run[0], 0.0),
                    }
                    for rows, run in sorted(self._runs.items())
                ],
            }

    def _durations(self) -> dict[str, tuple[int, float]]:
        """Return count and seconds by DURATIONS."""
        stages_s = (self._queue_s, self._parse_s, self._compute_s, self._encode_s)
        seconds = (sum(stages_s), self._failed_s, *stages_s)
        counts = (self._answers, self._failed, *[self._answers] * len(stages_s))
        return dict(zip(DURATIONS, zip(counts, seconds, strict=True), strict=True))


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": int(seconds * _NS)}
