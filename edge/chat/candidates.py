"""Which tokens of a row may be drawn, and the draw: exact, without sorting the row.

A row is split into strided groups of 128, which numpy reduces at the speed of memory. The k-th
largest of their maxima is a lower bound of the k-th largest value, so what is not below it is a
small superset of the k largest.

Weights are exp((logit - largest logit) / temperature): in 0..1, one of them 1. Rows are FP32 of
shape (tokens,), without NaN. Of equal values the one with the lower index comes first.
"""

from __future__ import annotations

import numpy as np

from edge.spec import AnyArray

_GROUP = 128
# How many of the largest are looked at before the end of a nucleus is searched for.
_TRIES = (64, 512)
_FEW = 2048  # to be sorted
_LEAST_WEIGHT = 1e-38  # FP32 has hardly less


def largest(row: AnyArray, count: int) -> AnyArray:
    """Return the indices of the largest values of a row, largest first."""
    count = min(count, len(row))
    groups = len(row) // _GROUP
    if count == len(row):
        return np.argsort(-row, kind="stable")
    parts = row if count > groups else row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    ids = np.flatnonzero(row >= np.partition(parts, len(parts) - count)[len(parts) - count])
    return ids[np.argsort(-row[ids], kind="stable")[:count]]


def sums_of(weights: AnyArray) -> AnyArray:
    """Return the sum of every group, and the weights behind the last group, as FP64."""
    groups = len(weights) // _GROUP
    grouped = weights[: groups * _GROUP].reshape(_GROUP, groups)
    return np.concatenate([grouped.sum(axis=0), weights[groups * _GROUP :]]).astype(np.float64)


def keep_nucleus(weights: AnyArray, wanted: float) -> None:
    """Set all weights to 0 but the largest that together reach wanted: those before it do not."""
    for count in _TRIES:
        ids = largest(weights, count)
        kept = _kept(weights[ids], wanted)
        if kept < len(ids) or len(ids) == len(weights):
            values = weights[ids[:kept]]
            weights.fill(0)
            weights[ids[:kept]] = values
            return
    _keep_many(weights, wanted)


def drawn(weights: AnyArray, share: float) -> int:
    """Return the index at a share in [0, 1) of the sum of weights.

    The order is one of indices and not of weights, because tokens of almost equal weight change
    places when a batch is composed otherwise.
    """
    groups = len(weights) // _GROUP
    bounds = np.cumsum(sums_of(weights))
    target = share * bounds[-1]
    group = _place(bounds, target)
    if group >= groups:
        return groups * _GROUP + group - groups
    inside = np.cumsum(weights[group : groups * _GROUP : groups], dtype=np.float64)
    return group + groups * _place(inside, target - (bounds[group - 1] if group else 0.0))


def _kept(values: AnyArray, wanted: float) -> int:
    """Return how many of these, largest first, are kept; one at least."""
    sums = np.cumsum(values, dtype=np.float64)
    return 1 + int(np.searchsorted(sums[:-1], wanted))


def _keep_many(weights: AnyArray, wanted: float) -> None:
    """Do it for a distribution so flat that its nucleus is large: by bisection."""
    low, high = _LEAST_WEIGHT, 1.0  # the nucleus ends between them: low < its least weight <= high
    for _ in range(64):
        if np.count_nonzero((weights > low) & (weights <= high)) <= _FEW:
            break
        middle = np.float32(np.sqrt(low * high))
        if sums_of(weights * (weights > middle)).sum() < wanted:
            high = float(middle)
        else:
            low = float(middle)
    above = sums_of(weights * (weights > high)).sum()
    ids = np.flatnonzero((weights > low) & (weights <= high))
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    np.multiply(weights, weights > low, out=weights)
    weights[ids[_kept(weights[ids], wanted - above) :]] = 0


def _place(sums: AnyArray, target: float) -> int:
    """Return the first place whose running sum exceeds target: none of weight 0 is that."""
    return int(np.searchsorted(sums, min(target, np.nextafter(sums[-1], 0)), side="right"))
