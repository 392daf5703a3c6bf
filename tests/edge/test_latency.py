import numpy as np
import pytest

from edge.latency import LatencyWindow, latency_from_seconds


def brute_force(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return next(v for v in ordered if sum(w <= v for w in ordered) >= share * len(ordered))


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_exact(count: int) -> None:
    rng = np.random.default_rng(count)
    window = LatencyWindow(size=100)
    rows = rng.exponential(0.01, (count, 3))
    for queue_s, compute_s, total_s in rows:
        window.record(queue_s=queue_s, compute_s=compute_s, total_s=total_s)
    summary = window.summary()
    assert summary.requests == count
    for column, stage in enumerate(("queue", "compute", "total")):
        values = [float(value) * 1e3 for value in rows[:, column]]
        got = summary.stages[stage]
        assert got.p50_ms == pytest.approx(brute_force(values, 0.50))
        assert got.p95_ms == pytest.approx(brute_force(values, 0.95))
        assert got.p99_ms == pytest.approx(brute_force(values, 0.99))


def test_only_the_last_requests_count() -> None:
    window = LatencyWindow(size=4)
    for total_s in (9.0, 9.0, 1.0, 2.0, 3.0, 4.0):
        window.record(queue_s=0.0, compute_s=0.0, total_s=total_s)
    summary = window.summary()
    assert summary.requests == 4
    assert summary.stages["total"].p99_ms == 4000.0
    assert summary.stages["total"].p50_ms == 2000.0


def test_without_requests_there_are_no_percentiles() -> None:
    summary = LatencyWindow().summary()
    assert summary.requests == 0
    assert summary.stages == {}


@pytest.mark.parametrize("count", [1, 2, 99, 100, 1000, 2345])
def test_the_percentiles_of_a_load_are_numpys_where_enough_values_tell(count):
    seconds = np.random.default_rng(count).exponential(0.01, count)
    latency = latency_from_seconds(list(seconds))
    assert latency.answers == count
    assert latency.mean_ms == pytest.approx(1e3 * seconds.mean())
    assert latency.max_ms == pytest.approx(1e3 * seconds.max())
    for share, needed, got in (
        (0.5, 2, latency.p50_ms),
        (0.9, 10, latency.p90_ms),
        (0.99, 100, latency.p99_ms),
        (0.999, 1000, latency.p999_ms),
    ):
        expected = np.quantile(1e3 * seconds, share, method="inverted_cdf")
        assert got == (pytest.approx(expected) if count >= needed else None)
