"""How far Prometheus' histogram_quantile is off with our buckets: python -m tests.quantile_error.

Inside a bucket Prometheus draws a straight line (promql/quantile.go), so the estimate and the exact
value lie in the same bucket, anywhere: that bounds the error. How large it is in practice depends
on the distribution; some are tried, with the exact quantile by numpy.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.metrics import BUCKETS_S
from edge.spec import AnyArray

QUANTILES = (0.5, 0.95, 0.99)
SIZE = 20_000
SCALES_S = tuple(map(float, np.geomspace(0.0007, 0.7, 25)))  # medians of the distributions
SEEDS = (1, 2)

Draw = Callable[[np.random.Generator, float], AnyArray]

# Latencies with a median of about `scale`.
DISTRIBUTIONS: Mapping[str, Draw] = {
    "narrow (normal, 5 %)": lambda rng, scale: rng.normal(scale, 0.05 * scale, SIZE),
    "log-normal, sigma 0.3": lambda rng, scale: scale * rng.lognormal(0.0, 0.3, SIZE),
    "log-normal, sigma 1": lambda rng, scale: scale * rng.lognormal(0.0, 1.0, SIZE),
    "exponential": lambda rng, scale: rng.exponential(scale / np.log(2), SIZE),
    "two modes, 10 % five times as long": lambda rng, scale: (
        rng.normal(scale, 0.05 * scale, SIZE) * np.where(rng.random(SIZE) < 0.1, 5.0, 1.0)
    ),
    "constant": lambda rng, scale: np.full(SIZE, scale),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of one distribution: the median of all, and the largest."""

    typical: float
    worst: float


def histogram_quantile(q: float, counts: Sequence[int], bounds: Sequence[float]) -> float:
    """Return what Prometheus makes of counts, one more than bounds for what is beyond."""
    total = list(itertools.accumulate(counts))
    rank = q * total[-1]
    number = bisect.bisect_left(total, rank)
    if number == len(bounds):
        return bounds[-1]
    low = 0.0 if number == 0 else bounds[number - 1]
    below = 0 if number == 0 else total[number - 1]
    return low + (bounds[number] - low) * (rank - below) / counts[number]


def counts_of(seconds: AnyArray, bounds: Sequence[float] = BUCKETS_S) -> list[int]:
    """Return how many fall into each bucket; a bound belongs to the bucket below it."""
    places = np.searchsorted(bounds, seconds, side="left")
    return [int(count) for count in np.bincount(places, minlength=len(bounds) + 1)]


def worst_case(low: float, high: float) -> float:
    """Return the largest relative error of an estimate in this bucket: exact low, told high."""
    return (high - low) / low


def errors_of(draw: Draw) -> Errors:
    """Return the errors of all quantiles, scales and seeds."""
    found = []
    for scale, seed in itertools.product(SCALES_S, SEEDS):
        seconds = draw(np.random.default_rng(seed), scale)
        counts = counts_of(seconds)
        for q in QUANTILES:
            exact = float(np.quantile(seconds, q, method="inverted_cdf"))
            found.append(abs(histogram_quantile(q, counts, BUCKETS_S) - exact) / exact)
    return Errors(typical=float(np.median(found)), worst=max(found))


def table() -> str:
    """Return what docs/observability.md shows."""
    lines = ["| from | to | worst case |", "|---|---|---|"]
    for low, high in itertools.pairwise(BUCKETS_S):
        lines.append(f"| {1e3 * low:g} ms | {1e3 * high:g} ms | {worst_case(low, high):.0%} |")
    lines += ["", "| distribution | typical error | largest error seen |", "|---|---|---|"]
    for name, draw in DISTRIBUTIONS.items():
        errors = errors_of(draw)
        lines.append(f"| {name} | {errors.typical:.1%} | {errors.worst:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201
