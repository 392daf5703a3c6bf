"""Growth of memory with the requests: what is one, and what only looks like one."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edge import leak
from edge.leak import POINTS, SPACINGS, LeakWatch, MemoryPoint, slope_of_points

MIB = 1 << 20
PER_SECOND = 100


def watched(levels, *, per_second=PER_SECOND, watch=None):
    """Give one reading a second of so many requests; levels: bytes, by the second."""
    watch = LeakWatch() if watch is None else watch
    for second, level in enumerate(levels):
        watch.add(
            answered=second * per_second, n_bytes=int(level), now=float(second), wall_s=1e9 + second
        )
        if watch.growth is not None:
            return watch
    return watch


def points_of(x, y):
    pairs = zip(x, y, strict=True)
    return [MemoryPoint(answered=int(a), n_bytes=int(b), wall_s=0.0) for a, b in pairs]


def noisy(rng, seconds, base=500 * MIB, sigma=2 * MIB):
    return base + rng.normal(0, sigma, seconds)


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_and_its_bound_are_those_of_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.integers(1, 50, POINTS))
    y = (1e6 + 30 * x + rng.normal(0, 300, POINTS)).astype(int)
    slope = slope_of_points(points_of(x, y))
    # One-sided 99.95 % is two-sided 99.9 %.
    expected = stats.theilslopes(y, x, alpha=2 * stats.norm.sf(leak.Z))
    assert slope.median == pytest.approx(expected.slope, rel=1e-12)
    # scipy rounds the rank to the nearest, and takes ties into account: a neighbouring slope.
    slopes = np.sort([(y[j] - y[i]) / (x[j] - x[i]) for i in range(POINTS) for j in range(i)])
    places = np.searchsorted(slopes, [slope.low, expected.low_slope])
    assert abs(int(places[0]) - int(places[1])) <= 1
    assert slope.low <= expected.low_slope


def test_the_bound_holds_for_so_many_of_a_thousand_lines_as_it_says():
    rng = np.random.default_rng(7)
    z = 1.645  # one-sided 95 %: a bound that fails often enough to be counted
    x = np.arange(POINTS) * 25
    above = 0
    for _ in range(1000):
        y = 1e6 + 40.0 * x + rng.normal(0, 500, POINTS)
        above += slope_of_points(points_of(x, y), z=z).low > 40.0
    # 50 are expected; 3 standard deviations of a binomial are 21.
    assert 50 - 21 <= above <= 50 + 21


def test_points_of_one_request_count_have_no_slope():
    assert slope_of_points([MemoryPoint(answered=5, n_bytes=n, wall_s=0.0) for n in (1, 2)]) is None


@pytest.mark.parametrize("per_request", [3_000, 20_000, 1_000_000])
def test_a_leak_is_found_with_its_size_and_its_beginning(per_request):
    rng = np.random.default_rng(1)
    begins = 400
    seconds = np.arange(4000)
    levels = noisy(rng, 4000) + np.maximum(0, seconds - begins) * PER_SECOND * per_request
    growth = watched(levels).growth
    assert growth.slope.low <= per_request * 1.1
    assert growth.slope.median == pytest.approx(per_request, rel=0.5)
    # Known as well as noise lets it: two standard deviations are 4 MiB of growth.
    slack_s = 10 + 8 * MIB / (PER_SECOND * per_request)
    assert abs(growth.begin.answered / PER_SECOND - begins) <= slack_s
    assert growth.begin.wall_s == 1e9 + growth.begin.answered / PER_SECOND


def test_a_slow_leak_is_found_within_its_window():
    """20 bytes with each request: 32 MiB after 1.7 million, which the fifth window spans."""
    watch = LeakWatch()
    for number in range(40_000):
        answered = number * 100
        watch.add(
            answered=answered, n_bytes=300 * MIB + 20 * answered, now=float(number), wall_s=0.0
        )
        if watch.growth is not None:
            break
    assert watch.growth is not None
    assert watch.growth.slope.median == pytest.approx(20, rel=0.01)
    assert answered < POINTS * SPACINGS[4] * 1.05


def test_nothing_is_said_while_warming_up():
    seconds = np.arange(25)
    assert watched(100 * MIB + seconds * 50 * MIB).growth is None


def test_memory_that_grows_without_requests_is_no_leak_of_theirs():
    assert watched(100 * MIB + np.arange(2000) * MIB, per_second=0).growth is None


@pytest.mark.parametrize("at", [60, 90, 150, 600, 1500])
@pytest.mark.parametrize("size", [40 * MIB, 4000 * MIB])
def test_a_one_off_step_is_no_leak(at, size):
    rng = np.random.default_rng(at)
    assert watched(noisy(rng, 3000) + np.where(np.arange(3000) >= at, size, 0)).growth is None


def test_noise_is_no_leak_in_fifty_runs():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert watched(noisy(rng, 400, sigma=10 * MIB)).growth is None, seed


def test_a_walk_at_random_is_no_leak_in_fifty_runs():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        levels = 500 * MIB + np.cumsum(rng.normal(0, MIB / 2, 400))
        assert watched(levels).growth is None, seed


@pytest.mark.parametrize("period_s", [7, 40, 200])
@pytest.mark.parametrize("tooth", [10 * MIB, 30 * MIB])
def test_the_teeth_of_a_collector_are_no_leak(period_s, tooth):
    seconds = np.arange(4000)
    assert watched(400 * MIB + (seconds % period_s) / period_s * tooth).growth is None


def test_large_teeth_are_no_leak_once_one_has_been_seen():
    seconds = np.arange(100, 6000)
    tooth = (seconds % 200) / 200 * 600 * MIB
    first = np.where(seconds < 200, 0, tooth)
    first[seconds < 215] = np.where(seconds[seconds < 215] < 205, 600 * MIB, 0)
    assert watched(400 * MIB + first).growth is None


def test_a_leak_below_the_teeth_of_a_collector_is_found():
    seconds = np.arange(6000)
    levels = 400 * MIB + (seconds % 37) / 37 * 20 * MIB + seconds * PER_SECOND * 2_000
    growth = watched(levels).growth
    assert growth.slope.median == pytest.approx(2_000, rel=0.2)


def test_after_the_growth_has_ended_all_is_steady_again():
    watch = watched(100 * MIB + np.arange(400) * MIB)
    assert watch.growth is not None
    assert not watch.is_steady
    seconds = 400
    for second in range(seconds, seconds + 20_000):
        watch.add(answered=second * 100, n_bytes=500 * MIB, now=float(second), wall_s=0.0)
        if watch.is_steady:
            break
    assert watch.growth is None
    assert watch.is_steady


def test_counters_that_begin_again_begin_a_new_warm_up():
    watch = watched(100 * MIB + np.arange(400) * MIB)
    watch.add(answered=0, n_bytes=MIB, now=1000.0, wall_s=0.0)
    assert watch.growth is None
    assert watch.is_steady


def test_memory_of_the_watch_itself_is_bounded():
    def size(thing, seen):
        if id(thing) in seen:
            return 0
        seen.add(id(thing))
        parts = list(getattr(thing, "__dict__", {}).values())
        if isinstance(thing, list | tuple) or hasattr(thing, "popleft"):
            parts += list(thing)
        return sys.getsizeof(thing) + sum(size(part, seen) for part in parts)

    watch = LeakWatch()
    sizes = []
    for number in range(8_000):
        watch.add(answered=number * 10_000, n_bytes=10**9, now=number * 2.0, wall_s=0.0)
        if number in {4_000, 7_999}:
            sizes.append(size(watch, set()))
    # All windows are full at the first; a point takes 64 bytes, its numbers 24 to 32 each.
    assert max(sizes) <= len(SPACINGS) * POINTS * (64 + 3 * 32) + 6_000
