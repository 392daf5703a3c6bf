"""From what was observed to the clipping range amax; the int8 scale is amax / 127."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.observers import MIN_BINS, Observer

QUANTIZED_LEVELS = 128  # magnitudes of a symmetric int8 value
MAX_CLIPPED_SHARE = 0.01
MSE_CANDIDATES = 241
# A bin with P > 0 and Q = 0 would be infinite; this is below one value in any histogram.
_SMALLEST_Q = 1e-12
_SAME_DIVERGENCE = 1e-12  # of equal ranges the smallest
_SIZES_AT_ONCE = 512
Counts = npt.NDArray[np.int64]
Method = Callable[[Observer], float]


def amax_from_percentile(counts: Counts, width: float, *, percentile: float) -> float:
    """Return the smallest bin edge that keeps `percentile` percent of all values unclipped.

    counts: shape (bins,), number of |x| per bin of `width`. Raises CalibrationError if empty.
    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", arXiv 2004.09602.
    """
    cumulative = np.cumsum(counts)
    if cumulative[-1] == 0:
        raise CalibrationError("the histogram is empty: the collector saw no values")
    wanted = cumulative[-1] * (percentile / 100.0)
    return float((np.searchsorted(cumulative, wanted) + 1) * width)


def amax_from_entropy(counts: Counts, width: float) -> float:
    """Return the range whose int8 image loses the least information (KL divergence).

    For every candidate range of i >= 128 bins: P is the histogram with the tail folded into its
    last bin, Q the same histogram without the tail merged to 128 levels and spread again over the
    bins that were not empty; the range with the smallest KL(P || Q) wins.
    The first bin holds the exact zeros of a ReLU, which every range represents: it is replaced by
    its neighbour, so that it cannot decide. Ranges that would clip more than 1 % of the rest are
    left out: on a tensor with few distinct values, such as pixels, folding the tail makes P and Q
    equal for absurdly small ranges.
    Source: S. Migacz 2017, "8-bit Inference with TensorRT", GTC.
    """
    total = counts.astype(np.float64)
    if total.sum() == 0:
        raise CalibrationError("the histogram is empty: the collector saw no values")
    total[0] = total[1]
    if total.sum() == 0:
        return float(width * counts.size)
    tails = total[::-1].cumsum()[::-1]
    widest = np.flatnonzero(tails > MAX_CLIPPED_SHARE * tails[0])[-1] + 1
    sizes = np.arange(max(QUANTIZED_LEVELS, int(widest)), counts.size + 1)
    if sizes.size == 0:
        return float(counts.size * width)
    divergences = _kl_divergences(total, sizes)
    best = int(sizes[np.argmax(divergences <= divergences.min() + _SAME_DIVERGENCE)])
    return float((best + 0.5) * width) if best < counts.size else float(best * width)


def amax_from_mse(counts: Counts, width: float) -> float:
    """Return the range whose int8 image has the least mean squared error.

    Every value counts as the centre of its bin; ranges are tried from the whole histogram down to
    one sixteenth of it, where more is clipped than int8 could win back.
    Source: Banner et al. 2019, "Post training 4-bit quantization", arXiv 1810.05723, section 3,
    with the histogram in place of its Laplace model.
    """
    if counts.sum() == 0:
        raise CalibrationError("the histogram is empty: the collector saw no values")
    centres = (np.arange(counts.size) + 0.5) * width
    weights = counts.astype(np.float64)
    edges = np.linspace(counts.size // 16, counts.size, MSE_CANDIDATES).round().astype(int)
    best, least = counts.size, np.inf
    for edge in edges:
        scale = edge * width / (QUANTIZED_LEVELS - 1)
        image = np.minimum(np.rint(centres / scale), QUANTIZED_LEVELS - 1) * scale
        error = float(weights @ np.square(centres - image))
        if error <= least:  # of equal ranges the wider clips less of what was not seen
            best, least = int(edge), error
    return float(best * width)


def _kl_divergences(
    total: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return KL(P || Q) of every range; with prefix sums, a range costs its levels, not its bins.

    total: shape (bins,). sizes: ranges in bins. With Z values in all and H of them in range, level
    g of Q is q_g = (its values / its bins that are not empty) / H, so that
    KL = (sum P log P - Z log Z) / Z - sum_g P_g log q_g / Z.
    """
    mass, filled, information = (
        np.concatenate([[0.0], np.cumsum(values)])
        for values in (total, total > 0, _information(total))
    )
    whole, divergences = mass[-1], []
    for some in np.array_split(sizes, 1 + sizes.size // _SIZES_AT_ONCE):
        edges = some[:, None] * np.arange(QUANTIZED_LEVELS + 1) // QUANTIZED_LEVELS
        values, bins = np.diff(mass[edges]), np.diff(filled[edges])
        inside = np.maximum(mass[some], 1e-300)
        q = values / np.maximum(bins, 1.0) / inside[:, None]
        log_q = np.log(np.maximum(q, _SMALLEST_Q))
        last, tail = total[some - 1], whole - mass[some]
        log_q_last = np.where(last > 0, log_q[:, -1], np.log(_SMALLEST_Q))
        folded = information[some] - _information(last) + _information(last + tail)
        cross = (values * log_q).sum(axis=1) + tail * log_q_last
        kl = (folded - cross) / whole - np.log(whole)
        divergences.append(np.where(mass[some] > 0, kl, np.inf))
    return np.concatenate(divergences)


def _information(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values * np.log(np.maximum(values, 1.0))


def _percentile(percent: float) -> Method:
    return lambda seen: min(
        seen.amax, amax_from_percentile(seen.counts, seen.width, percentile=percent)
    )


def _entropy(seen: Observer) -> float:
    """Return the range on MIN_BINS bins, as the method was published; its cost is their square."""
    counts, width = seen.counts, seen.width
    if counts.size > MIN_BINS:
        even = np.append(counts, 0)[: counts.size + counts.size % 2]
        counts, width = even.reshape(-1, 2).sum(axis=1), 2 * width
    return min(seen.amax, amax_from_entropy(counts, width))


METHODS: Mapping[str, Method] = {
    "minmax": lambda seen: seen.amax,
    "moving-average": lambda seen: seen.moving_amax or seen.amax,
    "trimmed-max": lambda seen: seen.trimmed_amax or seen.amax,
    "percentile-99.999": _percentile(99.999),
    "percentile-99.99": _percentile(99.99),
    "percentile-99.9": _percentile(99.9),
    "entropy": _entropy,
    "mse": lambda seen: min(seen.amax, amax_from_mse(seen.counts, seen.width)),
}
