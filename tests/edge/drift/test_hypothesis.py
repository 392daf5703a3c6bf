from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edge.drift.hypothesis import (
    benjamini_hochberg,
    bonferroni,
    chi_square_p_value,
    class_test,
    ks_p_value,
    ks_statistic,
    psi,
)

RNG = np.random.default_rng(7)
SIZES = [(1, 1), (3, 5), (7, 7), (30, 50), (200, 200), (200, 500), (499, 500), (1000, 500)]


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
def test_ks_equals_scipys_exact_form(n, m, shift):
    ours, theirs = np.sort(RNG.normal(size=n)), np.sort(RNG.normal(size=m) + shift)
    wanted = stats.ks_2samp(ours, theirs, method="exact")
    d = ks_statistic(ours, theirs)
    assert d == pytest.approx(wanted.statistic, abs=1e-12)
    assert ks_p_value(d, n, m) == pytest.approx(wanted.pvalue, abs=1e-9)


def test_ks_equals_scipys_exact_form_with_ties():
    ours, theirs = np.sort(RNG.integers(0, 6, 200)), np.sort(RNG.integers(0, 7, 300))
    wanted = stats.ks_2samp(ours, theirs, method="exact")
    assert ks_p_value(ks_statistic(ours, theirs), 200, 300) == pytest.approx(
        wanted.pvalue, abs=1e-9
    )


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 10, 99, 140])
@pytest.mark.parametrize("statistic", [0.0, 0.5, 3.0, 12.0, 150.0, 800.0])
def test_chi_square_equals_scipys(statistic, degrees):
    wanted = stats.chi2.sf(statistic, degrees)
    assert chi_square_p_value(statistic, degrees) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_classes_that_are_frequent_enough_are_tested_as_scipy_does():
    reference, sample = np.array([100, 120, 80, 200]), np.array([60, 30, 50, 60])
    wanted = stats.chi2_contingency([reference, sample], correction=False).pvalue
    assert class_test(reference, sample)[1] == pytest.approx(wanted, rel=1e-9)


def test_rare_classes_count_as_one():
    reference, sample = np.array([300, 190, 4, 3, 3, 0]), np.array([120, 60, 7, 6, 5, 2])
    merged = [[300, 190, 10], [120, 60, 20]]
    wanted = stats.chi2_contingency(merged, correction=False).pvalue
    distance, p_value = class_test(reference, sample)
    assert p_value == pytest.approx(wanted, rel=1e-9)
    assert distance == pytest.approx(0.5 * np.abs(reference / 500 - sample / 200).sum())


def test_psi_of_a_known_table():
    # Ten bins with one value of the reference each; the sample lies in the first alone.
    p = (np.ones(10) + 0.5) / 15
    q = (np.array([10] + [0] * 9) + 0.5) / 15
    wanted = ((q - p) * np.log(q / p)).sum()
    assert psi(np.arange(10), np.zeros(10)) == pytest.approx(wanted)
    assert psi(np.arange(1000), np.arange(1000)) == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(5))
def test_false_discoveries_are_controlled_as_scipy_does(seed):
    p = np.random.default_rng(seed).uniform(size=40) ** 3
    wanted = stats.false_discovery_control(p, method="bh") <= 0.05
    np.testing.assert_array_equal(benjamini_hochberg(p, 0.05), wanted)
    np.testing.assert_array_equal(bonferroni(p, 0.05), p * 40 < 0.05)
