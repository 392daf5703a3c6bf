from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import chisquare

from edge.drift.sampling import KEY_BITS, MAX_KEY, UniformSample


def sampled(rng: random.Random, rows: int, *, size: int = 1, **bounds: int) -> dict[int, int]:
    """Return the rows that are in at the end, by their keys."""
    sample, found = UniformSample(**bounds), {}
    for row in range(rows):
        key = rng.getrandbits(KEY_BITS)
        found[key] = row
        for out in sample.add(key, size):
            del found[out]
        assert len(sample) == len(found)
        assert sample.bytes == size * len(found)
    return found


def test_the_rows_are_those_with_the_smallest_keys():
    found = sampled(random.Random(1), 500, max_rows=20, max_bytes=1 << 30)
    rng = random.Random(1)
    assert sorted(found) == sorted(rng.getrandbits(KEY_BITS) for _ in range(500))[:20]


@pytest.mark.parametrize("bounds", [(10, 1 << 30), (1 << 30, 107)])
def test_each_row_is_as_likely_as_any_other(bounds):
    rng, counts = random.Random(5), np.zeros(100)
    for _ in range(2000):
        for row in sampled(rng, 100, size=10, max_rows=bounds[0], max_bytes=bounds[1]).values():
            counts[row] += 1
    assert counts.sum() == 20_000
    # Rows of one sample exclude each other, so the statistic is smaller than chance makes it.
    assert chisquare(counts).pvalue > 1e-3


def test_samples_of_two_windows_are_one_of_both():
    rng, counts = random.Random(7), np.zeros(40)
    for _ in range(3000):
        whole = UniformSample(max_rows=8, max_bytes=1 << 30)
        inside: dict[int, int] = {}
        for first in (0, 20):
            window, rows = UniformSample(max_rows=8, max_bytes=50), {}
            for row in range(first, first + 20):
                key = rng.getrandbits(KEY_BITS)
                rows[key] = row
                for out in window.add(key, 10):
                    del rows[out]
            for out in whole.lower(window.limit):
                del inside[out]
            for key in sorted(rows):
                if key > whole.limit:
                    break
                inside[key] = rows[key]
                for out in whole.add(key, 10):
                    del inside[out]
        for row in inside.values():
            counts[row] += 1
    assert chisquare(counts).pvalue > 1e-3


def test_whoever_lists_the_keys_can_go_on():
    rng = random.Random(3)
    keys = [rng.getrandbits(KEY_BITS) for _ in range(300)]
    first = UniformSample(max_rows=20, max_bytes=1 << 30)
    inside = set()
    for number, key in enumerate(keys):
        if number == 150:
            first = UniformSample(max_rows=20, max_bytes=1 << 30)
            for kept in inside:
                assert first.add(kept, 1) == []
        inside = (inside | {key}) - set(first.add(key, 1))
    assert sorted(inside) == sorted(keys)[:20]


def test_an_empty_sample_takes_every_key():
    sample = UniformSample(max_rows=2, max_bytes=100)
    assert sample.limit == MAX_KEY
    assert sample.add(MAX_KEY - 1, 1) == []
