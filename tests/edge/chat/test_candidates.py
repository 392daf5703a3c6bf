from __future__ import annotations

import numpy as np
import pytest

from edge.chat.candidates import drawn, keep_nucleus, largest, sums_of

# About the borders of the groups of 128, and a vocabulary as large as they get.
SIZES = (1, 2, 127, 128, 129, 1000, 32_003, 128_256)


def row_of(size: int, *, levels: int | None = None) -> np.ndarray:
    """Logits; with levels so few different ones that most are equal to others."""
    random = np.random.default_rng(size)
    row = random.normal(size=size) if levels is None else random.integers(levels, size=size)
    return row.astype(np.float32)


def in_order(row: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(len(row)), -row))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [None, 1, 3])
def test_the_largest_are_those_of_a_full_sort_with_the_lower_index_first(size, levels):
    row = row_of(size, levels=levels)
    expected = in_order(row)
    for count in {1, 2, 20, 64, size // 128 + 1, size}:
        np.testing.assert_array_equal(largest(row, count), expected[:count])


def test_tokens_that_must_not_come_are_never_among_the_largest_as_long_as_there_are_others():
    row = np.full(1000, -np.inf, np.float32)
    row[[3, 500, 999]] = 1, 2, 3
    np.testing.assert_array_equal(largest(row, 5)[:3], [999, 500, 3])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 6.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_a_nucleus_is_that_of_a_full_sort(size, spread, share):
    logits = row_of(size) * np.float32(spread)
    weights = np.exp(logits - logits.max())
    wanted = share * float(weights.sum(dtype=np.float64))
    order = in_order(weights)
    before = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)[:-1]])
    count = max(1, int(np.count_nonzero(before < wanted)))
    kept = weights.copy()
    keep_nucleus(kept, wanted)
    # Sums in FP32 move the end by tokens that carry 1e-6 of the mass.
    surplus = set(np.flatnonzero(kept)) ^ set(order[:count])
    assert weights[list(surplus)].sum() <= 2e-6 * weights.sum()
    np.testing.assert_array_equal(kept[kept > 0], weights[kept > 0])


@pytest.mark.parametrize("levels", [1, 2, 50])
def test_of_equal_tokens_at_the_end_of_a_nucleus_the_first_are_kept(levels):
    weights = np.exp(row_of(5000, levels=levels) - levels + 1)
    kept = weights.copy()
    keep_nucleus(kept, 0.7 * float(weights.sum(dtype=np.float64)))
    least = kept[kept > 0].min()
    equal = np.flatnonzero(weights == least)
    chosen = np.flatnonzero(kept == least)
    np.testing.assert_array_equal(chosen, equal[: len(chosen)])
    assert (kept[weights > least] > 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_sums_are_those_of_all_weights(size):
    weights = np.exp(row_of(size))
    assert sums_of(weights).sum() == pytest.approx(weights.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("size", [1, 100, 300])
def test_shares_are_drawn_in_proportion_to_weights(size):
    weights = np.exp(row_of(size))
    shares = (np.arange(50_000) + 0.5) / 50_000
    found = np.bincount([drawn(weights, share) for share in shares], minlength=size)
    # Each interval holds a whole number of the even shares, one more or less.
    np.testing.assert_allclose(found, 50_000 * weights / weights.sum(), atol=1.1)


@pytest.mark.parametrize("size", SIZES)
def test_what_has_no_weight_is_never_drawn(size):
    weights = np.zeros(size, np.float32)
    alone = size // 2
    weights[alone] = 1e-30
    for share in (0.0, 0.5, np.nextafter(1, 0)):
        assert drawn(weights, share) == alone
