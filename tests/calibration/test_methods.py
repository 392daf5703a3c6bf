from __future__ import annotations

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.methods import (
    MAX_CLIPPED_SHARE,
    METHODS,
    amax_from_entropy,
    amax_from_mse,
    amax_from_percentile,
)
from calibration.observers import HISTOGRAM_BINS, HistogramObserver, RangeObserver


def observed(values: np.ndarray, batches: int = 10) -> tuple[RangeObserver, HistogramObserver]:
    seen = RangeObserver("t")
    for part in np.array_split(values, batches):
        seen.update(part)
    histogram = HistogramObserver(seen.amax)
    for part in np.array_split(values, batches):
        histogram.update(part)
    return seen, histogram


@pytest.fixture
def gaussian() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)


def test_histogram_agrees_with_numpy(gaussian: np.ndarray) -> None:
    seen, histogram = observed(gaussian)
    expected, _ = np.histogram(np.abs(gaussian), bins=HISTOGRAM_BINS, range=(0, seen.amax))
    # float32 against float64 bin edges may move a value to the neighbouring bin.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 2
    assert histogram.counts.sum() == gaussian.size


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 99.99])
def test_percentile_agrees_with_numpy_to_one_bin(gaussian: np.ndarray, percentile: float) -> None:
    _, histogram = observed(gaussian)
    amax = amax_from_percentile(histogram.counts, histogram.width, percentile=percentile)
    exact = np.percentile(np.abs(gaussian), percentile)
    assert exact - histogram.width <= amax <= exact + 2 * histogram.width


def test_minmax_is_the_largest_magnitude(gaussian: np.ndarray) -> None:
    assert METHODS["minmax"](*observed(gaussian)) == np.abs(gaussian).max()


def test_moving_average_forgets_one_outlier_batch(gaussian: np.ndarray) -> None:
    spiked = gaussian.copy()
    spiked[50_000] = 1000.0
    seen, histogram = observed(spiked, batches=100)
    assert METHODS["minmax"](seen, histogram) == 1000.0
    assert METHODS["moving-average"](seen, histogram) < 20.0


def brute_force_entropy(counts: np.ndarray, width: float) -> float:
    """The definition, bin by bin, without any of the shortcuts of the implementation."""
    counts = counts.astype(float)
    counts[0] = counts[1]
    best, best_kl = len(counts), np.inf
    for i in range(128, len(counts) + 1):
        if counts[i:].sum() > 0 and counts[i - 1 :].sum() > MAX_CLIPPED_SHARE * counts.sum():
            continue
        p = counts[:i].copy()
        p[-1] += counts[i:].sum()
        q = np.zeros(i)
        for level in range(128):
            low, high = level * i // 128, (level + 1) * i // 128
            block = counts[low:high]
            if (block > 0).any():
                q[low:high][block > 0] = block.sum() / (block > 0).sum()
        p, q = p / p.sum(), q / q.sum()
        kl = sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)
        if kl < best_kl:
            best, best_kl = i, kl
    return (best + 0.5) * width if best < len(counts) else best * width


def test_entropy_agrees_with_its_definition() -> None:
    values = np.random.default_rng(3).standard_t(4, 40_000)
    counts, edges = np.histogram(np.abs(values), bins=256)
    width = float(edges[1])
    assert amax_from_entropy(counts, width) == pytest.approx(brute_force_entropy(counts, width))


def test_entropy_clips_a_long_tail(gaussian: np.ndarray) -> None:
    spiked = np.append(gaussian, [60.0] * 5).astype(np.float32)
    seen, histogram = observed(spiked)
    assert METHODS["entropy"](seen, histogram) < 15.0 < METHODS["minmax"](seen, histogram)


def test_entropy_keeps_the_range_of_a_tensor_with_few_values() -> None:
    pixels = np.random.default_rng(0).integers(0, 17, 50_000).astype(np.float32) / 16
    assert METHODS["entropy"](*observed(pixels)) > 0.99


def fake_quantized(values: np.ndarray, amax: float) -> np.ndarray:
    scale = amax / 127
    return np.clip(np.rint(values / scale), -127, 127) * scale


def error_at(values: np.ndarray, amax: float) -> float:
    return float(np.square(values - fake_quantized(values, amax)).mean())


@pytest.mark.parametrize("shape", ["normal", "student", "uniform", "spiked"])
def test_mse_is_no_worse_than_any_range_tried_on_the_values_themselves(shape: str) -> None:
    rng = np.random.default_rng(4)
    values = {
        "normal": rng.normal(size=60_000),
        "student": rng.standard_t(3, 60_000),
        "uniform": rng.uniform(-1, 1, 60_000),
        "spiked": np.append(rng.normal(size=60_000), [60.0] * 3),
    }[shape].astype(np.float32)
    seen, histogram = observed(values)
    chosen = error_at(values, METHODS["mse"](seen, histogram))
    tried = [error_at(values, seen.amax * share) for share in np.linspace(0.05, 1.0, 200)]
    assert chosen <= 1.03 * min(tried)
    assert chosen <= 1.001 * error_at(values, seen.amax)


def test_an_empty_histogram_is_refused() -> None:
    empty = np.zeros(HISTOGRAM_BINS, np.int64)
    with pytest.raises(CalibrationError, match="empty"):
        amax_from_percentile(empty, 1.0, percentile=99.0)
    with pytest.raises(CalibrationError, match="empty"):
        amax_from_entropy(empty, 1.0)
    with pytest.raises(CalibrationError, match="empty"):
        amax_from_mse(empty, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_tensor_name(bad: float) -> None:
    with pytest.raises(CalibrationError, match="'conv1_out' is not finite"):
        RangeObserver("conv1_out").update(np.array([1.0, bad, 2.0], np.float32))
