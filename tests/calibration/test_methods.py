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
from calibration.observers import MIN_BINS, SAMPLED_FROM, Observer


def observed(values: np.ndarray, batches: int = 10) -> Observer:
    seen = Observer("t")
    for part in np.array_split(values, batches):
        seen.update(part)
    return seen


@pytest.fixture
def gaussian() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, 60_000).astype(np.float32)


@pytest.mark.parametrize("batches", [1, 10, 1000])
def test_histogram_agrees_with_numpy_however_it_grew(gaussian: np.ndarray, batches: int) -> None:
    values = np.sort(np.abs(gaussian)) if batches == 1000 else gaussian  # grows all the time
    seen = observed(values, batches)
    edges = np.arange(seen.counts.size + 1) * seen.width
    expected, _ = np.histogram(np.abs(gaussian), bins=edges)
    # float32 against float64 bin edges may move a value to the neighbouring bin.
    assert np.abs(np.cumsum(seen.counts) - np.cumsum(expected)).max() <= 2
    assert seen.counts.sum() == gaussian.size
    assert MIN_BINS <= seen.counts.size <= 2 * MIN_BINS


def test_an_outlier_widens_the_bins_and_loses_no_count(gaussian: np.ndarray) -> None:
    seen = observed(np.append(gaussian, np.float32(1e6)))
    assert seen.counts.sum() == gaussian.size + 1
    assert seen.counts[-1] == 1
    assert seen.width * seen.counts.size > 1e6


def test_zeros_are_counted_before_and_after_the_range_is_known() -> None:
    seen = Observer("t")
    for part in (np.zeros(5), np.ones(2), np.zeros(3), -np.ones(1)):
        seen.update(part.astype(np.float32))
    assert (seen.counts[0], seen.counts.sum(), seen.amax) == (8, 11, 1.0)
    nothing = Observer("t")
    nothing.update(np.zeros(5, np.float32))
    assert (nothing.has_range, nothing.counts.tolist()) == (False, [5])


@pytest.mark.parametrize("split", [0, 1, 30_000, 59_999, 60_000])
def test_halves_observed_apart_merge_to_the_whole(gaussian: np.ndarray, split: int) -> None:
    for values in (gaussian, np.sort(np.abs(gaussian)), np.sort(np.abs(gaussian))[::-1]):
        whole = observed(values, 1)
        left, right = Observer("t"), Observer("t")
        left.update(values[:split])
        right.update(values[split:])
        left.merge(right)
        assert (left.amax, left.width) == (whole.amax, whole.width)
        np.testing.assert_array_equal(left.counts, whole.counts)


def test_a_large_batch_is_counted_exactly_above_half_its_range_and_by_sample_below() -> None:
    values = np.random.default_rng(0).normal(0, 1, 20 * SAMPLED_FROM + 7).astype(np.float32)
    seen = observed(values, 1)
    expected, _ = np.histogram(np.abs(values), bins=np.arange(seen.counts.size + 1) * seen.width)
    half = int(seen.amax / seen.width) // 2
    assert np.abs(np.cumsum(seen.counts[half:]) - np.cumsum(expected[half:])).max() <= 1
    share = np.cumsum(seen.counts[:half]) / values.size
    assert np.abs(share - np.cumsum(expected[:half]) / values.size).max() < 0.004
    amax = amax_from_percentile(seen.counts, seen.width, percentile=99.99)
    assert abs(amax - np.percentile(np.abs(values), 99.99)) <= 2 * seen.width


def test_the_sample_of_a_large_batch_meets_every_column_of_an_image() -> None:
    columns = np.tile(np.arange(1, 17, dtype=np.float32), SAMPLED_FROM // 8)
    seen = observed(columns, 1)
    counted = [seen.counts[min(int(v / seen.width), seen.counts.size - 1)] for v in range(1, 17)]
    assert np.abs(np.array(counted) / (columns.size / 16) - 1).max() < 0.01


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 99.99])
def test_percentile_agrees_with_numpy_to_one_bin(gaussian: np.ndarray, percentile: float) -> None:
    histogram = observed(gaussian)
    amax = amax_from_percentile(histogram.counts, histogram.width, percentile=percentile)
    exact = np.percentile(np.abs(gaussian), percentile)
    assert exact - histogram.width <= amax <= exact + 2 * histogram.width


def test_minmax_is_the_largest_magnitude(gaussian: np.ndarray) -> None:
    assert METHODS["minmax"](observed(gaussian)) == np.abs(gaussian).max()


def test_moving_average_forgets_one_outlier_batch(gaussian: np.ndarray) -> None:
    spiked = gaussian.copy()
    spiked[30_000] = 1000.0
    seen = observed(spiked, batches=100)
    assert METHODS["minmax"](seen) == 1000.0
    assert METHODS["moving-average"](seen) < 20.0


def test_trimmed_max_is_the_largest_magnitude_outside_the_largest_batches(
    gaussian: np.ndarray,
) -> None:
    spiked = gaussian.copy()
    spiked[[10, 30_000]] = 1000.0
    batches = np.array_split(spiked, 100)
    maxima = sorted(float(np.abs(batch).max()) for batch in batches)
    assert METHODS["trimmed-max"](observed(spiked, batches=100)) == maxima[-3]
    assert METHODS["trimmed-max"](observed(spiked, batches=4)) == 1000.0
    halves = [observed(part, batches=50) for part in np.split(spiked, 2)]
    halves[0].merge(halves[1])
    assert METHODS["trimmed-max"](halves[0]) == maxima[-3]


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


@pytest.mark.parametrize("kind", ["student", "relu", "steps", "outlier", "one"])
@pytest.mark.parametrize("bins", [100, 256, 400])
def test_entropy_agrees_with_its_definition(kind: str, bins: int) -> None:
    rng = np.random.default_rng(3)
    values = {
        "student": lambda: rng.standard_t(4, 40_000),
        "relu": lambda: np.maximum(rng.normal(size=40_000), 0),
        "steps": lambda: rng.integers(0, 17, 3_000) / 16,
        "outlier": lambda: np.append(rng.normal(size=3_000), 60.0),
        "one": lambda: np.ones(5),
    }[kind]()
    counts, edges = np.histogram(np.abs(values), bins=bins, range=(0, np.abs(values).max()))
    width = float(edges[1])
    assert amax_from_entropy(counts, width) == pytest.approx(brute_force_entropy(counts, width))


def test_entropy_clips_a_long_tail(gaussian: np.ndarray) -> None:
    spiked = np.append(gaussian, [60.0] * 5).astype(np.float32)
    seen = observed(spiked)
    assert METHODS["entropy"](seen) < 15.0 < METHODS["minmax"](seen)


def test_entropy_keeps_the_range_of_a_tensor_with_few_values() -> None:
    pixels = np.random.default_rng(0).integers(0, 17, 30_000).astype(np.float32) / 16
    assert METHODS["entropy"](observed(pixels)) > 0.99


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
    seen = observed(values)
    chosen = error_at(values, METHODS["mse"](seen))
    tried = [error_at(values, seen.amax * share) for share in np.linspace(0.05, 1.0, 200)]
    assert chosen <= 1.03 * min(tried)
    assert chosen <= 1.001 * error_at(values, seen.amax)


def test_an_empty_histogram_is_refused() -> None:
    empty = np.zeros(MIN_BINS, np.int64)
    with pytest.raises(CalibrationError, match="empty"):
        amax_from_percentile(empty, 1.0, percentile=99.0)
    with pytest.raises(CalibrationError, match="empty"):
        amax_from_entropy(empty, 1.0)
    with pytest.raises(CalibrationError, match="empty"):
        amax_from_mse(empty, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_tensor_name(bad: float) -> None:
    with pytest.raises(CalibrationError, match="'conv1_out' is not finite"):
        Observer("conv1_out").update(np.array([1.0, bad, 2.0], np.float32))
