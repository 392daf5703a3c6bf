"""Points of the last day in memory, and in a file where there is a folder to write to."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from edge.errors import os_reason
from edge.history.ring import RingFile, Table

INTERVAL_S = 10.0
SIZE = 24 * 360  # a day of such intervals

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What an interval of ten seconds was like; None is "cannot tell".

    memory_used_bytes: of the machine, rss_bytes of the agent. gpu_percent, gpu_clock_hz: mean over
    GPUs and time; gpu_memory_used_bytes: of all GPUs. gpu_celsius, hottest_celsius: the highest.
    power_watts: of the module, or of all GPUs. throttled: share of the time, 0 to 1. p50_ms,
    p95_ms: of the slowest model, over its last requests. tokens_per_s: of all chat models.
    """

    cpu_percent: float | None = None
    memory_used_bytes: float | None = None
    rss_bytes: float | None = None
    gpu_percent: float | None = None
    gpu_memory_used_bytes: float | None = None
    gpu_clock_hz: float | None = None
    gpu_celsius: float | None = None
    hottest_celsius: float | None = None
    power_watts: float | None = None
    throttled: float | None = None
    requests_per_s: float | None = None
    failures_per_s: float | None = None
    queue_depth: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    tokens_per_s: float | None = None


COLUMNS = tuple(column.name for column in fields(Point))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """What is asked of /telemetry/history.

    since: Unix time, only later points are given. seconds: how far to look back from the newest
    point, whatever the clock says. points: at most so many; neighbours are averaged.
    """

    since: Annotated[float, msgspec.Meta(ge=0.0, le=1e12)] = 0.0
    seconds: Annotated[float, msgspec.Meta(ge=1.0, le=1e12)] | None = None
    points: Annotated[int, msgspec.Meta(ge=1, le=SIZE)] = SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReport:
    """The content of /telemetry/history: a list per column, oldest first.

    interval_s: between two points as they are recorded. time_s: Unix time at the end of each.
    """

    interval_s: float
    time_s: tuple[float, ...]
    columns: dict[str, tuple[float | None, ...]]


class History:
    """The points of the last day; make it with `open`. May be read from any thread."""

    def __init__(self, rows: Table, ring: RingFile | None) -> None:
        self._rows: deque[tuple[float, ...]] = deque(map(tuple, rows), maxlen=SIZE)
        self._ring = ring
        self._lock = threading.Lock()
        self._is_failing = False

    @classmethod
    def open(cls, path: Path | None) -> History:
        """Return what was recorded before, and go on; in memory alone if path cannot be had.

        The folder must be there: systemd makes it.
        """
        empty = np.zeros((0, 1 + len(COLUMNS)))
        if path is None:
            return cls(empty, None)
        try:
            ring, rows = RingFile.open(path, COLUMNS, size=SIZE)
        except OSError as error:
            logger.warning(
                "history is kept in memory alone, %s cannot be had: %s; set `history` to a file in "
                "a folder that the agent may write",
                path,
                os_reason(error),
            )
            return cls(empty, None)
        return cls(rows, ring)

    def add(self, time_s: float, point: Point) -> None:
        """Append a point; a disk that refuses is logged once, and the point kept in memory."""
        values = [getattr(point, column) for column in COLUMNS]
        row = (time_s, *(np.nan if value is None else float(value) for value in values))
        with self._lock:
            self._rows.append(row)
        if self._ring is None:
            return
        try:
            self._ring.add(time_s, row[1:])
        except OSError as error:
            if not self._is_failing:
                logger.warning("history is kept in memory alone: %s", os_reason(error))
            self._is_failing = True
        else:
            self._is_failing = False

    def report(self, query: HistoryQuery = HistoryQuery()) -> HistoryReport:
        """Return the points that are asked for, of all that are held."""
        with self._lock:
            rows = np.array(self._rows, dtype=np.float64).reshape(-1, 1 + len(COLUMNS))
        rows = rows[rows[:, 0] > query.since]
        if query.seconds is not None and len(rows):
            rows = rows[rows[:, 0] > rows[-1, 0] - query.seconds]
        table = _thinned(rows, query.points)
        return HistoryReport(
            interval_s=INTERVAL_S,
            time_s=tuple(table[:, 0].tolist()),
            columns={
                column: tuple(_numbers(table[:, place]))
                for place, column in enumerate(COLUMNS, start=1)
            },
        )

    def close(self) -> None:
        """Close the file; calling it twice does nothing."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None


def _thinned(rows: Table, most: int) -> Table:
    """Return at most so many rows: means of neighbours, and of each group its last time."""
    if len(rows) <= most:
        return rows
    groups = np.array_split(rows, most)
    means = np.array([_mean(group[:, 1:]) for group in groups])
    return np.column_stack([[group[-1, 0] for group in groups], means])


def _mean(values: Table) -> Table:
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    sums = np.where(known, values, 0.0).sum(axis=0)
    means: Table = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def _numbers(column: Sequence[float] | Table) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in column]
