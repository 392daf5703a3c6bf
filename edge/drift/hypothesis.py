"""Statistical tests in numpy alone: are two samples from one distribution?

Each p-value is the share of equal distributions that would look at least as different.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEAST_EXPECTED = 5.0  # of a cell in a chi-square test; Cochran 1954
PSI_BINS = 10


def ks_statistic(reference: npt.ArrayLike, sample: npt.ArrayLike) -> float:
    """Return the largest distance of the two empirical distribution functions.

    Both are sorted and not empty. Source: Smirnov 1939.
    """
    a, b = np.asarray(reference), np.asarray(sample)
    points = np.concatenate([a, b])
    left = np.searchsorted(a, points, side="right") / len(a)
    right = np.searchsorted(b, points, side="right") / len(b)
    return float(np.abs(left - right).max())


def ks_p_value(statistic: float, n: int, m: int) -> float:
    """Return the exact two-sided p-value of `ks_statistic` between samples of n and m values.

    It is the share of lattice paths from (0, 0) to (n, m) that leave a band around the diagonal,
    which is exact without ties and too large with them. The same as scipy's
    ks_2samp(method="exact"). Source: Hodges 1958, "The significance probability of the Smirnov
    two-sample test", Arkiv for Matematik 3.
    """
    steps = math.lcm(n, m)
    return _share_outside(min(n, m), max(n, m), round(statistic * steps))


@functools.lru_cache(maxsize=4096)
def _share_outside(n: int, m: int, height: int) -> float:
    """Return the share of paths that reach |i/n - j/m| * lcm(n, m) >= height; n <= m."""
    if height <= 0:
        return 1.0
    divisor = math.gcd(n, m)
    up, right = m // divisor, n // divisor  # what a step in i and one in j change
    inside = np.zeros(m + 1)
    inside[: min(m, (height - 1) // right) + 1] = 1.0  # row 0: one path to each point
    for i in range(1, n + 1):
        low = max(0, (i * up - height) // right + 1)
        high = min(m, -((-i * up - height) // right) - 1)
        inside[:low] = 0.0
        # Multiplied up, the factors are 1 / binomial(n + m, n): counts become shares.
        inside[low : high + 1] = np.cumsum(inside[low : high + 1]) * (i / (m + i))
    return float(min(1.0, max(0.0, 1.0 - inside[m])))


def chi_square_p_value(statistic: float, degrees: int) -> float:
    """Return the share of the chi-square distribution beyond statistic.

    Source: Abramowitz and Stegun 1964, 26.4.4 (odd degrees) and 26.4.5 (even).
    """
    half = statistic / 2
    if half <= 0 or degrees <= 0:
        return 1.0
    if math.isinf(half):
        return 0.0
    start = degrees % 2 / 2
    total = math.erfc(math.sqrt(half)) if degrees % 2 else 0.0
    exponents = start + np.arange(degrees // 2)
    logs = [power * math.log(half) - half - math.lgamma(power + 1) for power in exponents]
    return float(min(1.0, total + sum(map(math.exp, logs))))


def class_test(reference: Counts, sample: Counts) -> tuple[float, float]:
    """Return (total variation distance, p-value) of two counts of the same classes.

    Pearson's chi-square test of homogeneity. Classes of which fewer than LEAST_EXPECTED are
    expected in either sample count as one.
    """
    table = np.stack([reference, sample]).astype(np.float64)
    sizes = table.sum(axis=1, keepdims=True)
    distance = float(np.abs(np.diff(table / sizes, axis=0)).sum() / 2)
    table = _merged(table, least=LEAST_EXPECTED * float(sizes.sum() / sizes.min()))
    if table.shape[1] < 2:
        return distance, 1.0
    expected = sizes * table.sum(axis=0) / sizes.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return distance, chi_square_p_value(statistic, table.shape[1] - 1)


def _merged(table: Floats, *, least: float) -> Floats:
    """Return the columns with a total of at least that, and what all others make together."""
    totals = table.sum(axis=0)
    order = np.argsort(totals, kind="stable")
    table, totals = table[:, order], totals[order]
    rare = int(np.searchsorted(totals, least))
    while 0 < rare < len(totals) and totals[:rare].sum() < least:
        rare += 1
    if rare == 0:
        return table
    return np.concatenate([table[:, :rare].sum(axis=1, keepdims=True), table[:, rare:]], axis=1)


def psi(reference: npt.ArrayLike, sample: npt.ArrayLike) -> float:
    """Return the population stability index; 0.1 is read as a small shift, 0.25 as a large one.

    The sum of (p - q) ln(p / q) over bins that each hold a tenth of the sorted reference; half a
    value is added to each bin, so that an empty one counts. Source: Siddiqi 2006, "Credit Risk
    Scorecards", and Jeffreys 1946.
    """
    ref, values = np.asarray(reference, np.float64), np.asarray(sample, np.float64)
    inner = np.arange(1, PSI_BINS) * len(ref) // PSI_BINS
    edges = np.unique(ref[inner])
    bins = len(edges) + 1
    shares = [
        (np.bincount(np.searchsorted(edges, part, side="right"), minlength=bins) + 0.5)
        / (len(part) + 0.5 * bins)
        for part in (ref, values)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def bonferroni(p_values: npt.ArrayLike, level: float) -> npt.NDArray[np.bool_]:
    """Return which tests fail, so that any fails by chance in at most `level` of all windows.

    Source: Dunn 1961.
    """
    p = np.asarray(p_values, np.float64)
    return np.asarray(p < level / max(1, len(p)))


def benjamini_hochberg(p_values: npt.ArrayLike, level: float) -> npt.NDArray[np.bool_]:
    """Return which tests fail, so that at most `level` of these fail by chance.

    Source: Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    p = np.asarray(p_values, np.float64)
    ordered = np.sort(p)
    passed = np.flatnonzero(ordered < level * np.arange(1, len(p) + 1) / len(p))
    return np.asarray(p <= ordered[passed[-1]]) if len(passed) else np.zeros(len(p), np.bool_)
