"""Memory that grows with the requests that were answered: a slope that outliers do not move.

The slope is Theil and Sen's, the median of the slopes between all pairs of points, and its lower
bound is Sen's: of N sorted slopes between n points the one at rank (N - z * sigma) / 2, where
sigma**2 = n (n - 1) (2 n + 5) / 18 is the variance of Kendall's S.
Source: Sen 1968, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63;
Gilbert 1987, "Statistical Methods for Environmental Pollution Monitoring", 16.5.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A point holds the least memory of so many requests: what a collector frees in between is unseen.
# A window of each holds POINTS of them, so that a fast leak is seen soon and a slow one at all.
SPACINGS = (25, 200, 1_600, 12_800, 102_400, 819_200)
POINTS = 24
MIN_POINT_S = 2.0
WARM_UP_REQUESTS = 500
WARM_UP_S = 30.0
# One-sided 99.95 %; readings of memory are not independent, so what bounds false alarms is the
# growth that is asked for below.
Z = 3.29
MIN_GROWTH_BYTES = 32 << 20
MIN_GROWTH_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPoint:
    """The least memory that was seen until so many requests were answered; wall_s: Unix time."""

    answered: int
    n_bytes: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Bytes per request: the median, and what it is at least."""

    median: float
    low: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Memory that grows: by how much per request, from where to where."""

    slope: Slope
    begin: MemoryPoint
    end: MemoryPoint


def slope_of_points(points: Sequence[MemoryPoint], *, z: float = Z) -> Slope | None:
    """Return the slope over requests; None where no two points differ in requests."""
    x = np.array([point.answered for point in points], dtype=np.float64)
    y = np.array([point.n_bytes for point in points], dtype=np.float64)
    first, second = np.triu_indices(len(points), k=1)
    run = x[second] - x[first]
    slopes = np.sort((y[second] - y[first])[run > 0] / run[run > 0])
    if len(slopes) == 0:
        return None
    n = len(points)
    sigma = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    rank = max(0, math.floor((len(slopes) - z * sigma) / 2))
    return Slope(median=float(np.median(slopes)), low=float(slopes[rank]))


class LeakWatch:
    """Tells whether one kind of memory grows with the requests; bounded in memory.

    Feed it with `add`. After `restart`, as when models were opened or closed, it warms up anew.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._windows = [_Window(spacing) for spacing in SPACINGS]
        self._began: tuple[int, float] | None = None
        self._answered = self._peak = self._largest_fall = 0
        self.growth: Growth | None = None
        self.is_steady = True  # neither growing nor about to

    def add(self, *, answered: int, n_bytes: int, now: float, wall_s: float) -> None:
        """Take a reading; now is monotonic, wall_s only names a time to people."""
        if self._began is None or answered < self._answered:
            self.restart()
            self._began = (answered, now)
        self._answered = answered
        begun_at, begun_s = self._began
        if answered - begun_at < WARM_UP_REQUESTS or now - begun_s < WARM_UP_S:
            return
        self._peak = max(self._peak, n_bytes)
        self._largest_fall = max(self._largest_fall, self._peak - n_bytes)
        point = MemoryPoint(answered=answered, n_bytes=n_bytes, wall_s=wall_s)
        if any([window.add(point, now) for window in self._windows]):
            self._judge()

    def _judge(self) -> None:
        found = [window.growth for window in self._windows if window.growth is not None]
        # Who has given back as much before may do so again: the teeth of a collector.
        grown = [(growth, self._asked(growth)) for growth in found]
        growing = [g for g, asked in grown if _bytes_at_least(g) >= asked and _grew(g) >= asked]
        self.growth = max(growing, key=lambda growth: growth.slope.low, default=None)
        self.is_steady = all(_bytes_at_least(growth) < asked / 2 for growth, asked in grown)

    def _asked(self, growth: Growth) -> float:
        least = max(MIN_GROWTH_BYTES, MIN_GROWTH_SHARE * growth.begin.n_bytes)
        return max(least, 1.5 * self._largest_fall)


class _Window:
    """The last POINTS points of one spacing, and how they grow."""

    def __init__(self, spacing: int) -> None:
        self._spacing = spacing
        self._points: deque[MemoryPoint] = deque(maxlen=POINTS)
        self._least: MemoryPoint | None = None
        self._opened: tuple[int, float] | None = None
        self.growth: Growth | None = None

    def add(self, point: MemoryPoint, now: float) -> bool:
        """Take a reading; whether it made a point complete."""
        if self._least is None or point.n_bytes < self._least.n_bytes:
            self._least = point
        if self._opened is None:
            self._opened = (point.answered, now)
        answered, opened_s = self._opened
        if point.answered - answered < self._spacing or now - opened_s < MIN_POINT_S:
            return False
        self._points.append(self._least)
        self._least, self._opened = None, (point.answered, now)
        if len(self._points) < POINTS:
            return False
        points = tuple(self._points)
        slope = slope_of_points(points)
        self.growth = (
            None if slope is None else Growth(slope=slope, begin=_begin_of(points), end=points[-1])
        )
        return True


def _begin_of(points: Sequence[MemoryPoint]) -> MemoryPoint:
    """Return the last point that is hardly above the lowest: from there on memory grew."""
    lowest = min(point.n_bytes for point in points)
    edge = lowest + 0.05 * (points[-1].n_bytes - lowest)
    return next((point for point in reversed(points) if point.n_bytes <= edge), points[0])


def _bytes_at_least(growth: Growth) -> float:
    return growth.slope.low * (growth.end.answered - growth.begin.answered)


def _grew(growth: Growth) -> float:
    return growth.end.n_bytes - growth.begin.n_bytes
